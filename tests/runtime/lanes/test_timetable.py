"""When an entry is due, by a clock that is handed in."""

import itertools
import random
import time
import zoneinfo
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from acme_tasks.lanes.timetable import LATE, MOST_MISSED, PROMPT, Entry

YEAR = 2025
HOUR = 3600.0


def entry(**more: object) -> Entry:
    return Entry(name="e", task="t", **more)  # type: ignore[arg-type]


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def between(given: Entry, start: float, end: float) -> list[float]:
    """The instants after `start` up to `end`."""
    found: list[float] = []
    while (following := given.following(found[-1] if found else start)) and following <= end:
        found.append(following)
    return found


def local(given: Entry, start: str, end: str) -> list[str]:
    """Likewise, as the zone's clocks show them, with their distance from UTC."""
    zone = given.timezone
    found = between(given, at(start, zone), at(end, zone))
    return [f"{datetime.fromtimestamp(each, ZoneInfo(zone)):%d %H:%M %z}" for each in found]


# Each so often


def test_every_is_at_its_multiples_whoever_asks_and_when() -> None:
    assert between(entry(every=600.0), 1_000.0, 2_500.0) == [1200.0, 1800.0, 2400.0]
    assert entry(every=1.5).following(3.0) == 4.5


# Cron


@pytest.mark.parametrize(
    ("cron", "following"),
    [
        ("0 3 * * *", "2025-01-02T03:00"),
        ("*/20 * * * *", "2025-01-02T00:20"),
        ("0 0 29 2 *", "2028-02-29T00:00"),
        ("0 0 13 * 5", "2025-01-03T00:00"),  # either day
        ("0 0 L * *", "2025-01-31T00:00"),
        ("0 9 * * MON#2", "2025-01-13T09:00"),
    ],
)
def test_cron_comes_when_debians_does(cron: str, following: str) -> None:
    assert entry(cron=cron).following(at("2025-01-02T00:00")) == at(following)


def test_celerys_crontab_wants_both_days() -> None:
    """The first Monday of a month."""
    found = between(
        entry(cron="0 0 1,2,3,4,5,6,7 * *", days=frozenset({1})),
        at("2025-01-01T00:00"),
        at("2025-04-01T00:00"),
    )
    assert found == [at("2025-01-06T00:00"), at("2025-02-03T00:00"), at("2025-03-03T00:00")]


def test_what_never_comes_is_none() -> None:
    assert entry(cron="0 0 1 1 *", days=frozenset()).following(0.0) is None


# Changes of the clocks, as Debian's cron(8) has them


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_a_time_that_is_left_out_runs_right_after_the_gap(zone: str) -> None:
    gap, later = {
        "Europe/Berlin": ("2025-03-30", "30 03:00 +0200"),
        "America/New_York": ("2025-03-09", "09 03:00 -0400"),
        "Australia/Lord_Howe": ("2025-10-05", "05 02:30 +1100"),  # of half an hour
    }[zone]
    daily = entry(cron="15 2 * * *", timezone=zone)
    assert local(daily, f"{gap}T00:00", f"{gap}T23:59") == [later]


@pytest.mark.parametrize(
    ("zone", "day", "first"),
    [
        ("Europe/Berlin", "2025-10-26", "26 02:15 +0200"),
        ("America/New_York", "2025-11-02", "02 01:15 -0400"),
        ("Australia/Lord_Howe", "2025-04-06", "06 01:45 +1100"),
    ],
)
def test_a_time_that_comes_twice_runs_the_first_time(zone: str, day: str, first: str) -> None:
    hour, minute = first[3:5], first[6:8]
    daily = entry(cron=f"{minute} {hour} * * *", timezone=zone)
    assert local(daily, f"{day}T00:00", f"{day}T23:59") == [first]


def test_a_star_for_the_hour_or_the_minute_goes_by_how_much_time_has_passed() -> None:
    """Neither floods nor skips at either change."""
    hourly = entry(cron="30 * * * *", timezone="Europe/Berlin")
    for day in ("2025-03-30", "2025-10-26"):
        found = between(
            hourly, at(f"{day}T00:00", "Europe/Berlin"), at(f"{day}T06:00", "Europe/Berlin")
        )
        assert {later - earlier for earlier, later in itertools.pairwise(found)} == {HOUR}


def expected(zone: ZoneInfo, hour: int, minute: int, first: datetime, days: int) -> list[float]:
    """By cron's documented rule: once a day, at the first of two; right after a gap."""
    found = []
    for number in range(days):
        day = (first + timedelta(days=number)).replace(hour=hour, minute=minute, tzinfo=zone)
        there = day.astimezone(UTC)
        if there.astimezone(zone).replace(tzinfo=None) != day.replace(tzinfo=None):
            # In a gap: the first minute after it.
            before = day.replace(tzinfo=zone, fold=0).utcoffset()
            after = day.replace(tzinfo=zone, fold=1).utcoffset()
            assert before is not None
            assert after is not None
            there = (day.replace(tzinfo=None) - before).replace(tzinfo=UTC)
            while (there - timedelta(minutes=1)).astimezone(zone).utcoffset() != min(before, after):
                there -= timedelta(minutes=1)
        found.append(there.timestamp())
    return found


