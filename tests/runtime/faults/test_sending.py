"""`send_many` with a broker that dies, and without an end to its memory."""

import resource
import threading
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
