"""Answers: what is refused, in which words, and that what is accepted stays data."""

import ast
import json
import re
import sys
import tempfile
import tomllib
from collections.abc import Callable
from importlib.metadata import PathDistribution, distribution, packages_distributions
from pathlib import Path

import hatchling.build
import hostile
import pytest
import yaml
from cookiecutter.exceptions import FailedHookException, OutputDirExistsException
from cookiecutter.prompt import prompt_for_config
from packaging.utils import canonicalize_name
from supervisor.options import UnhosedConfigParser
from support import BIN, POOR_LOCALE, PROJECT, ROOT, bake, contents, replay, run, succeed

SLUG_RULE = (
    "(use up to 40 lower-case letters and digits, in words with '-' between them, such as "
    "'acme-tasks')"
)
PACKAGE_RULE = "(use up to 40 lower-case letters, digits and '_', such as 'acme_tasks')"
LANE_RULE = "(use up to 30 lower-case letters, digits and '_', with commas between lanes, such as "
LINE_RULE = "has a line break or a control character (use one line of text, such as "

Answers = dict[str, object]


def lanes(answer: object) -> Answers:
    return {"lanes": answer}


def package(answer: str) -> Answers:
    return {"package_name": answer}


def slug(answer: str) -> Answers:
    return {"project_slug": answer, "package_name": "fine"}


MANAGER_RULE = "(use systemd, supervisor, compose, with commas between them, such as "
CHOICES = {
    "license": "(use one of MIT, BSD-3-Clause, Apache-2.0, proprietary)",
}