def changes(zone: ZoneInfo) -> list[datetime]:
    """The days of a year, as the zone has them, on which its clocks change."""
    days = [datetime(YEAR, 1, 1) + timedelta(days=each) for each in range(365)]  # noqa: DTZ001 - local
    noon = [(day, day.replace(hour=12, tzinfo=zone).utcoffset()) for day in days]
    return [day for (_, before), (day, after) in itertools.pairwise(noon) if before != after]


@pytest.mark.timeout(120)
def test_a_year_of_every_zones_changes_is_as_cron_says() -> None:
    """At each hour, from the day before each change to the day after."""
    zones = sorted(zoneinfo.available_timezones() - {"localtime", "Factory"})
    seen: dict[tuple[object, ...], str] = {}
    for name in zones:  # many have the same changes: one of these is enough
        zone = ZoneInfo(name)
        days = changes(zone)
        quarters = (day + timedelta(minutes=15 * each) for day in days for each in range(96))
        offsets = [each.replace(tzinfo=zone).utcoffset() for each in quarters]
        seen.setdefault((tuple(days), tuple(offsets)), name)
    rng = random.Random(YEAR)  # noqa: S311 - no secret
    began, tried = time.monotonic(), 0
    for (days, _), name in seen.items():
        zone = ZoneInfo(name)
        for day in days:  # type: ignore[attr-defined]
            for hour in range(24):
                minute = rng.choice([0, 10, 30, 45, 59])
                start = day - timedelta(days=1)
                given = entry(cron=f"{minute} {hour} * * *", timezone=name)
                after = start.replace(tzinfo=zone).timestamp() - 1
                wanted = expected(zone, hour, minute, start, 3)
                assert between(given, after, wanted[-1] + 60) == wanted, (name, day, hour, minute)
                tried += 1
    took = time.monotonic() - began
    print(f"{len(zones)} zones, {len(seen)} kinds, {tried} times of day, {took:.1f} s")
    assert tried > 1_000


# What is late


NOW = at("2025-06-01T12:00:30")


def test_what_is_late_by_little_runs_whatever_missed_says() -> None:
    each_second = entry(every=1.0, missed="none")
    assert each_second.due(NOW - 3, NOW) == [NOW - 2, NOW - 1, NOW]
    assert each_second.due(NOW - 100, NOW) == [NOW - each for each in (5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize(
    ("missed", "runs"),
    [("none", 0), ("once", 1), ("all", 4)],
)
def test_after_an_outage_missed_decides(missed: str, runs: int) -> None:
    hourly = entry(cron="0 * * * *", missed=missed)
    found = hourly.due(NOW - 4 * HOUR, NOW + LATE)
    assert found == [at(f"2025-06-01T{hour:02}:00") for hour in range(9, 13)][4 - runs :]


def test_a_restart_of_less_than_a_minute_misses_nothing() -> None:
    nightly = entry(cron="0 12 * * *", missed="none")
    assert nightly.due(NOW - HOUR, NOW) == [at("2025-06-01T12:00")]


@pytest.mark.parametrize("missed", ["none", "once", "all"])
@pytest.mark.parametrize("when", [{"every": 60.0}, {"cron": "* * * * *"}], ids=["every", "cron"])
def test_after_a_year_it_is_quick_and_bounded(missed: str, when: dict[str, object]) -> None:
    began = time.monotonic()
    found = entry(missed=missed, **when).due(NOW - 365 * 86_400, NOW)
    assert time.monotonic() - began < 5
    minute = NOW - 30
    many = [minute - 60 * each for each in range(MOST_MISSED)][::-1]
    assert found == (many if missed == "all" else [minute])


def test_a_year_of_a_yearly_one_is_one() -> None:
    assert entry(cron="0 0 1 1 *").due(NOW - 3 * 365 * 86_400, NOW) == [at("2025-01-01T00:00")]
    assert entry(cron="0 0 1 7 *").due(at("2025-01-01T00:00"), NOW) == []


def test_missed_ones_are_counted_up_to_a_thousand() -> None:
    assert entry(every=60.0).count(NOW - 330, NOW) == 5
    assert entry(every=1.0).count(NOW - 86_400, NOW) == 1000
    assert PROMPT < LATE


def test_another_definition_is_another_entry_and_the_same_the_same() -> None:
    one = entry(cron="0 3 * * *", kwargs={"a": 1, "b": 2})
    assert one.definition == entry(cron="0 3 * * *", kwargs={"b": 2, "a": 1}).definition
    for other in ({"timezone": "Europe/Berlin"}, {"args": ("x",)}, {"days": frozenset({1})}):
        changed = entry(cron="0 3 * * *", kwargs={"a": 1, "b": 2}, **other)  # type: ignore[arg-type]
        assert changed.definition != one.definition
