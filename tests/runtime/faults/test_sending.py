"""`send_many` with a broker that dies, and without an end to its memory."""

import json
import resource
import signal
import threading
import time
from typing import Any

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import Fleet, Server

from acme_tasks.lanes.errors import SendError

pytestmark = pytest.mark.ours_only("send_many is ours")


def _tick(fleet: Fleet) -> Any:
    app = fleet.app()

    @app.task(name="tick", shared=False)
    def tick(name: str) -> None:
        raise NotImplementedError

    return tick


def test_a_broker_that_dies_half_way_leaves_what_was_surely_sent(
    make_fleet: MakeFleet, server: Server
) -> None:
    fleet = make_fleet()

    def half_way() -> Any:
        for number in range(10_000):
            if number == 4500:
                server.stop()
            yield (f"t{number}",)

    with pytest.raises(SendError, match="tasks certainly were sent") as caught:
        _tick(fleet).send_many(half_way())
    server.start()
    arrived = fleet.redis.llen(fleet.lane.queue)
    print(f"{caught.value.sent} certainly, {arrived} arrived")
    assert 0 < caught.value.sent <= arrived <= caught.value.sent + 1000


def test_a_broker_that_is_killed_meanwhile_does_too(make_fleet: MakeFleet, server: Server) -> None:
    """At no moment in particular."""
    fleet = make_fleet()
    killer = threading.Thread(
        target=lambda: (
            wait_until(lambda: fleet.redis.llen(fleet.lane.queue) > 3000, "some to arrive"),
            server.process and server.process.kill(),
        )
    )
    killer.start()
    with pytest.raises(SendError) as caught:
        _tick(fleet).send_many((f"t{number}",) for number in range(1_000_000))
    killer.join()
    server.stop()
    server.start()
    arrived = fleet.redis.llen(fleet.lane.queue)
    print(f"{caught.value.sent} certainly, {arrived} arrived")
    assert 0 < caught.value.sent <= arrived


KEYED = {"key": "customer"}


def arrived_of(fleet: Fleet) -> list[str]:
    """The arguments of the messages with the key, the first sent first."""
    name = f"lanes:{fleet.lane.name}:keyed:messages:customer"
    found = reversed(fleet.redis.lrange(name, 0, -1))
    return [json.loads(each)["headers"]["argsrepr"] for each in found]


def names(count: int) -> list[str]:
    return [f"('t{number}',)" for number in range(count)]


def test_of_many_with_a_key_those_that_certainly_were_sent_are_there_when_connections_are_cut(
    make_fleet: MakeFleet, rounds: int
) -> None:
    """Each time at another moment of a send; a batch is there as a whole or not at all."""
    fleet = make_fleet()
    tick = _tick(fleet)
    failures = 0
    for attempt in range(20 if rounds == 1 else 200):
        fleet.redis.flushdb()
        over = threading.Event()

        def cut(after: float = 0.002 * attempt, over: threading.Event = over) -> None:
            over.wait(after)
            while not over.is_set():
                fleet.redis.client_kill_filter(_type="normal", skipme=True)

        cutter = threading.Thread(target=cut)
        cutter.start()
        try:
            sent = tick.send_many(((f"t{number}",) for number in range(5000)), **KEYED)
        except SendError as error:
            sent, failures = error.sent, failures + 1
        finally:
            over.set()
            cutter.join()
        arrived = arrived_of(fleet)
        assert arrived == names(len(arrived))
        assert sent <= len(arrived) <= min(5000, sent + 1000)
        assert len(arrived) % 1000 == 0
        assert fleet.redis.llen(fleet.lane.queue) == len(arrived)  # tokens
    print(f"{failures} failed")
    assert failures


def test_of_many_with_a_key_those_that_certainly_were_sent_outlive_the_broker(
    make_fleet: MakeFleet, server: Server
) -> None:
    fleet = make_fleet()

    def half_way() -> Any:
        for number in range(10_000):
            if number == 4500:
                server.stop()
            yield (f"t{number}",)

    with pytest.raises(SendError, match="4000 tasks certainly were sent, and up to 1000") as caught:
        _tick(fleet).send_many(half_way(), **KEYED)
    server.start()
    assert caught.value.sent == 4000
    assert arrived_of(fleet) == names(4000)


def test_many_with_a_key_do_not_wait_for_a_broker_that_stands_still(
    make_fleet: MakeFleet, server: Server
) -> None:
    fleet = make_fleet()
    assert server.process
    process = server.process

    def half_way() -> Any:
        for number in range(3000):
            if number == 1500:
                process.send_signal(signal.SIGSTOP)
            yield (f"t{number}",)

    began = time.monotonic()
    try:
        with pytest.raises(SendError) as caught:
            _tick(fleet).send_many(half_way(), **KEYED)
        took = time.monotonic() - began
    finally:
        process.send_signal(signal.SIGCONT)
    assert took < 10  # seconds: timeouts.SEND
    assert caught.value.sent == 1000
    wait_until(lambda: len(arrived_of(fleet)) in {1000, 2000}, "the broker to go on")


def test_an_iterator_is_read_as_it_is_sent(make_fleet: MakeFleet, rounds: int) -> None:
    fleet = make_fleet()
    count = 20_000 if rounds == 1 else 200_000
    tick = _tick(fleet)
    tick.send_many(("warm",) for _ in range(3000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert tick.send_many((f"t{number}",) for number in range(count)) == count
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{count} tasks: {grown} KiB more")
    assert fleet.redis.llen(fleet.lane.queue) == count + 3000
    assert grown < 20_000
