"""A broker that says nothing: it is frozen, or what lies between has forgotten the connections."""

import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import Process, eventually, free_port

from .cast import HERE, NOISE, Cast, Here, Project, Server, ended, ready
from .ledger import Account, no_more_than
from .scenes import about, needs_redis
from .watchdog import Watchdog

pytestmark = [pytest.mark.slow, needs_redis]

FROZEN = 30.0  # seconds; more than three times WATCHDOG
WATCHDOG = 8.0  # seconds, as WatchdogSec
ERROR = 10.0  # seconds in which a send must get its error
AFTER = 15.0  # seconds in which workers must go on
STOP = 20.0  # seconds in which a worker must end; a unit's TimeoutStopSec is 60
WITHIN = 40.0  # seconds in which all that was sent has run; never a claim


@dataclass(frozen=True, slots=True)
class Played:
    """What became of a scene; times are seconds of the monotonic clock."""

    began: float  # of the silence
    ended: float
    leased: set[str]  # what was held as it began
    account: Account
    unsettled: str
    silence: float = 0.0  # of the watchdog's pings, at most
    stop: float | None = None  # seconds from SIGTERM to the end; None: it stayed


def _work(cast: Cast, url: str) -> tuple[list[Process], Process]:
    """Two workers of the quick lane, and a sender of 20 tasks a second, at work."""
    workers = [cast.worker(Here(f"w{number}"), url, instance=number) for number in (1, 2)]
    sender = cast.sender(Here("sender"), url, 0.1, rate=20)
    ready(*workers)
    eventually(lambda: len(cast.account.runs) > 60, "tasks that run")
    return workers, sender


def _await_work(cast: Cast, worker: str, since: float) -> None:
    """Wait until it works again, or should."""
    until = since + AFTER + NOISE
    while time.monotonic() < until and cast.account.first_start(worker, since) > AFTER + NOISE:
        time.sleep(0.2)


def frozen(folder: Path, project: Project) -> Played:
    """SIGSTOP, and SIGCONT after a while; one of the workers is told to stop in between."""
    with Cast(folder, project) as cast, Watchdog(folder / "notify") as watchdog:
        server = cast.server(Here("broker"))
        microseconds = str(int(WATCHDOG * 1e6))
        systemd = {"NOTIFY_SOCKET": str(watchdog.path), "WATCHDOG_USEC": microseconds}
        watched = cast.worker(Here("watched"), server.url, instance=3, **systemd)
        (_, stopping), sender = _work(cast, server.url)
        ready(watched)
        eventually(lambda: watchdog.pings, "a ping")
        leased = server.leased("quick")
        server.freeze()
        began = time.monotonic()
        try:
            _sleep_until(began + 5)  # long enough for all to be stuck who can be
            stopping.process.terminate()
            stop = ended(stopping, began + FROZEN - time.monotonic())
            _sleep_until(began + FROZEN)
        finally:
            server.thaw()
        thawed = time.monotonic()
        silence = watchdog.longest_silence(began - 1, thawed)
        for worker in ("w1", "watched"):
            _await_work(cast, worker, thawed)
        unsettled = cast.settle([sender], server, "quick", within=WITHIN)
        print(f"  no ping for {silence:.1f} s; SIGTERM to the end: {stop} s")
        return Played(began, thawed, leased, cast.account, unsettled, silence, stop)


def silenced(folder: Path, project: Project) -> Played:
    """The connections that are open stay so and pass nothing on; new ones work."""
    with Cast(folder, project) as cast:
        server = cast.server(Here("broker"))
        port = free_port()
        script = (sys.executable, HERE / "silencing.py", port, server.port)
        proxy = cast.start(Here("proxy"), "proxy", *script)
        proxy.await_log("listening")
        _, sender = _work(cast, f"redis://127.0.0.1:{port}/0")
        leased = _silence(proxy, server)
        began = time.monotonic()
        for worker in ("w1", "w2"):
            _await_work(cast, worker, began)
        unsettled = cast.settle([sender], server, "quick", within=WITHIN)
        return Played(began, began, leased, cast.account, unsettled)


def _silence(proxy: Process, server: Server) -> set[str]:
    proxy.process.send_signal(signal.SIGUSR1)
    proxy.await_log("silenced")
    return server.leased("quick")


def _sleep_until(when: float) -> None:
    time.sleep(max(0.0, when - time.monotonic()))  # what is tried: there is nothing to wait for


SCENES = {"frozen": frozen, "silenced": silenced}


@about("frozen", "silenced")
def test_a_send_to_a_silent_broker_ends_with_an_error(scene: Played) -> None:
    """Seen before: one send took 30 s, until SIGCONT; the other had not ended after 80 s."""
    assert scene.account.longest_send <= ERROR + NOISE, str(scene.account)


@about("frozen")
def test_sigterm_ends_a_worker_while_the_broker_is_silent(scene: Played) -> None:
    """Seen before: it did nothing for the 25 s until SIGCONT."""
    assert scene.stop is not None, f"stayed until the broker answered, {FROZEN - 5:g} s"
    assert scene.stop <= STOP, f"ended after {scene.stop:.1f} s"


@about("frozen")
def test_the_watchdog_ends_no_worker_whose_broker_is_silent(scene: Played) -> None:
    """Seen before: no ping for 29.5 s of 30."""
    assert scene.silence <= WATCHDOG, f"no ping for {scene.silence:.1f} s"


@about("frozen", "silenced")
def test_all_go_on_and_nothing_is_lost(scene: Played) -> None:
    """Seen before: silenced, the lane stood still: 64 had not run after 80 s."""
    for worker in ("w1", "watched") if scene.silence else ("w1", "w2"):
        after = scene.account.first_start(worker, scene.ended)
        assert after <= AFTER + NOISE, f"{worker} began after {after:.1f} s"
    assert not scene.account.lost, f"{scene.account}: {scene.account.lost[:5]}"
    assert not scene.unsettled


@about("frozen", "silenced")
def test_nothing_is_doubled_but_what_was_in_flight(scene: Played) -> None:
    """Seen before: the same; what stands still doubles nothing."""
    allowed = scene.leased | scene.account.in_flight(scene.began, scene.began)
    no_more_than(scene.account.doubled, allowed, str(scene.account))