#: Beside what every text of hostile.py is told; these are near to right.
REFUSED: dict[str, tuple[Answers, list[str]]] = {
    "no-lanes": (lanes(""), ["lanes: empty (name at least one, such as 'slow, quick')"]),
    "blank-lanes": (lanes(" \t"), ["lanes: empty (name at least one, such as 'slow, quick')"]),
    "lane-twice": (
        lanes("slow, quick, slow:quick, slow"),
        ["lanes: 'slow' twice (name each lane once)"],
    ),
    "lanes-with-semicolon": (
        lanes("slow;quick"),
        [f"lanes: 'slow;quick' {LANE_RULE}'slow_quick')"],
    ),
    "trailing-comma": (lanes("slow, quick,"), [f"lanes: '' {LANE_RULE}'quick')"]),
    "only-commas": (lanes(",,"), [f"lanes: '' {LANE_RULE}'quick')"] * 3),
    "lane-too-long": (lanes("a" * 31), [f"lanes: '{'a' * 31}' {LANE_RULE}'{'a' * 30}')"]),
    "lane-begins-with-a-digit": (lanes("2nd"), [f"lanes: '2nd' {LANE_RULE}'nd')"]),
    "unknown-profile": (
        lanes("premium:fast"),
        [
            "lanes: 'premium' has the profile 'fast' (use one of quick, standard, slow, such as "
            "'premium:standard')"
        ],
    ),
    "no-profile-after-colon": (
        lanes("premium:"),
        [
            "lanes: 'premium' has the profile '' (use one of quick, standard, slow, such as "
            "'premium:standard')"
        ],
    ),
    "celerys-own-lane": (
        lanes("celeryev, unacked_mail"),
        [
            "lanes: 'celeryev' begins like one of Celery's own queues (use another, such as "
            "'my_celeryev')",
            "lanes: 'unacked_mail' begins like one of Celery's own queues (use another, such as "
            "'my_unacked_mail')",
        ],
    ),
    "package-is-a-keyword": (
        package("class"),
        ["package_name: 'class' is a word of Python itself (use another, such as 'my_class')"],
    ),
    "package-is-a-soft-keyword": (
        package("match"),
        ["package_name: 'match' is a word of Python itself (use another, such as 'my_match')"],
    ),
    "package-is-in-the-standard-library": (
        package("json"),
        [
            "package_name: 'json' is a module that the project needs (use another, such as "
            "'my_json')"
        ],
    ),
    "package-is-celery": (
        package("celery"),
        [
            "package_name: 'celery' is a module that the project needs (use another, such as "
            "'my_celery')"
        ],
    ),
    "package-like-a-test": (
        package("test_tasks"),
        [
            "package_name: 'test_tasks' is a module that the project needs (use another, such as "
            "'my_test_tasks')"
        ],
    ),
    "package-with-dash": (package("acme-tasks"), [f"package_name: 'acme-tasks' {PACKAGE_RULE}"]),
    "package-too-long": (package("a" * 41), [f"package_name: '{'a' * 41}' {PACKAGE_RULE}"]),
    "slug-upper-case": (slug("Acme-Tasks"), [f"project_slug: 'Acme-Tasks' {SLUG_RULE}"]),
    "slug-with-underscore": (slug("acme_tasks"), [f"project_slug: 'acme_tasks' {SLUG_RULE}"]),
    "slug-too-long": (slug("a" * 41), [f"project_slug: '{'a' * 41}' {SLUG_RULE}"]),
    "slug-is-celery": (
        slug("celery"),
        [
            "project_slug: 'celery' is a distribution or command that the project needs (use "
            "another, such as 'celery-tasks')"
        ],
    ),
    "slug-is-python": (
        slug("python"),
        [
            "project_slug: 'python' is a distribution or command that the project needs (use "
            "another, such as 'python-tasks')"
        ],
    ),
    "name-empty": (
        {"project_name": "  ", "project_slug": "fine"},
        ["project_name: '  ' is empty (give one line of text, such as 'Acme Tasks')"],
    ),
    "lanes-that-differ-in-case": (lanes("slow, Slow"), [f"lanes: 'Slow' {LANE_RULE}'slow')"]),
    "lane-with-two-profiles": (
        lanes("a:quick:slow"),
        [
            "lanes: 'a' has the profile 'quick:slow' (use one of quick, standard, slow, such as "
            "'a:standard')"
        ],
    ),
    "more-problems-than-one-reads": (
        lanes("," * 9_999),
        [f"lanes: '' {LANE_RULE}'quick')"] * 20 + ["... and 9,980 more"],
    ),
    "lanes-as-a-list": (
        lanes(["slow", "quick"]),
        ["lanes: ['slow', 'quick'] is not text (quote it, such as 'slow, quick')"],
    ),
    "author-is-nothing": (
        {"author": None},
        ["author: None is not text (quote it, such as 'Acme')"],
    ),
    "author-is-yes": ({"author": True}, ["author: True is not text (quote it, such as 'Acme')"]),
    "name-is-a-number": (
        {"project_name": 7},
        ["project_name: 7 is not text (quote it, such as 'Acme Tasks')"],
    ),
    "package-is-a-table": (
        {"package_name": {"x": "y" * 100}},
        [
            f"package_name: {{'x': '{'y' * 53}... (109 characters) is not text (quote it, such as "
            "'acme_tasks')"
        ],
    ),
    "unknown-licence": ({"license": "GPL"}, [f"license: 'GPL' {CHOICES['license']}"]),
    "licence-in-small-letters": ({"license": "mit"}, [f"license: 'mit' {CHOICES['license']}"]),
    "licence-that-would-be-toml": (
        {"license": 'MIT"\nx = "'},
        [f"license: 'MIT\"\\nx = \"' {CHOICES['license']}"],
    ),
    "process-manager-that-would-be-python": (
        {"process_manager": 'both" + print("canary") + "'},
        [
            'process_manager: \'both" + print("canary") + "\' '
            f"{MANAGER_RULE}'systemd, supervisor')",
        ],
    ),
    "process-manager-misspelt": (
        {"process_manager": "systmd, supervisord, docker-compose"},
        [
            f"process_manager: 'systmd' {MANAGER_RULE}'systemd')",
            f"process_manager: 'supervisord' {MANAGER_RULE}'supervisor')",
            f"process_manager: 'docker-compose' {MANAGER_RULE}'compose')",
        ],
    ),
    "process-manager-twice": (
        {"process_manager": "compose, systemd,compose, compose"},
        ["process_manager: 'compose' twice (name each once)"],
    ),
    "no-process-manager": (
        {"process_manager": " "},
        ["process_manager: empty (name at least one, such as 'systemd, supervisor')"],
    ),
    "process-manager-after-a-comma": (
        {"process_manager": "compose,"},
        [f"process_manager: '' {MANAGER_RULE}'systemd, supervisor')"],
    ),
    "both-and-another": (
        {"process_manager": "both, compose"},
        [f"process_manager: 'both' {MANAGER_RULE}'systemd, supervisor')"],
    ),
    "package-like-a-dependencys-dependency": (
        package("cycler"),
        [
            "package_name: 'cycler' is a module that the project needs (use another, such as "
            "'my_cycler')"
        ],
    ),
    "slug-would-replace-what-boots": (
        slug("default"),
        [
            "project_slug: 'default' is a unit or user that servers have already (use another, "
            "such as 'default-tasks')"
        ],
    ),
    "slug-is-root": (
        slug("root"),
        [
            "project_slug: 'root' is a unit or user that servers have already (use another, such "
            "as 'root-tasks')"
        ],
    ),
    "everything-at-once": (
        {
            "project_name": "\n",
            "project_slug": "A B",
            "package_name": "A B",
            "description": "",
            "author": "\x00"[:0],
            "lanes": "Slow Lane, premium:fast, x, x",
        },
        [
            "project_name: '\\n' is empty (give one line of text, such as 'Acme Tasks')",
            f"project_slug: 'A B' {SLUG_RULE}",
            f"package_name: 'A B' {PACKAGE_RULE}",
            "description: '' is empty (give one line of text, such as 'Sends the mail.')",
            "author: '' is empty (give one line of text, such as 'Acme')",
            f"lanes: 'Slow Lane' {LANE_RULE}'slow_lane')",
            "lanes: 'premium' has the profile 'fast' (use one of quick, standard, slow, such as "
            "'premium:standard')",
            "lanes: 'x' twice (name each lane once)",
        ],
    ),
}


