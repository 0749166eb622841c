"""Brokers and workers for tests: real processes, each waited for by a condition, each ended."""

import os
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from celery import Celery

from acme_tasks.lanes import settings, worker
from acme_tasks.lanes.bind import bind
from acme_tasks.lanes.broker import free_port
from acme_tasks.lanes.redis.connect import Server
from acme_tasks.lanes.testing import PATIENCE, Process, processes, running_broker, wait_until

__all__ = ["PATIENCE", "Process", "Project", "free_port", "processes", "running_broker"]
__all__ += ["SCHEDULER", "own_scheduler", "server_of", "something_else", "wait_until"]

#: What has `celery beat` use `own_scheduler`'s.
SCHEDULER = ("-S", f"{worker.PACKAGE}.celery:Own")


def own_scheduler(entries: object) -> str:
    """For the end of a project's celery.py: beat's entries, as one with a database has its own."""
    return f"""

from celery.beat import Scheduler


class Own(Scheduler):
    def setup_schedule(self):
        self.update_from_dict({entries!r})
"""


def server_of(url: str) -> Server:
    """The server at this URL, as `bind` has it from the environment."""
    return Server(settings.load({"BROKER_URL": url}).broker)


@contextmanager
def something_else() -> Iterator[int]:
    """The port of a server that answers, and is neither Redis nor Valkey."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(16)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


class Project:
    """The runtime in a project of the tests' own: its tasks, its lanes, its broker.

    The owner's tasks.py and lanes.toml may say anything; here the same package name stands for
    the files in tests/project, beside the very same runtime.
    """

    def __init__(self, folder: Path, lanes: str, broker_url: str) -> None:
        self.folder = folder
        self.started: dict[str, Process] = {}  # workers by lane
        self.lanes_file = folder / "lanes.toml"
        self.lanes_file.write_text(lanes, encoding="utf-8")
        package = folder / worker.PACKAGE
        shutil.copytree(Path(__file__).parent / "project", package)
        (package / "lanes").symlink_to(Path(worker.__file__).parent)
        self.variables = {
            "BROKER_URL": broker_url,
            "LANES_FILE": str(self.lanes_file),
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.environment = os.environ | self.variables

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m <package> arguments`, to its end."""
        return self.python("-m", worker.PACKAGE, *arguments)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python arguments`, to its end."""
        command = [sys.executable, *arguments]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                output, errors = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.terminate()  # not SIGKILL, which would leave what it started
                pytest.fail(f"{' '.join(arguments)} did not end: {process.communicate()}")
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def app(self) -> Celery:
        """A sender's end: a fresh app of this process, bound to this project's lanes."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables.items():
                patch.setenv(name, value)
            return bind(Celery("sender", set_as_current=False))

    @contextmanager
    def workers(self, *lanes: str) -> Iterator[dict[str, Process]]:
        """`python -m <package> worker LANE` for each, ready; they have ended after the block."""
        with processes(
            {lane: [sys.executable, "-m", worker.PACKAGE, "worker", lane] for lane in lanes},
            self.folder,
            self.environment,
        ) as started:
            self.started |= started
            yield started
