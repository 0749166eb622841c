"""What is known of a lane: what its workers have counted, what waits, who is there."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..capacity import Flow, Wait, flow_of, slots_wanted, wait_of
from ..config import Lane, Lanes
from ..counting import Counted, Load, Period
from ..redis.counters import Counters
from ..redis.store import KeyState
from ..status import store_of


@dataclass(frozen=True, slots=True)
class Seen:
    """One lane, and what it did in a period."""

    lane: Lane
    period: Period
    parts: Sequence[Period]  # its minutes, hours or days, the oldest first
    waiting: int  # messages, now
    loads: Sequence[Load]  # of the workers that are there
    longest_key: KeyState | None = None  # of which most waits; None: nothing that waits has a key

    @property
    def hosts(self) -> int:
        """Machines with workers of the lane; one where none is there."""
        return len({load.node.rpartition("@")[2] for load in self.loads}) or 1

    @property
    def workers(self) -> int:
        """Those that are there; where none is, those that lanes.toml wants."""
        return len(self.loads) or self.lane.workers

    @property
    def slots(self) -> int:
        """Of all those workers."""
        return sum(load.slots for load in self.loads) or self.lane.workers * self.lane.concurrency

    @property
    def flow(self) -> Flow | None:
        """What came to the lane in the whole period; None: too little to say."""
        return flow_of(self.period, self.waiting)

    @property
    def late(self) -> float:
        """The share of its tasks that did not start within its `latency_slo`, or expired."""
        return late(self.period.all)

    @property
    def keeps(self) -> bool:
        """Whether so few were late as the objective allows."""
        return self.late <= 1 - self.lane.slo_target


@dataclass(frozen=True, slots=True)
class Sizing:
    """Workers for what came to a lane when most came."""

    busiest: Flow
    seconds: float  # for how long that was measured
    wait: Wait  # that is predicted, with the slots that there are
    slots: int  # that are wanted
    workers: int  # with which there are so many, on each of its hosts


def late(counted: Counted) -> float:
    """The share that did not start in time, of those that did or expired; 0 of none."""
    return 1 - counted.good / counted.total if counted.total else 0.0


def size(seen: Seen) -> Sizing | None:
    """Workers for the busiest part of the period, or for the whole where parts hold too little.

    A part that is shorter than `latency_slo` says nothing: what comes in it may start after it.
    """
    parts = [each for each in _flows(seen) if each[1] >= seen.lane.latency_slo]
    if (whole := seen.flow) and seen.period.since:
        parts.append((whole, seen.period.since))
    if not parts:
        return None
    flow, seconds = max(parts, key=lambda part: part[0].load)
    slots = slots_wanted(flow, seen.lane.latency_slo, seen.lane.slo_target)
    return Sizing(
        busiest=flow,
        seconds=seconds,
        wait=wait_of(flow, seen.slots),
        slots=slots,
        workers=math.ceil(slots / seen.lane.concurrency / seen.hosts),
    )


def _flows(seen: Seen) -> Iterator[tuple[Flow, float]]:
    """What came in each part that says enough, and for how many seconds.

    What waited when the next one began is what waited when a part ended.
    """
    told = [part for part in seen.parts if part.since is not None and part.backlog is not None]
    for number, part in enumerate(told):
        after = told[number + 1] if number + 1 < len(told) else None
        seconds = (part.since or 0.0) - ((after and after.since) or 0.0)
        left = seen.waiting if after is None else after.backlog or 0
        if flow := flow_of(dataclasses.replace(part, since=seconds), left):
            yield flow, seconds


def look(redis: Any, lanes: Lanes, seconds: float) -> list[Seen]:
    """Every lane, and what it did in the last so many seconds."""
    return [_look(redis, lane, seconds) for lane in lanes]


def _look(redis: Any, lane: Lane, seconds: float) -> Seen:
    store = store_of(redis, lane)
    counters, counts = Counters(store), store.counts()
    with redis.pipeline(transaction=False) as pipe:
        counters.ask_last(pipe, seconds, now=counts.now)
        replies = pipe.execute()
    return Seen(
        lane=lane,
        period=counters.read_last(replies, seconds, now=counts.now),
        parts=counters.read_parts(replies, seconds, now=counts.now),
        waiting=counts.waiting,
        loads=counters.loads(counts.now),
        longest_key=next(iter(store.keys_waiting(1)), None),
    )
