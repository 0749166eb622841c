"""What time it is at the server: learned once, kept by a clock that nobody sets."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from harness import free_port, server_of
from redis.exceptions import ConnectionError as BrokenConnectionError

from acme_tasks.lanes.redis import clock as module
from acme_tasks.lanes.redis.clock import Clock
from acme_tasks.lanes.timeouts import CLOCK, CONNECT

HOUR = 3600.0  # seconds


class Host:
    """This host's two clocks, which a test sets; and a server's, so far ahead of it."""

    def __init__(self) -> None:
        self.wall, self.monotonic, self.ahead = 1_700_000_000.0, 500.0, 0.0
        self.asked = 0
        self.round_trip = 0.0  # seconds
        self.away = False

    def ask(self) -> float:
        """As a server that is asked: half of the round trip is over when it looks at its clock."""
        self.asked += 1
        self.passes(self.round_trip / 2)
        if self.away:
            raise BrokenConnectionError("refused")
        answer = self.wall + self.ahead
        self.passes(self.round_trip / 2)
        return answer

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Host:
    caplog.set_level(logging.WARNING)  # of which an earlier test's worker may have left nothing
    host = Host()
    clocks = {"time": lambda: host.wall, "monotonic": lambda: host.monotonic}
    monkeypatch.setattr(module, "time", SimpleNamespace(**clocks))
    return host


AHEAD = {"ahead": (HOUR, "3600.0 s behind"), "behind": (-HOUR, "3600.0 s ahead of")}


@pytest.mark.parametrize(("ahead", "said"), AHEAD.values(), ids=AHEAD)
def test_a_server_whose_clock_is_another_is_believed_with_one_line_of_log(
    host: Host, caplog: pytest.LogCaptureFixture, ahead: float, said: str
) -> None:
    host.ahead = ahead
    clock = Clock(host.ask)
    for _ in range(5):
        assert clock.now() == host.wall + ahead
        host.passes(100)
    told = f"this host's clock is {said} the broker's; the broker's is used"
    assert caplog.record_tuples == [(module.__name__, logging.WARNING, told)]


def test_less_than_a_second_is_no_line(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.ahead = 0.9
    clock = Clock(host.ask)
    assert clock.now() == host.wall + 0.9
    assert caplog.messages == []


def test_a_difference_that_grows_is_a_line_for_each_second_and_its_end_is_none(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(host.ask)
    for tenths in range(32):
        clock.learn(host.wall + tenths / 10)
    assert [message.split()[4] for message in caplog.messages] == ["1.1", "2.2"]
    clock.learn(host.wall)
    assert len(caplog.messages) == 2


def test_what_was_learned_is_not_asked_for_again_for_a_while(host: Host) -> None:
    clock = Clock(host.ask)
    for _ in range(60):
        clock.now()
        host.passes(0.99)
    assert host.asked == 1
    host.passes(1)
    clock.now()
    assert host.asked == 2


def test_what_a_reply_said_in_passing_saves_the_question(host: Host) -> None:
    """A worker hears the time with each look at its leases."""
    clock = Clock(host.ask)
    for _ in range(10):
        clock.learn(host.wall + 5)
        host.passes(50)
        assert clock.now() == host.wall + 5
    assert host.asked == 0


def test_half_of_the_round_trip_is_added(host: Host) -> None:
    host.round_trip, host.ahead = 0.8, HOUR
    clock = Clock(host.ask)
    assert clock.now() == pytest.approx(host.wall + HOUR)


def test_a_host_clock_that_is_set_changes_nothing_of_the_servers_time(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept by the monotonic clock, of which nobody knows how to set it."""
    clock = Clock(host.ask)
    before = clock.now()
    host.wall -= HOUR
    host.passes(10)
    assert clock.now() == before + 10
    assert caplog.messages == []
    clock.learn(before + 10)
    assert clock.now() == before + 10
    assert len(caplog.messages) == 1


def test_a_server_that_cannot_be_reached_is_asked_again_only_after_a_while(host: Host) -> None:
    """Until then this host's clock must do: a send does not fail for want of the time."""
    host.away = True
    clock = Clock(host.ask)
    for _ in range(9):
        assert clock.now() == host.wall
        host.passes(1)
    assert host.asked == 1
    host.away, host.ahead = False, HOUR
    host.passes(2)
    assert clock.now() == host.wall + HOUR
    assert host.asked == 2


def test_what_was_learned_holds_while_the_server_is_away(host: Host) -> None:
    host.ahead = HOUR
    clock = Clock(host.ask)
    clock.now()
    host.away = True
    for _ in range(20):
        host.passes(60)
        assert clock.now() == host.wall + HOUR


def test_while_one_thread_asks_the_others_go_on(host: Host) -> None:
    asking, go = threading.Event(), threading.Event()

    def slow() -> float:
        asking.set()
        assert go.wait(60)
        return host.ask()

    host.ahead = HOUR
    clock = Clock(slow)
    thread = threading.Thread(target=clock.now)
    thread.start()
    assert asking.wait(60)
    assert clock.now() == host.wall  # nothing is known yet
    go.set()
    thread.join(60)
    assert clock.now() == host.wall + HOUR


def test_a_real_server_tells_its_time(server: Any) -> None:
    here = server_of(server.url)
    seconds, _ = server.redis.time()
    assert here.clock.now() == pytest.approx(seconds, abs=60)
    assert here.clock._ahead is not None


def closed(_server: Any) -> str:
    return f"redis://127.0.0.1:{free_port()}/0"


def silent(server: Any) -> str:
    return f"redis://127.0.0.1:{server.getsockname()[1]}/0"


@pytest.mark.parametrize("where", [closed, silent])
def test_a_sender_does_not_wait_long_for_the_time(where: Callable[[Any], str], nobody: Any) -> None:
    here = server_of(where(nobody))
    began = time.monotonic()
    assert here.clock.now() == pytest.approx(time.time(), abs=60)
    assert time.monotonic() - began < CLOCK + CONNECT
    began = time.monotonic()
    here.clock.now()
    assert time.monotonic() - began < CLOCK / 2


@pytest.fixture
def nobody() -> Any:
    """A listener that accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener
