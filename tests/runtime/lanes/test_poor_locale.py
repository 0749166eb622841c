"""In a locale that knows ASCII alone, tables are ASCII, with escapes for all other letters.

What click writes in lines of its own is UTF-8: it takes such a locale for one that was set wrong.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest
from harness import PATIENCE, Process, Project, free_port

from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"
[lanes.slow]
[lanes.quick]
[routes]
"résumé.*" = "slow"
"""
POOR = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
NAME = "r\xe9sum\xe9.\u2603"
SHOWN = r"r\xe9sum\xe9.\u2603"
COMMANDS = ("lanes", "status", "dead list", "dead list --group", "doctor", "units --out d\xe9ploy")


@pytest.fixture
def project(server: Any, redis: Any, tmp_path: Path) -> Project:
    report = {"reason": "failed", "at": 1.7e9, "task": NAME, "deliveries": 1, "error": "\U0001f600"}
    redis.config_set("appendonly", "yes")
    redis.zadd("lanes:quick:dead", {"1": 1.7e9})
    redis.hset("lanes:quick:dead:messages", "1", b'{"body": "\xc3\xa9\xff"}')
    redis.hset("lanes:quick:dead:reports", "1", json.dumps(report, ensure_ascii=False))
    redis.lpush("caf\xe9", json.dumps({"body": "", "headers": {}, "properties": {}}))
    project = Project(tmp_path, LANES, server.url)
    project.environment |= POOR
    return project


@pytest.mark.parametrize("command", [*COMMANDS, "dead show quick/1"])
def test_a_command_in_a_pipe(project: Project, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", PACKAGE, *command.split()],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1 if command == "doctor" else 0, b"")
    if command.startswith("dead list"):
        assert SHOWN in done.stdout.decode("ascii")
    if command == "lanes":
        assert "r\xe9sum\xe9.* goes to slow" in done.stdout.decode("utf-8")
    if command == "doctor":
        what = r"caf\xe9: 1 message, and no lane takes from this queue"
        assert what in done.stdout.decode("ascii")


@pytest.mark.parametrize("width", [50, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_terminal(project: Project, command: str, width: int) -> None:
    """Seen before, where a column did not fit: UnicodeEncodeError, for the dots at its end."""
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", PACKAGE, *command.split()],
        cwd=str(project.folder),
        env=project.environment,
        dimensions=(50, width),
        timeout=PATIENCE,
    )
    shown = terminal.read().decode("utf-8" if command == "lanes" else "ascii")
    terminal.close()
    assert terminal.exitstatus == (1 if command == "doctor" else 0), shown
    assert "Traceback" not in shown
    if command == "dead list" and width == 200:
        assert SHOWN in shown


def test_prove_turns_what_ascii_has_on_a_terminal(project: Project) -> None:
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", PACKAGE, "prove", "--slow", "100"],
        cwd=str(project.folder),
        env=project.environment,
        timeout=PATIENCE,
    )
    terminal.expect("one queue, 100 slow tasks")
    terminal.sendintr()
    shown = terminal.before + terminal.read()
    terminal.close()
    assert "\\u28" not in shown.decode("ascii")
    assert "Traceback" not in shown.decode("ascii")


def test_workers_say_that_the_folder_cannot_be_named(tmp_path: Path) -> None:
    """Seen before: a traceback with UnicodeEncodeError."""
    folder = tmp_path / "caf\xe9"
    folder.mkdir()
    project = Project(folder, LANES, f"redis://127.0.0.1:{free_port()}/0")
    command = [sys.executable, "-m", PACKAGE, "workers"]
    workers = Process("workers", command, folder, project.environment | POOR)
    assert workers.ended() == 2
    assert workers.log == (
        "the path of this folder, or of Python, has characters that the locale's encoding "
        "(ANSI_X3.4-1968) lacks; export LC_ALL=C.UTF-8\n"
    )


def test_workers_of_a_folder_of_any_name_run_in_a_locale_that_has_its_letters(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "caf\xe9 'one' 50%"
    folder.mkdir()
    project = Project(folder, LANES, f"redis://127.0.0.1:{free_port()}/0")
    command = [sys.executable, "-m", PACKAGE, "workers"]
    usual = project.environment | {"LC_ALL": "C.UTF-8"}
    workers = Process("workers", command, folder, usual)
    try:
        for lane in ("slow", "quick"):
            workers.await_log(f"{lane}-1@{os.uname().nodename} ready.")
    finally:
        assert workers.end() == 0
