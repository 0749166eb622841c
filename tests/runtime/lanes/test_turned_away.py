"""A broker that turns everybody away: each process says so in one line, and ends if it must."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Process, Project
from redis import Redis
from test_refusals import old, running  # noqa: F401 - a fixture

from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "work"
[lanes.work]
"""
SECRET = "Zq7XhWb9"  # noqa: S105 - of servers that live for a second
WANTED = "the server wants a password; write it as in redis://:password@host:6379/0"
OLD = (
    "the server does not know HELLO, and so is older than Redis 6; Redis 6.2 or newer is needed, "
    "or Valkey"
)
#: redis-py begins with HELLO from 8 on; before, INFO is what tells.
OLD_BY_INFO = "this is Redis 5.0.14; Redis 6.2 or newer is needed, or Valkey"
SEND = f"""
import sys
from {PACKAGE}.tasks import echo
try:
    echo.delay("x")
except Exception as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis with a password, and with a user who may do little."""
    folder = tmp_path_factory.mktemp("locked") / "redis"
    with running(folder, "--requirepass", SECRET) as port:
        with Redis(port=port, password=SECRET) as redis:
            rights = ("~*", "+ping", "+info")
            redis.execute_command("ACL", "SETUSER", "weak", "on", f">{SECRET}", *rights)
        yield port


def told(project: Project, *arguments: str) -> tuple[int, list[str]]:
    """The exit code of a Python of the project, and the lines that it wrote."""
    done = project.python(*arguments)
    return done.returncode, (done.stdout + done.stderr).splitlines()


COMMANDS = {
    # What stands before and behind the line.
    "status": (("-m", PACKAGE, "status"), "", ""),
    "dead list": (("-m", PACKAGE, "dead", "list"), "", ""),
    "worker": (("-m", PACKAGE, "worker", "work"), "work | ", ""),
    "workers": (("-m", PACKAGE, "workers"), "", "{instead}"),
    "sender": (("-c", SEND), "", ""),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("server", ["old", "a password", "a wrong password"])
def test_each_process_says_in_one_line_why_it_is_turned_away_and_ends(
    server: str,
    command: str,
    old: int,  # noqa: F811
    locked: int,
    tmp_path: Path,
) -> None:
    """Seen before: `workers` started every lane, and each said it every few seconds, for ever."""
    port = old if server == "old" else locked
    wrong = SECRET[::-1]
    login = f":{wrong}@" if server == "a wrong password" else ""
    url = f"redis://{login}127.0.0.1:{port}/0"
    own = f"BROKER_URL=redis://localhost:{port % 65535 + 1}/0"
    instead = "" if login else f"; if it is not yours, have one started here: {own}"
    said = {
        "old": (OLD, OLD_BY_INFO),
        "a password": (WANTED,),
        "a wrong password": ("the server refuses the password; correct it",),
    }[server]
    arguments, before, after = COMMANDS[command]
    line = f"{before}BROKER_URL ({url.replace(wrong, '***')}): {{}}{after.format(instead=instead)}"
    code, lines = told(Project(tmp_path, LANES, url), *arguments)
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0] in [line.format(each) for each in said]


@pytest.mark.parametrize("command", ["status", "dead list", "sender"])
def test_a_user_without_rights_is_told_the_first_that_lacks(
    command: str, locked: int, tmp_path: Path
) -> None:
    url = f"redis://weak:{SECRET}@127.0.0.1:{locked}/0"
    first = {"status": "time", "dead list": "time", "sender": "lpush"}[command]
    line = (
        f"BROKER_URL ({url.replace(SECRET, '***')}): the user weak may not run {first}; "
        "docs/access.md lists the rights that are needed"
    )
    assert told(Project(tmp_path, LANES, url), *COMMANDS[command][0]) == (1, [line])


def test_a_worker_without_rights_says_which_and_where_they_are_listed(
    locked: int, tmp_path: Path
) -> None:
    """It waits: rights are given while it runs. Seen before: the server's words, and no way out."""
    url = f"redis://weak:{SECRET}@127.0.0.1:{locked}/0"
    project = Project(tmp_path, LANES, url)
    command = [sys.executable, "-m", PACKAGE, "worker", "work"]
    worker = Process("worker", command, tmp_path, project.environment)
    try:
        worker.await_log(
            f"the broker refuses: BROKER_URL ({url.replace(SECRET, '***')}): the user weak may not "
            "run multi; docs/access.md lists the rights that are needed"
        )
    finally:
        worker.end()
    assert SECRET not in worker.log
