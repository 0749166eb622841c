"""Changes of the clocks, as Redis's own clock, which is the one that counts, goes through them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import wait_until
from support import Server

from acme_tasks.lanes.bind import bind
from acme_tasks.lanes.keeper import Keeper
from acme_tasks.lanes.timetable import Entry

#: Of Debian's package `faketime`; preloaded, since its command would not end with the server.
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)

pytestmark = [
    pytest.mark.ours_only("beat goes by its own host's clock"),
    pytest.mark.skipif(not FAKETIME, reason="not installed: faketime"),
]

#: By zone: a time that spring leaves out, when it is to run then (UTC); a time that autumn has
#: twice, the first of these, which is to run, and the second, which is not.
CHANGES = {
    "Europe/Berlin": ("30 2", "2025-03-30T01:00", "30 2", "2025-10-26T00:30", "2025-10-26T01:30"),
    "America/New_York": (
        *("30 2", "2025-03-09T07:00"),
        *("30 1", "2025-11-02T05:30", "2025-11-02T06:30"),
    ),
    "Australia/Lord_Howe": (
        *("15 2", "2025-10-04T15:30"),
        *("45 1", "2025-04-05T14:45", "2025-04-05T15:15"),
    ),
}
BEFORE = 3  # seconds of the server's clock from its start to the instant


def echo() -> None:
    """Nobody runs it here."""


@pytest.fixture
def keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Any]:
    @contextmanager
    def at(utc: str, cron: str, zone: str) -> Iterator[tuple[Keeper, Any]]:
        """A keeper of this entry, whose server's clock is some seconds before this."""
        starts = datetime.fromisoformat(utc) - timedelta(seconds=BEFORE)
        server = Server(tmp_path / utc)
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(FAKETIME))
            patch.setenv("FAKETIME", f"@{starts:%Y-%m-%d %H:%M:%S}")
            patch.setenv("TZ", "UTC")  # by which that is read
            server.start()
        try:
            lanes = tmp_path / "lanes.toml"
            lanes.write_text('default_lane = "quick"\n[lanes.quick]\n', encoding="utf-8")
            monkeypatch.setenv("LANES_FILE", str(lanes))
            monkeypatch.setenv("BROKER_URL", server.url)
            app = bind(Celery("clocks", set_as_current=False))
            app.task(echo, name="echo")
            app.finalize()
            nightly = Entry(name="nightly", task="echo", cron=f"{cron} * * *", timezone=zone)
            yield Keeper(app, [nightly], owner="node#1"), server.redis
        finally:
            server.close()

    return at


def sent(redis: Any) -> list[str]:
    return [json.loads(each)["headers"]["id"] for each in redis.lrange("quick_tasks", 0, -1)]


def look_past(keeper: Keeper, redis: Any, utc: str) -> None:
    """Until the server's clock has gone past this by a second."""
    until = datetime.fromisoformat(f"{utc}+00:00").timestamp() + 1

    def past() -> bool:
        keeper.look()
        return float(redis.time()[0]) > until

    wait_until(past, f"{utc}, by the server's clock", 30)


@pytest.mark.parametrize("zone", CHANGES)
def test_in_spring_a_time_that_is_left_out_runs_after_the_gap(
    keeping: Callable[[str, str, str], Any], zone: str
) -> None:
    cron, comes, *_ = CHANGES[zone]
    with keeping(comes, cron, zone) as (keeper, redis):
        look_past(keeper, redis, comes)
        assert sent(redis) == [f"nightly@{comes}:00Z"]


@pytest.mark.parametrize("zone", CHANGES)
def test_in_autumn_a_time_that_comes_twice_runs_the_first_time(
    keeping: Callable[[str, str, str], Any], zone: str
) -> None:
    *_, cron, first, second = CHANGES[zone]
    with keeping(first, cron, zone) as (keeper, redis):
        look_past(keeper, redis, first)
        assert sent(redis) == [f"nightly@{first}:00Z"]
    with keeping(second, cron, zone) as (keeper, redis):
        look_past(keeper, redis, second)
        assert sent(redis) == []
