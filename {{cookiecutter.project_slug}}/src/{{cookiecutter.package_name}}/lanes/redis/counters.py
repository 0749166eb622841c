"""What a lane's workers have counted, in Redis: ever, and by minute, hour and day.

Kept where the messages are, it outlives workers and is the same for whoever reads it.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..counting import MOST_NAMES, OTHER, Addition, Counted, Load, Period, gather
from .identity import node_of
from .store import LOOK, PRIORITY_LISTS, Store

#: By the name of a period: its seconds, and for how many of them its counts are kept.
_PERIODS = {"minute": (60, 3_900), "hour": (3_600, 90_000), "day": (86_400, 2_764_800)}
_BACKLOG = "backlog"


class Counters:
    """One lane's counts."""

    def __init__(self, store: Store) -> None:
        """`store` is the lane's."""
        self._store = store

    def add(
        self, additions: Sequence[Addition], *, now: float, owner: str, batch: int, load: Load
    ) -> None:
        """Add what a worker has counted; the same batch once, however often it is told.

        Args:
            now: seconds since 1970, by the server's clock.
            owner: the worker's, of its leases.
            batch: its number, higher than that of the batch before.
        """
        state = json.dumps({"slots": load.slots, "running": load.running, "clock": load.clock})
        ages = [age for _, age in _PERIODS.values()]
        periods = [f"counts:{name}:{now // seconds:.0f}" for name, (seconds, _) in _PERIODS.items()]
        keys = ("loads", "counts:names", "counts", *periods)
        keys += ("delayed", "keyed:delayed", "keyed:state", "keyed:messages:", "queue")
        keys += PRIORITY_LISTS
        flat = [
            part
            for what, task, amount in additions
            for part in (what, task, f"{amount:.9f}" if isinstance(amount, float) else amount)
        ]
        self._store.run("count", keys, (owner, batch, state, MOST_NAMES, OTHER, *ages, *flat))

    def total(self) -> dict[str, Counted]:
        """By task, all that was ever counted."""
        with self._store.redis.pipeline(transaction=False) as pipe:
            self.ask_total(pipe)
            return self.read_total(pipe.execute())

    def ask_total(self, pipe: Any) -> None:
        """Put the question into a pipeline, whose reply is for `read_total`."""
        pipe.hgetall(self._store.keys("counts"))

    @staticmethod
    def read_total(replies: Sequence[Any]) -> dict[str, Counted]:
        """What `total` returns."""
        return gather(_additions(replies[0]))

    def last(self, seconds: float, *, now: float) -> Period:
        """What was counted in the last so many seconds.

        By the minute up to an hour, by the hour up to a day, by the day up to 30 days; the first of
        them is left out where it began too early, so that it is up to one of them less.

        Args:
            now: seconds since 1970, by the server's clock.
        """
        with self._store.redis.pipeline(transaction=False) as pipe:
            self.ask_last(pipe, seconds, now=now)
            return self.read_last(pipe.execute(), seconds, now=now)

    def ask_last(self, pipe: Any, seconds: float, *, now: float) -> None:
        """Put the questions into a pipeline, whose replies are for `read_last` and `read_parts`."""
        name, size, count = _steps(seconds)
        for number in range(int(now // size) - count + 1, int(now // size) + 1):
            pipe.hgetall(self._store.keys(f"counts:{name}:{number}"))

    @staticmethod
    def read_last(replies: Sequence[Any], seconds: float, *, now: float) -> Period:
        """What `last` returns."""
        _, size, count = _steps(seconds)
        return _period(replies, (count - 1) * size + now % size, now)

    @staticmethod
    def read_parts(replies: Sequence[Any], seconds: float, *, now: float) -> list[Period]:
        """What `last` adds up, the oldest first: minutes, hours or days, the last of them begun."""
        _, size, count = _steps(seconds)
        lengths = [float(size)] * (count - 1) + [now % size]
        return [
            _period([reply], length, now) for reply, length in zip(replies, lengths, strict=True)
        ]

    def loads(self, now: float) -> list[Load]:
        """The workers that are there.

        Args:
            now: seconds since 1970, by the server's clock.
        """
        with self._store.redis.pipeline(transaction=False) as pipe:
            self.ask_loads(pipe)
            return self.read_loads(pipe.execute(), now)

    def ask_loads(self, pipe: Any) -> None:
        """Put the questions into a pipeline, whose replies are for `read_loads`."""
        pipe.hgetall(self._store.keys("workers")).hgetall(self._store.keys("loads"))

    @staticmethod
    def read_loads(replies: Sequence[Any], now: float) -> list[Load]:
        """What `loads` returns."""
        workers, loads = replies
        found = []
        for owner, value in workers.items():
            if now - float(value.partition(b" ")[0]) > 3 * LOOK:
                continue
            state = json.loads(loads.get(owner, b"").partition(b" ")[2] or b"{}")
            found.append(
                Load(
                    node=node_of(owner.decode()),
                    slots=int(state.get("slots", 0)),
                    running=int(state.get("running", 0)),
                    clock=float(state.get("clock", 0.0)),
                )
            )
        return found


def _steps(seconds: float) -> tuple[str, int, int]:
    """Periods that make up so many seconds: their name, their own seconds, how many."""
    for name, (size, age) in _PERIODS.items():
        if seconds <= age:
            return name, size, max(1, math.ceil(seconds / size))
    raise ValueError(f"{seconds} seconds are more than is kept")


def _period(replies: Sequence[Any], seconds: float, now: float) -> Period:
    first = next((reply[b"backlog"] for reply in replies if b"backlog" in reply), None)
    backlog, _, at = (first or b"").decode().partition("@")
    return Period(
        seconds=seconds,
        tasks=gather(each for reply in replies for each in _additions(reply)),
        backlog=int(backlog) if first else None,
        since=max(0.0, now - float(at)) if first else None,
    )


def _additions(counts: Mapping[bytes, bytes]) -> Iterator[Addition]:
    for field, amount in counts.items():
        what, _, task = field.decode(errors="replace").partition(" ")
        if task:
            yield what, task, float(amount)
