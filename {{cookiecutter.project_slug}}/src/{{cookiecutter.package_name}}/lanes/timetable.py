"""When an entry of the schedule is due: by a cron expression in a time zone, or each so often."""

import itertools
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo

#: What becomes of instants that nobody could send in time.
MISSED = ("none", "once", "all")
#: Instants that are made up for after an outage, at most, with `missed = "all"`.
MOST_MISSED = 100
#: Seconds by which each instant may be late and is sent all the same, whatever `missed` says.
PROMPT = 5.0
#: Seconds likewise, of the last one before now: a restart takes so long.
LATE = 60.0
_MOST_COUNTED = 1_000
_LONG = 86_400  # seconds, after which instants of cron are not counted one by one
_YEARS = 40 * 366 * 86_400  # seconds within which a cron expression comes, 29 February on a Monday


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is to run, and when. Exactly one of `cron` and `every` is given."""

    name: str
    task: str
    cron: str | None = None  # five fields, as Debian's cron reads them
    every: float | None = None  # seconds; at each of their multiples since 1970
    timezone: str = "UTC"  # of `cron`
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # of `apply_async`, such as `lane`
    missed: str = "once"  # one of MISSED
    #: Days of the week, from 0, Sunday, that it is due on besides what `cron` says; None: on all.
    #: In Celery's `crontab` both days have to fit, and in cron one of them.
    days: frozenset[int] | None = None

    @property
    def definition(self) -> str:
        """All that it says, as a text: another one is another entry."""
        said = {name: getattr(self, name) for name in self.__slots__ if name != "days"}
        said["days"] = sorted(self.days) if self.days is not None else None
        return json.dumps(said, sort_keys=True, default=repr)

    def when(self) -> str:
        """As its owner would say it."""
        if self.every is not None:
            return f"every {self.every:g} s"
        return str(self.cron) if self.timezone == "UTC" else f"{self.cron} {self.timezone}"

    def following(self, at: float) -> float | None:
        """The first instant after `at`, both in seconds since 1970; None: it never comes."""
        return next(self._after(at), None)

    def due(self, since: float, now: float) -> list[float]:
        """The instants after `since`, up to `now`, that are to run, in their order.

        Those that are late by no more than PROMPT seconds are all to run. Where there are none,
        `missed` says what becomes of the others: "once" has the last one run, "none" likewise if it
        is late by no more than LATE seconds. "all" has the last MOST_MISSED run, in any case.
        """
        after = self._after(self._near(since, now))
        found = deque(takewhile(lambda at: at <= now, after), MOST_MISSED)
        prompt = [at for at in found if now - at <= PROMPT]
        if self.missed == "all" or not found:
            return list(found)
        if prompt or (self.missed == "none" and now - found[-1] > LATE):
            return prompt
        return [found[-1]]

    def count(self, since: float, until: float) -> int:
        """How many instants lie between the two; 1,000 for more."""
        between = takewhile(lambda at: at < until, self._after(since))
        return sum(1 for _ in islice(between, _MOST_COUNTED))

    def _near(self, since: float, now: float) -> float:
        """Where to begin to count: at `since`, or, when that is long ago, where enough come."""
        if self.every is not None:
            return max(since, now - (MOST_MISSED + 1) * self.every)
        if now - since <= _LONG:
            return since
        # They are counted forwards from there all the same: at a change of the clocks the library
        # may see one instant more from behind.
        before = (at for at in self._by_cron(now + 1, reverse=True) if at <= now)
        found = list(islice(takewhile(lambda at: at > since, before), MOST_MISSED + 1))
        return max(since, found[-1] - 1) if found else since

    def _after(self, at: float) -> Iterator[float]:
        if self.every is not None:
            first = math.floor(at / self.every) + 1
            return (round(number * self.every, 3) for number in itertools.count(first))
        return (each for each in self._by_cron(at) if each > at)

    def _by_cron(self, at: float, *, reverse: bool = False) -> Iterator[float]:
        from cronsim import CronSim  # not there where deploy/ is rendered

        start = datetime.fromtimestamp(at, zone(self.timezone))
        for when in CronSim(str(self.cron), start, reverse=reverse):
            if abs(when.timestamp() - at) > _YEARS:
                return
            if self.days is None or when.isoweekday() % 7 in self.days:
                yield when.timestamp()


def zone(name: str) -> tzinfo:
    """The time zone of this name.

    Raises:
        ValueError: when there is none.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ValueError('expected a time zone such as "Europe/Berlin"') from None