PLAIN: Answers = {
    "project_name": "Acme Tasks",
    "project_slug": "acme-tasks",
    "package_name": "acme_tasks",
    "description": "Sends the mail.",
    "author": "Acme",
    "lanes": "slow, quick",
    "process_manager": "systemd, supervisor",
    "license": "MIT",
}


def explained(problems: list[str]) -> str:
    lines = ["These answers cannot be used; no file was written:"]
    return "\n".join(lines + [f"  {problem}" for problem in problems]) + "\n"


def suggested_lanes(value: hostile.Value) -> list[str]:
    return [f"lanes: x, such as {lane!r})" for lane in value.lanes]


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cookiecutter leaves some behind when a hook fails."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.mark.parametrize(("answers", "problems"), REFUSED.values(), ids=REFUSED)
def test_each_problem_has_its_line_and_nothing_is_left_behind(
    template: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    answers: Answers,
    problems: list[str],
) -> None:
    with pytest.raises(FailedHookException, match="exit status: 1"):
        replay(template, tmp_path / "out", PLAIN | answers)
    assert capfd.readouterr().err == explained(problems)
    assert [*(tmp_path / "out").iterdir()] == []


@pytest.mark.slow
def test_what_an_error_suggests_is_accepted(
    template: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = [line for _, lines in REFUSED.values() for line in lines]
    said += [line for value in hostile.VALUES.values() for line in suggested_lanes(value)]
    found = re.findall(r"^(\w+): .*, such as '([^']+)'\)$", "\n".join(said), re.MULTILINE)
    # Lanes all at once, each with its profile if it has one: as many as there are.
    items = [item for field, text in found if field == "lanes" for item in text.split(", ")]
    asked = {item.partition(":")[0]: item for item in items}
    assert len(asked) > 60
    others = {(field, text) for field, text in found if field != "lanes"}
    assert {field for field, _ in others} == {*PLAIN} - {"lanes", *CHOICES}
    for field, text in [("lanes", ",".join(asked.values())), *sorted(others)]:
        # One answer that is wrong for certain, so that no project is made.
        with pytest.raises(FailedHookException, match="exit status: 1"):
            replay(template, tmp_path / "out", PLAIN | {field: text, "license": "x"})
        assert capfd.readouterr().err == explained([f"license: 'x' {CHOICES['license']}"])


SPOKEN: dict[str, tuple[dict[str, str], list[str]]] = {
    "invalid-utf-8": (
        {"author": "\udcff"},
        ["author: '\\udcff' is empty (give one line of text, such as 'Acme')"],
    ),
    "newline": (
        {"description": "One.\nTwo."},
        [f"description: 'One.\\nTwo.' {LINE_RULE}'Sends the mail.')"],
    ),
    # Jinja, which renders what a command line gives, makes every line break a newline.
    "carriage-return": (
        {"description": "One.\rTwo."},
        [f"description: 'One.\\nTwo.' {LINE_RULE}'Sends the mail.')"],
    ),
    "quotes": (
        {"project_slug": """'"\\'\"\"\"""", "package_name": "fine"},
        [f"project_slug: '\\'\"\\\\\\'\"\"\"' {SLUG_RULE}"],
    ),
    "shell": (
        {"lanes": "$(touch canary)"},
        [f"lanes: '$(touch canary)' {LANE_RULE}'touch_canary')"],
    ),
    "option": ({"package_name": "--help"}, [f"package_name: '--help' {PACKAGE_RULE}"]),
    "another-alphabet": ({"lanes": "быстро"}, [f"lanes: 'быстро' {LANE_RULE}'quick')"]),
    "long": (
        {"lanes": "a" * 10_000},
        [f"lanes: '{'a' * 59}... (10,000 characters) {LANE_RULE}'{'a' * 30}')"],
    ),
    "above": (
        {"project_slug": "../x", "package_name": "fine"},
        [f"project_slug: '../x' {SLUG_RULE}"],
    ),
}


@pytest.mark.parametrize(("answers", "problems"), SPOKEN.values(), ids=SPOKEN)
def test_a_command_line_is_told_the_same_and_exits_with_1(
    template: Path,
    env: dict[str, str],
    tmp_path: Path,
    answers: dict[str, str],
    problems: list[str],
) -> None:
    out = tmp_path / "work" / "out"
    result = bake(template, out, answers, env)
    # Cookiecutter's own report, with its traceback, is on stdout; stderr is ours.
    assert (result.stderr, result.returncode) == (explained(problems), 1)
    assert [*(tmp_path / "work").rglob("*")] == [out]


def test_letters_that_the_locale_lacks_are_told(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """Seen before: "has a line break or a control character"."""
    result = bake(template, tmp_path / "out", {"author": "Zo\u00eb"}, env | POOR_LOCALE)
    said = (
        "author: 'Zo\\udcc3\\udcab' has characters that the locale's encoding lacks (set "
        "LC_ALL=C.UTF-8, and answer again)"
    )
    assert (result.stderr, result.returncode) == (explained([said]), 1)


def test_a_command_line_carries_odd_text_as_it_is(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    odd = {
        "project_name": """O'Neill "&" Sons\\ 🚀""",
        "description": "$(touch canary) `touch canary`; %(x)s %i {0} {# --help\\",
        "author": "משימות \"\"\" ''' café \u202e",
    }
    # Half a comment is Jinja to Cookiecutter.
    odd["description"] = odd["description"].replace("{#", "#}")
    result = bake(template, tmp_path / "out", odd | {"project_slug": "odd"}, env)
    assert result.returncode == 0, result.stderr
    project = tmp_path / "out/odd"
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert metadata["description"] == odd["description"]
    assert metadata["authors"] == [{"name": odd["author"]}]
    lines = (project / "README.md").read_text().splitlines()
    assert [lines[0], lines[2]] == [f"# {odd['project_name']}", odd["description"]]
    assert [*tmp_path.rglob("*canary*")] == []


#: Cookiecutter renders what a command line or a settings file gives, before any hook runs; an
#: answer that is typed, or in a replay file, it takes as it is (test_prompts.py, test_hostile.py).
JINJA = {
    "{{ 1/0 }}": "ZeroDivisionError: division by zero",
    "{{ x": "jinja2.exceptions.TemplateSyntaxError: ",
    "{{ nothing }}": "Unable to render variable 'author'",
}


@pytest.mark.parametrize(("text", "said"), JINJA.items(), ids=JINJA)
def test_jinja_that_fails_on_a_command_line_leaves_nothing(
    template: Path, env: dict[str, str], tmp_path: Path, text: str, said: str
) -> None:
    result = bake(template, tmp_path / "out", {"author": text}, env)
    assert result.returncode == 1
    assert f"\n{said}" in f"\n{result.stdout}\n{result.stderr}"
    assert [*(tmp_path / "out").iterdir()] == []


@pytest.mark.slow
def test_jinja_on_a_command_line_is_cookiecutters_to_run(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """The README says so; should Cookiecutter change, so should the README."""
    assert bake(template, tmp_path / "out", {"author": "{{ 7 * 7 }}"}, env).returncode == 0
    assert "Copyright (c) 49\n" in (tmp_path / "out/acme-tasks/LICENSE").read_text()
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert "Cookiecutter runs as Jinja what is between `{{` and `}}` in `name=value`" in readme


def test_a_choice_that_is_none_names_those_that_are(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    result = bake(template, tmp_path / "out", {"license": "GPL"}, env)
    assert result.stderr.splitlines()[-1] == (
        "ValueError: GPL provided for choice variable license, but the choices are "
        "['MIT', 'BSD-3-Clause', 'Apache-2.0', 'proprietary']."
    )
    assert result.returncode == 1
    assert [*(tmp_path / "out").iterdir()] == []


@pytest.mark.slow
def test_an_answer_to_no_question_changes_nothing(
    template: Path, env: dict[str, str], tmp_path: Path, baked: Callable[[str], Path]
) -> None:
    """Cookiecutter drops it: no hook can see that there was one."""
    assert bake(template, tmp_path / "out", {"lane": "Slow Lane"}, env).returncode == 0
    assert contents(tmp_path / "out/acme-tasks") == contents(baked("default"))


#: Cookiecutter makes the folder before it asks the hook. What these come to, and what is left.
FOLDERS: dict[str, tuple[str, type[Exception], str, list[str]]] = {
    "none": ("", OutputDirExistsException, "directory already exists", []),
    "here": (".", OutputDirExistsException, "directory already exists", []),
    "above": ("..", OutputDirExistsException, "directory already exists", []),
    "with-a-nul": ("a\0b", ValueError, "embedded null", []),
    "too-long": ("a" * 10_000, OSError, "name too long", []),
    # It removes the inner one only.
    "two": ("a/b", FailedHookException, "exit status: 1", ["a"]),
}


@pytest.mark.parametrize(("text", "error", "said", "left"), FOLDERS.values(), ids=FOLDERS)
def test_a_slug_that_is_no_folder_of_its_own_writes_no_file(
    template: Path, tmp_path: Path, text: str, error: type[Exception], said: str, left: list[str]
) -> None:
    out = tmp_path / "work/out"
    out.mkdir(parents=True)
    with pytest.raises(error, match=said):
        replay(template, out, PLAIN | {"project_slug": text})
    assert [path.name for path in out.iterdir()] == left
    assert contents(out) == {}


def test_an_absolute_slug_leaves_nothing_there(
    template: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    with pytest.raises(FailedHookException, match="exit status: 1"):
        replay(template, tmp_path / "out", PLAIN | {"project_slug": str(there)})
    assert capfd.readouterr().err.startswith(explained([f"project_slug: '{tmp_path}"])[:-1][:70])
    assert not there.exists()


NAMES = {
    "Acme Tasks": "acme-tasks",
    "Café & Söhne, Ltd.": "cafe-sohne-ltd",
    "東京": "dong-jing",
    "🚀": "my-tasks",
    "!!!": "my-tasks",
    "2nd Desk": "nd-desk",
    "2024": "my-tasks",
    "A" * 10_000: "a" * 40,
    "a" * 39 + " b": "a" * 39,
    "../../etc/passwd": "etc-passwd",
}


def test_the_slug_that_follows_from_a_name_is_one_that_is_accepted() -> None:
    """Else Enter, all the way through, would end in an error."""
    questions = json.loads((ROOT / "cookiecutter.json").read_text())
    slugs = {}
    for name in NAMES:
        context = {"cookiecutter": questions | {"project_name": name}}
        slugs[name] = prompt_for_config(context, no_input=True)["project_slug"]
    assert slugs == NAMES
    assert [s for s in slugs.values() if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", s)] == []


def test_a_refused_overwrite_leaves_the_project_as_it_was(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    assert bake(template, tmp_path, {}, env).returncode == 0
    before = contents(tmp_path)
    command = [sys.executable, "-m", "cookiecutter", template, "--no-input", "-f"]
    result = run(*command, "lanes=Slow Lane", cwd=tmp_path, env=env)
    assert result.stderr == explained([f"lanes: 'Slow Lane' {LANE_RULE}'slow_lane')"])
    assert contents(tmp_path) == before


LANES = {
    "words-of-others": "default, celery, pidbox, all, lanes, class, none, app, time, self, x, a_2, "
    "standard, unacke, celeryeu, true, null, task, tasks, nan, group_1, a__b, c_",
    "hundred": ", ".join(f"lane_{i}:{('slow', 'quick', 'standard')[i % 3]}" for i in range(100)),
    "white-space": "\t slow\n,\u00a0quick :  quick ,\u2028a\x1c:\x1fslow",
}


@pytest.mark.slow
@pytest.mark.parametrize("answer", LANES.values(), ids=LANES)
def test_every_lane_let_through_is_one_that_the_project_runs(
    template: Path, env: dict[str, str], tmp_path: Path, answer: str
) -> None:
    """Names that mean something to Python, Celery, supervisor or the template itself."""
    names = [item.partition(":")[0].strip() for item in answer.split(",")]
    replay(template, tmp_path / "out", PLAIN | {"lanes": answer})
    source = env | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"}
    project = tmp_path / "out/acme-tasks"
    program = (
        "from acme_tasks.celery import app; app.loader.import_default_modules(); "
        "print(*(n.removesuffix('_task').removeprefix('acme_tasks.tasks.') "
        "for n in app.tasks if n.startswith('acme')))"
    )
    printed = succeed(sys.executable, "-c", program, cwd=project, env=source)
    assert sorted(printed.split()) == sorted(names)
    command = [sys.executable, "-m", "acme_tasks"]
    assert succeed(*command, "units", "--check", cwd=project, env=source) == ""
    units = {path.name for path in (project / "deploy/systemd").glob("*.service")}
    assert units == {f"acme-tasks-{name}@.service" for name in names} | {
        "acme-tasks-metrics.service"
    }
    assert programs(project / "deploy/supervisor/acme-tasks.conf") == names
    succeed(BIN / "ruff", "check", "--no-cache", cwd=project, env=env)
    succeed(BIN / "ruff", "format", "--no-cache", "--diff", cwd=project, env=env)


@pytest.mark.slow
def test_mypy_is_content_with_many_lanes(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    answer = f"{LANES['words-of-others']}, {LANES['hundred']}"
    replay(template, tmp_path / "out", PLAIN | {"lanes": answer})
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "mypy"]
    succeed(*command, cwd=tmp_path / "out/acme-tasks", env=env)


#: Short, long, and names that mean something to Python, to tools or within a project.
NAMED = {
    "a": "a",
    "z9": "zzz_",
    "a-1-b": "a__b",
    "lanes": "lanes",
    "none": "self",
    "test": "print",
    "true": "true",
    "deploy": "deploy",
    "src": "src",
    "docs": "task",
    "s" * 40: "p" * 40,
    "celery-tasks": "my_celery",
}


@pytest.mark.slow
def test_every_slug_and_package_let_through_is_one_that_the_project_runs_under(
    template: Path, env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for slug_, package_ in NAMED.items():
        replay(template, out, PLAIN | {"project_slug": slug_, "package_name": package_})
        project = out / slug_
        source = env | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", package_, "units", "--check"]
        assert succeed(*command, cwd=project, env=source) == ""
        assert programs(project / f"deploy/supervisor/{slug_}.conf") == ["slow", "quick"]
        workflow = yaml.safe_load((project / ".github/workflows/ci.yml").read_text())
        assert set(workflow["jobs"]) == {"check", "test", "newest"}
        monkeypatch.chdir(project)
        info = PathDistribution(
            tmp_path / hatchling.build.prepare_metadata_for_build_wheel(str(tmp_path))
        )
        assert info.metadata["Name"] == slug_
        written = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        assert written["scripts"] == {slug_: f"{package_}.__main__:main"}
    # Where an import belongs in a sorted list depends on the package's name.
    succeed(BIN / "ruff", "check", "--no-cache", cwd=out, env=env)
    succeed(BIN / "ruff", "format", "--no-cache", "--diff", cwd=out, env=env)
    tests = ["tests/test_lanes.py", "tests/test_tasks.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    for slug_ in ("lanes", "deploy"):
        succeed(*command, cwd=out / slug_, env=env)


def programs(path: Path) -> list[str]:
    """The lanes of a supervisor configuration, as supervisor's own parser reads it."""
    parser = UnhosedConfigParser()
    parser.expansions = {"here": str(path.parent)}
    parser.read_string(path.read_text())
    names = [name.removeprefix("program:") for name in parser.sections() if "program:" in name]
    slug_ = path.stem
    names.remove(f"{slug_}-metrics-exporter")  # no lane's, and in no group
    assert parser.saneget(f"group:{slug_}", "programs", do_expand=True) == ",".join(names)
    lanes_ = [name.removeprefix(f"{slug_}-") for name in names]
    for name, lane in zip(names, lanes_, strict=True):
        expansions = {"program_name": name, "process_num": 1}
        command = parser.saneget(f"program:{name}", "command", expansions=expansions)
        assert command == f"/opt/{slug_}/current/bin/{slug_} worker {lane} --instance 1"
    return lanes_


def constants(path: Path) -> dict[str, ast.expr]:
    """What is assigned at the top of a module that cannot be imported: it is a template."""
    values = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign):
            values[ast.unparse(node.targets[0])] = node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            values[ast.unparse(node.target)] = node.value
    return values


def hook(name: str) -> ast.expr:
    return constants(ROOT / "hooks/pre_gen_project.py")[name]


def test_the_hook_and_the_project_agree_on_names_and_profiles(
    env: dict[str, str], baked: Callable[[str], Path]
) -> None:
    program = (
        "import json; from acme_tasks.lanes import config, schema; "
        "print(json.dumps([config.LANE_NAME.pattern, sorted(schema.PROFILES)]))"
    )
    source = env | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"}
    printed = succeed(sys.executable, "-c", program, cwd=baked("default"), env=source)
    lane = hook("LANE")
    assert isinstance(lane, ast.Call)
    pattern = ast.literal_eval(lane.args[0])
    assert json.loads(printed) == [pattern, sorted(ast.literal_eval(hook("PROFILES")))]


def test_the_hook_knows_every_question_and_choice() -> None:
    questions = json.loads((ROOT / "cookiecutter.json").read_text())
    assert [*ast.literal_eval(hook("EXAMPLES"))] == [name for name in questions if name[0] != "_"]
    checks = hook("CHECKS")
    assert isinstance(checks, ast.Dict)
    checked = [ast.literal_eval(key) for key in checks.keys if key is not None]
    assert checked == [*ast.literal_eval(hook("EXAMPLES"))]
    assert ", ".join(ast.literal_eval(hook("PROCESS_MANAGERS"))) == questions["process_manager"]
    assert [*ast.literal_eval(hook("LICENSES"))] == questions["license"]


def test_no_package_or_command_may_be_called_like_one_that_the_project_is_installed_with() -> None:
    listed = (ROOT / PROJECT / "pyproject.toml").read_text()
    # Those it lists; what they bring in their turn changes with their releases.
    names = set(re.findall(r'"([a-z-]+)(?:\[redis\])?>=', listed)) - {"hatchling"}
    assert {"celery", "supervisor", "kombu", "matplotlib", "pytest"} < names
    modules = {
        module
        for module, owners in packages_distributions().items()
        if names & set(map(canonicalize_name, owners))
        if module.isidentifier() and not module.startswith("_")
    }
    tests = {path.stem for path in (ROOT / PROJECT / "tests").iterdir()} | {"tests"}
    needed = {name.lower().replace("-", "_") for name in modules | names | tests}
    taken = ast.literal_eval(hook("TAKEN"))
    assert {name for name in needed if not name.startswith(("test_", "_"))} - taken == set()
    scripts = [entry for name in names for entry in distribution(name).entry_points]
    commands = {entry.name for entry in scripts if entry.group == "console_scripts"}
    slugs = {name for name in commands if re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)}
    assert {"celery", "pytest", "supervisord"} < slugs
    refused = ast.literal_eval(hook("COMMANDS"))
    assert {name for name in slugs - refused if name.replace("-", "_") not in taken} == set()


def test_an_old_python_is_told_so_before_the_first_question(
    env: dict[str, str], tmp_path: Path
) -> None:
    hook = ROOT / "hooks/pre_prompt.py"
    program = (
        f"import sys; sys.version_info = (3, 10, 4, 'final', 0); exec(open({str(hook)!r}).read())"
    )
    result = run(sys.executable, "-c", program, cwd=tmp_path, env=env)
    assert (result.returncode, result.stdout, result.stderr) == (
        1,
        "",
        "celery-lanes-template needs Python 3.11 or later, and Cookiecutter runs on 3.10.4. "
        "Install it with a newer one, for example: pipx install --python python3.13 "
        "cookiecutter\n",
    )
    # An old one must be able to read what tells it so.
    ast.parse(hook.read_text(), feature_version=(3, 7))


def test_a_new_python_is_asked_at_once(env: dict[str, str], tmp_path: Path) -> None:
    assert succeed(sys.executable, ROOT / "hooks/pre_prompt.py", cwd=tmp_path, env=env) == ""
