"""What the tests share: the answers they bake with, and how they bake and run."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cookiecutter.main import cookiecutter

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "{{cookiecutter.project_slug}}"
TEMPLATE = ("cookiecutter.json", "hooks", "templates", PROJECT)
BIN = Path(sys.executable).parent
COMPOSE_SCHEMA = (BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec")

Lanes = dict[str, str]  # name -> profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Bake:
    """A set of answers, and what they ask for."""

    lanes: Lanes
    default_lane: str
    answers: dict[str, str] = field(default_factory=dict)
    slug: str = "acme-tasks"
    package: str = "acme_tasks"

    @property
    def process_managers(self) -> list[str]:
        """What is asked to run the workers."""
        return self.answers.get("process_manager", "systemd, supervisor, compose").split(", ")


BAKES = {
    "default": Bake(lanes={"slow": "slow", "quick": "quick"}, default_lane="quick"),
    "three": Bake(
        answers={
            "lanes": "slow, quick, premium:quick",
            "process_manager": "supervisor",
            "license": "proprietary",
        },
        lanes={"slow": "slow", "quick": "quick", "premium": "quick"},
        default_lane="quick",
    ),
    "one": Bake(
        answers={"lanes": "mail", "process_manager": "systemd", "license": "BSD-3-Clause"},
        lanes={"mail": "standard"},
        default_lane="mail",
    ),
    "five": Bake(
        answers={
            "lanes": "slow, quick, premium:quick, mail, reports:slow",
            "process_manager": "compose, systemd",
        },
        lanes={
            "slow": "slow",
            "quick": "quick",
            "premium": "quick",
            "mail": "standard",
            "reports": "slow",
        },
        default_lane="quick",
    ),
    "other-names": Bake(
        answers={
            "project_name": "Night Desk",
            "package_name": "desk",
            "description": "Answers at night.",
            "author": "Desk & Sons",
            "lanes": "exports:slow,alarms:quick",
            "process_manager": "compose",
            "license": "Apache-2.0",
        },
        lanes={"exports": "slow", "alarms": "quick"},
        default_lane="alarms",
        slug="night-desk",
        package="desk",
    ),
    # As long as each may be: no line of code may grow beyond what the formatter allows.
    "longest": Bake(
        answers={
            "project_slug": "s" * 40,
            "package_name": "p" * 40,
            "lanes": f"{'a' * 30}:slow, {'b' * 30}:quick, {'c' * 30}",
        },
        lanes={"a" * 30: "slow", "b" * 30: "quick", "c" * 30: "standard"},
        default_lane="b" * 30,
        slug="s" * 40,
        package="p" * 40,
    ),
}


#: Python's encoding is ASCII in it; by itself it takes UTF-8 where the locale says nothing else.
POOR_LOCALE = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's own: no settings, no caches, and temporary files below `home`."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "LC_ALL": "C.UTF-8"}
    return own | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"} | more


def index() -> dict[str, str]:
    """A `python3` with nothing installed, and the way to the package index."""
    path = os.pathsep.join([str(Path(sys.base_prefix) / "bin"), os.environ["PATH"]])
    own = re.compile(r"(?:PIP|UV)_\w+|https?_proxy|no_proxy|SSL_CERT_FILE", re.IGNORECASE)
    return {n: v for n, v in os.environ.items() if own.fullmatch(n)} | {"PATH": path}


def install(into: Path, *wanted: object, env: dict[str, str]) -> Path:
    """The bin/ of a new virtual environment `into` that has what is `wanted`.

    By uv, in a second or two: for tests of what is installed. pip takes half a minute, and is used
    where a page says so.
    """
    there = env | index() | {"UV_NATIVE_TLS": "1"}  # as in a project's Makefile
    uv = (BIN / "uv", "--quiet")
    succeed(*uv, "venv", "--python", sys.executable, into, cwd=into.parent, env=there)
    place = ("--python", into / "bin/python")
    succeed(*uv, "pip", "install", *place, *wanted, cwd=into.parent, env=there)
    return into / "bin"


def run(*command: object, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What `command` printed, and its exit code."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(*command: object, cwd: Path, env: dict[str, str]) -> str:
    """What `command` printed on stdout; fails the test with everything it said when it failed."""
    done = run(*command, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def bake(
    template: Path | str, into: Path, answers: dict[str, str], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Bake as a user does, with the answers on the command line."""
    into.mkdir(parents=True, exist_ok=True)
    words = [f"{key}={value}" for key, value in answers.items()]
    command = [sys.executable, "-m", "cookiecutter", template, "--no-input", "-o", into, *words]
    return run(*command, cwd=into, env=env)


def units(project: Path, env: dict[str, str]) -> str:
    """What `make units` does, where the project is not installed."""
    source = env | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"}
    return succeed(sys.executable, "-m", "acme_tasks", "units", cwd=project, env=source)


def replay(template: Path, into: Path, answers: dict[str, object]) -> None:
    """Bake in this process, from a replay file: any text arrives, and none is rendered as Jinja.

    The hooks are processes of their own, as ever.

    Raises:
        FailedHookException: when a hook refuses the answers.
    """
    own = into.parent / "own"  # Cookiecutter's, instead of the user's
    own.mkdir(parents=True, exist_ok=True)
    (own / "config").write_text(json.dumps({"replay_dir": str(own), "cookiecutters_dir": str(own)}))
    given = own / "answers.json"
    given.write_text(json.dumps({"cookiecutter": answers | {"_new_lines": "\n"}}))
    cookiecutter(
        str(template),
        replay=str(given),
        output_dir=str(into),
        config_file=str(own / "config"),
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`, by its path within."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def git(*words: str, cwd: Path, env: dict[str, str]) -> str:
    """What git printed; as nobody in particular, in a checkout that may be another user's."""
    settings = ["safe.directory=*", "user.name=Test", "user.email=test@localhost"]
    options = [word for setting in settings for word in ("-c", setting)]
    return succeed("git", *options, *words, cwd=cwd, env=env)


def commit(folder: Path, message: str, env: dict[str, str]) -> None:
    """Commit all that lies in `folder`, which becomes a repository if it is none."""
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", message]):
        git(*command, cwd=folder, env=env)


def clone(into: Path, env: dict[str, str]) -> None:
    """A repository with one commit: the template as git would hand it on, with what is changed."""
    listed = git("ls-files", "-coz", "--exclude-standard", cwd=ROOT, env=env)
    for path in filter(None, listed.split("\0")):
        if (ROOT / path).is_file():
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, into / path)
    commit(into, "all of it", env)
