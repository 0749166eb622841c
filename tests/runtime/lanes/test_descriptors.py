"""A limit on open files: raised where that is allowed, and else told in one line."""

import sys
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, Process, Project

from acme_tasks.lanes import config, descriptors
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"
[lanes.slow]
[lanes.quick]
"""
WAY_OUT = (
    "raise that limit where it was set: ulimit -n 1024 in a script, LimitNOFILE=1024 in a systemd "
    "unit, or /etc/security/limits.conf"
)
COMMANDS = {
    "worker": ("worker quick", 50, "a worker of quick needs 56"),
    "workers": ("workers", 256, "workers needs 1,024"),
    "prove": ("prove --slow 100", 256, "prove needs 1,024"),
}


def limited(project: Project, limit: str, arguments: str) -> Process:
    """The project's command under `ulimit -n`."""
    script = f"ulimit {limit}; exec {sys.executable} -m {PACKAGE} {arguments}"
    return Process("limited", ["/bin/sh", "-c", script], project.folder, project.environment)


@pytest.mark.parametrize(("arguments", "limit", "needs"), COMMANDS.values(), ids=COMMANDS)
def test_a_limit_that_is_too_low_is_told_in_one_line(
    arguments: str, limit: int, needs: str, broker: Any, tmp_path: Path
) -> None:
    """Seen before, of a worker: "Too many open files. Aborting...", a traceback, or a broker "that
    ends the connection"; of workers: two lines of supervisord's, with "1024" where 256 was meant;
    of prove below 33: the log of a Valkey that did not start.
    """
    process = limited(Project(tmp_path, LANES, broker.url), f"-n {limit}", arguments)
    assert process.ended() == 2
    assert process.log == f"a process may open {limit} files here, and {needs}; {WAY_OUT}\n"


def test_a_worker_raises_the_limit_as_far_as_it_may(broker: Any, tmp_path: Path) -> None:
    """Seen before: "Too many open files. Aborting...", as on a macOS with many slots."""
    process = limited(Project(tmp_path, LANES, broker.url), "-Sn 40", "worker quick")
    process.await_log(" ready.")
    assert process.end() == 0


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_opens_fewer_files_than_it_says_that_it_needs(
    pool: str, broker: Any, tmp_path: Path
) -> None:
    more = (
        "concurrency = 12" if pool == "prefork" else "time_limit = false\nsoft_time_limit = false"
    )
    if pool == "threads":
        more += "\nconcurrency = 12"
    project = Project(tmp_path, f'{LANES}pool = "{pool}"\n{more}\n', broker.url)
    needed = descriptors.needed(config.load(project.lanes_file).get("quick"))
    process = limited(project, f"-n {needed}", "worker quick")
    process.await_log(" ready.")
    app = project.app()
    results = [app.send_task("echo", (str(number),), lane="quick") for number in range(40)]
    assert [result.get(timeout=PATIENCE) for result in results] == list(map(str, range(40)))
    app.close()
    assert process.end() == 0
    assert "open files" not in process.log
    assert "Traceback" not in process.log
