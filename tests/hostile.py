"""Hostile and odd answers: each is given to every question."""

from dataclasses import dataclass

CANARY = "touch canary"  # nothing may ever run it


@dataclass(frozen=True, slots=True)
class Value:
    """A text, and what becomes of it as the answer to each question.

    No one of them is a slug, a package or one of the choices.
    """

    text: str
    #: For each item between commas that is no lane, the lane that the error suggests.
    lanes: tuple[str, ...]
    #: As a name, description or author: the rule that it breaks, if any.
    rule: str | None = None


EMPTY = "is empty"
CONTROL = "has a line break or a control character"
LOCALE = "has characters that the locale's encoding lacks"
SPACE = "begins or ends with a space"

VALUES = {
    # Quotes and backslashes: Python, TOML, JSON, shell.
    "double-quotes": Value('The "best" tasks', ("the_best_tasks",)),
    "single-quotes": Value("The 'best' of Acme's", ("the_best_of_acme_s",)),
    "three-double-quotes": Value('"""', ("quick",)),
    "three-single-quotes": Value("'''", ("quick",)),
    "escaped-quotes": Value('\\"""\\', ("quick",)),
    "a-quote-at-each-end": Value('"Acme"', ("acme",)),
    "typographic-quotes": Value("„Acme“ \u2018x\u2019 «y»", ("acme_x_y",)),
    "backslash": Value("\\", ("quick",)),
    "trailing-backslash": Value("Acme\\", ("acme",)),
    "windows-path": Value("C:\\new\\x41\\", ("c",)),
    "unicode-escape": Value("\\u0000\\N{BULLET}\\x00", ("u0000_n_bullet_x",)),
    "ends-python": Value(
        f'"""; import os; os.system("{CANARY}"); """', ("import_os_os_system_touch_cana",)
    ),
    "ends-python-single": Value(
        f"'''; import os; os.system('{CANARY}'); '''", ("import_os_os_system_touch_cana",)
    ),
    "python-call": Value(
        f"' + __import__('os').system('{CANARY}') + '", ("import_os_system_touch_canary",)
    ),
    "f-string": Value(
        f"{{__import__('os').system('{CANARY}')}}", ("import_os_system_touch_canary",)
    ),
    "format-field": Value("{0} {x!r:>{y}} {}", ("x_r",)),
    # Jinja, Cookiecutter's own language.
    "jinja-sum": Value("{{ 7 * 7 }}", ("quick",)),
    "jinja-error": Value("{{ 1/0 }}", ("quick",)),
    "jinja-answers": Value("{{ cookiecutter }}", ("cookiecutter",)),
    "jinja-answer": Value("{{ cookiecutter.author }}", ("cookiecutter_author",)),
    "jinja-statement": Value("{% for x in y %}", ("for_x_in_y",)),
    "jinja-raw": Value("{% raw %}", ("raw",)),
    "jinja-endraw": Value("{% endraw %}{{ 1/0 }}{% raw %}", ("endraw_1_0_raw",)),
    "jinja-comment": Value("{# x #} {# y", ("x_y",)),
    "jinja-include": Value("{% include '/etc/passwd' %}", ("include_etc_passwd",)),
    "jinja-call": Value(
        f"{{{{ cycler.__init__.__globals__.os.system('{CANARY}') }}}}",
        ("cycler_init_globals_os_system_",),
    ),
    # Shell, make and the expansions of ConfigParser, supervisor, systemd and logging.
    "shell-substitution": Value(f"$({CANARY})", ("touch_canary",)),
    "shell-backticks": Value(f"`{CANARY}`", ("touch_canary",)),
    "shell-semicolon": Value(f"x; {CANARY}", ("x_touch_canary",)),
    "shell-and": Value(f"x && {CANARY}", ("x_touch_canary",)),
    "shell-pipe": Value(f"x | {CANARY} > canary2", ("x_touch_canary_canary",)),
    "shell-variables": Value("$HOME ${PATH} $$ $@ !!", ("home_path",)),
    "make": Value(f"$(shell {CANARY}) $(error x)", ("shell_touch_canary_error_x",)),
    "per-cent": Value("100 % %% %", ("quick",)),
    "per-cent-s": Value("%s %d %n", ("s_d_n",)),
    "per-cent-name": Value("%(x)s %(ENV_HOME)s", ("x_s_env_home_s",)),
    "per-cent-i": Value("%i %H %%i", ("i_h_i",)),
    "celery-node": Value("%h@%n", ("h_n",)),
    # Paths and words of a command line.
    "parent": Value("../x", ("x",)),
    "parents": Value("../../../../tmp/canary", ("tmp_canary",)),
    "root": Value("/", ("quick",)),
    "absolute": Value("/etc/canary", ("etc_canary",)),
    "home": Value("~", ("quick",)),
    "home-of-root": Value("~root/canary", ("root_canary",)),
    "two-dots": Value("..", ("quick",)),
    "dot": Value(".", ("quick",)),
    "dash": Value("-", ("quick",)),
    "option": Value("--help", ("help",)),
    "redirect": Value("<(x) >y 2>&1", ("x_y",)),
    "glob": Value("*?[!a]", ("a",)),
    "file-uri": Value("File:///etc/passwd", ("file",)),
    # Languages that the output is written in.
    "toml-table": Value("[project]", ("project",)),
    "toml-key": Value('x" }] evil = "1', ("x_evil",)),
    "yaml": Value("&a !!python/object/apply:os.system ['x']", ("a_python_object_apply",)),
    "yaml-pairs": Value("A: b", ("a",)),
    "ini": Value("[program:x]", ("program",)),
    "comment": Value("# not a heading; nor a comment", ("not_a_heading_nor_a_comment",)),
    "html": Value("<script>alert(1)</script> &amp;", ("script_alert_1_script_amp",)),
    "html-comment": Value("--> <!--", ("quick",)),
    "markdown": Value("*a* _b_ [c](d) | `e` ![f](g)", ("a_b_c_d_e_f_g",)),
    "markdown-fence": Value("```", ("quick",)),
    "rich-markup": Value("[bold]x[/] [/nothing]", ("bold_x_nothing",)),
    "header": Value("Name: evil", ("name",)),
    "requirement": Value("acme[x] @ https://x; python_version<'4'", ("acme_x_https",)),
    "commas": Value("A,, b!,", ("a", "quick", "b", "quick")),
    # Unicode.
    "composed": Value("Caf\u00e9", ("caf",)),
    "decomposed": Value("Cafe\u0301", ("cafe",)),
    "compatibility": Value("\ufb01ne ① \uff21cme", ("ne_cme",)),
    "emoji": Value("Tasks 🚀 für 東京", ("tasks_f_r",)),
    "emoji-family": Value("👩\u200d👩\u200d👧 🏳\ufe0f", ("quick",)),
    "right-to-left": Value("משימות ברקע", ("quick",)),
    "right-to-left-override": Value("abc\u202edef\u202c", ("abc_def",)),
    "isolates": Value("\u2066x\u2069 \u200fy", ("x_y",)),
    "zero-width-inside": Value("Ac\u200bme", ("ac_me",)),
    "byte-order-mark": Value("\ufeffAcme", ("acme",)),
    "soft-hyphen": Value("Ac\u00adme", ("ac_me",)),
    "no-break-space": Value("Acme\u00a0Tasks", ("acme_tasks",)),
    "private-use": Value("\ue000 \U0010ffff", ("quick",), EMPTY),
    "noncharacter": Value("x\ufffe\uffff", ("x",)),
    "other-digits": Value("\u0661\u0662\u0663", ("quick",)),
    "homoglyphs": Value("\u0430\u0441me", ("me",)),
    "turkish": Value("\u0130I\u0131", ("i_i",)),
    "beyond-the-first-plane": Value("\U00010348\U0001f600\U000e0041x", ("x",)),
    "combining-heap": Value("Z" + "\u0300\u0316" * 40, ("z",)),
    # Words that mean something elsewhere.
    "null": Value("None ", ("none",), SPACE),
    "zero": Value("0", ("quick",)),
    "float": Value("1e9", ("e",)),
    "nan": Value("NaN", ("nan",)),
    "yaml-null": Value("~ null", ("null",)),
    "upper-true": Value("TRUE", ("true",)),
    "windows-device": Value("CON", ("con",)),
    # Long.
    "long": Value("A" * 10_000, ("a" * 30,)),
    "long-quotes": Value('"' * 10_000, ("quick",)),
    "long-words": Value("Acme tasks " * 900 + "end.", ("acme_tasks_acme_tasks_acme_tas",)),
    # Lines, white space, and what cannot be seen.
    "empty": Value("", (), EMPTY),
    "space": Value(" ", (), EMPTY),
    "white-space": Value(" \t\n", (), EMPTY),
    "no-break-space-alone": Value("\u00a0", (), EMPTY),
    "ideographic-space": Value("\u3000", (), EMPTY),
    "zero-width-alone": Value("\u200b\u200d", ("quick",), EMPTY),
    "byte-order-mark-alone": Value("\ufeff", ("quick",), EMPTY),
    "override-alone": Value("\u202e", ("quick",), EMPTY),
    "space-first": Value(" A", ("a",), SPACE),
    "space-last": Value("A ", ("a",), SPACE),
    "no-break-space-last": Value("A\u00a0", ("a",), SPACE),
    "newline": Value("A\nB", ("a_b",), CONTROL),
    "newline-last": Value("A\n", ("a",), CONTROL),
    "carriage-return": Value("A\rB", ("a_b",), CONTROL),
    "windows-newline": Value("A\r\nB", ("a_b",), CONTROL),
    "tab": Value("A\tB", ("a_b",), CONTROL),
    "nul": Value("A\0B", ("a_b",), CONTROL),
    "escape": Value("A\x1b[31mB", ("a_31mb",), CONTROL),
    "bell": Value("A\a", ("a",), CONTROL),
    "backspace": Value("A\bB", ("a_b",), CONTROL),
    "form-feed": Value("A\fB", ("a_b",), CONTROL),
    "vertical-tab": Value("A\vB", ("a_b",), CONTROL),
    "file-separator": Value("A\x1cB", ("a_b",), CONTROL),
    "delete": Value("A\x7fB", ("a_b",), CONTROL),
    "next-line": Value("A\x85B", ("a_b",), CONTROL),
    "line-separator": Value("A\u2028B", ("a_b",), CONTROL),
    "paragraph-separator": Value("A\u2029B", ("a_b",), CONTROL),
    "surrogate": Value("A\udcff", ("a",), LOCALE),
    "toml-injection": Value('x"\nevil = "1', ("x_evil",), CONTROL),
    "header-injection": Value("x\nLicense-File: canary", ("x_license_file",), CONTROL),
    "python-injection": Value(
        f"x\nimport os; os.system('{CANARY}')", ("x_import_os_os_system_touch_ca",), CONTROL
    ),
    "long-control": Value("\x01" * 10_000, ("quick",), EMPTY),
}
