"""What an operator looks at: what waits in each lane, for how long, and who works on it."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from . import capacity, deadletters
from .config import Lane
from .counting import Counted, Load, Period
from .errors import BrokerError
from .redis.counters import Counters
from .redis.store import ENDS, Counts, Keys, KeyState, Store, instant
from .routing import SENT_AT

#: Messages that are looked at in all lanes together, from each end: of many lanes, fewer in each.
_ENDS_OF_ALL, _FEWEST = 2_000, 10
_MINUTES, _HOUR, _MONTH = 300, 3_600, 30 * 86_400  # seconds
_WANTED = 900  # seconds for which is counted what comes to a lane: soon, and enough to go by


@dataclass(frozen=True, slots=True)
class Seen:
    """What a lane holds, and who is at work in it, at one moment."""

    counts: Counts
    #: Seconds that the oldest that may be fetched has waited; None: there is none, or unknown.
    oldest: float | None
    loads: list[Load]  # the workers that are there


@dataclass(frozen=True, slots=True)
class Recent:
    """What became of tasks lately."""

    seconds: float  # for how long it was counted, up to now
    done: int  # tasks that were done with, whatever became of them
    per_second: float  # of those
    outcomes: dict[str, int]  # of those, by outcome; see docs/metrics.md
    in_time: float | None  # share of starts, and of what expired; None: there were none
    wait_p50: float | None  # seconds; None: nothing started
    wait_p99: float | None
    run_p50: float | None
    run_p99: float | None


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One lane at one moment, and how it got on until then."""

    lane: str
    waiting: int  # messages in the queue
    oldest: float | None  # seconds that the oldest has waited; None: there is none, or unknown
    running: int  # tasks
    slots: int  # tasks that its workers run at once
    workers: int  # workers that are there
    wanted_workers: int | None  # with which it meets its objective; None: too little data
    latency_slo: float  # seconds
    slo_kept: bool  # nothing waits for longer than latency_slo
    keys: int  # keys that have messages waiting
    keys_held: int  # of those, the ones that a limit of theirs holds back now
    delayed: int  # messages that wait for their time
    dead: int  # dead letters
    dead_full: bool  # no room for more whose task never ran; they stay delayed
    paused: bool
    slo_target: float  # share of tasks that should start in time, over 30 days
    budget_left: float | None  # share of those that may be late; below 0: more were; None: unknown
    last_5m: Recent
    last_1h: Recent
    last_30d: Recent


@contextmanager
def broker(app: Any) -> Iterator[Any]:
    """A redis-py client of the broker.

    Raises:
        BrokerError: when the broker does not answer, or refuses, now or within the block.
    """
    app.server.check()
    try:
        yield app.server.client
    except (RedisError, OSError, OperationalError) as error:
        raise BrokerError(app.server.explain(error)) from None


def read(app: Any, only: Lane | None = None) -> list[LaneStatus]:
    """The state of every lane, in the order of lanes.toml, or of one.

    Raises:
        BrokerError: when the broker does not answer, or refuses.
    """
    with broker(app) as redis:
        lanes = [only] if only else list(app.lanes)
        stores = [store_of(redis, lane) for lane in lanes]
        seen = look(stores)
        periods = _periods(stores, now=seen[0].counts.now)
        wants = wanted_workers(lanes, stores, seen)
    return [_status(*each) for each in zip(lanes, seen, wants, periods, strict=True)]


def tasks_of(app: Any, lane: Lane) -> dict[str, Recent]:
    """What became of a lane's tasks in the last hour, by name.

    Raises:
        BrokerError: when the broker does not answer, or refuses.
    """
    with broker(app) as redis:
        store = store_of(redis, lane)
        period = Counters(store).last(_HOUR, now=store.now())
    return {
        name: _recent(counted, period.seconds) for name, counted in sorted(period.tasks.items())
    }


def longest_keys(app: Any, lane: Lane) -> list[KeyState]:
    """The ten keys of a lane of which most messages wait.

    Raises:
        BrokerError: when the broker does not answer, or refuses.
    """
    with broker(app) as redis:
        return store_of(redis, lane).keys_waiting()


def failures(state: LaneStatus) -> Iterator[str]:
    """What is wrong with a lane, a line each; that tasks of a paused lane wait is meant."""
    lane, waiting = state.lane, f"{state.waiting:,} waiting"
    if not state.paused and not state.slo_kept:
        yield (
            f"{lane}: the oldest of {waiting} has waited for {state.oldest:,.1f} s, and "
            f"latency_slo is {state.latency_slo:g} s"
        )
    if not state.paused and state.waiting and not state.workers:
        yield f"{lane}: no worker, and {waiting}"
    if state.budget_left is not None and state.budget_left <= 0:
        yield (
            f"{lane}: more tasks were late in 30 days than slo_target, {state.slo_target:g}, allows"
        )
    if state.dead_full:
        yield no_room(lane)


def no_room(lane: str) -> str:
    """What it means that a lane's dead letters are full."""
    return (
        f"{lane}: its dead letters are full of messages that never ran, which are not dropped; "
        "others like them stay delayed until `dead retry` or `dead purge` makes room"
    )


def look(stores: Sequence[Store], *, most: int = ENDS) -> list[Seen]:
    """What lanes hold and who is at work in them, in three round trips for all of them.

    A message waits from when it was sent, or was due if that is later; see `Store.ask_oldest` for
    what is looked at. What is delayed waits from when it is due, and the first due is the oldest.

    Args:
        most: messages to look at from each end of a lane's queue; of many lanes, fewer.
    """
    now = stores[0].now()
    most = min(most, max(_FEWEST, _ENDS_OF_ALL // len(stores)))

    def ask_more(store: Store, pipe: Any) -> None:
        store.ask_oldest(pipe, SENT_AT, most=most)
        Counters(store).ask_loads(pipe)

    # In one step, so that no message is counted twice or not at all; the rest in many.
    held = ask(stores, lambda store, pipe: store.ask_counts(pipe, now), at_once=True)
    found = []
    for counted, (told, *loads) in zip(held, ask(stores, ask_more), strict=True):
        counts = Store.read_counts(counted, now)
        since = [max(sent, instant(eta) or 0.0) for sent, eta in Store.read_oldest([told])]
        if counts.due is not None:
            since.append(counts.due)
        oldest = max(0.0, now - min(since)) if since else None
        found.append(Seen(counts, oldest, Counters.read_loads(loads, now)))
    return found


def wanted_workers(
    lanes: Sequence[Lane], stores: Sequence[Store], seen: Sequence[Seen]
) -> list[int | None]:
    """How many workers each lane wants, by what came to it; see capacity.py."""
    return [
        capacity.wanted_workers(period, lane, each.counts.waiting)
        for period, lane, each in zip(
            _last(stores, _WANTED, now=seen[0].counts.now), lanes, seen, strict=True
        )
    ]


def ask(
    stores: Sequence[Store], question: Callable[[Store, Any], None], *, at_once: bool = False
) -> list[list[Any]]:
    """The replies to a question to each lane, which it puts into a pipeline.

    Args:
        at_once: Redis serves nobody else meanwhile.
    """
    with stores[0].redis.pipeline(transaction=at_once) as pipe:
        ends = [0]
        for store in stores:
            question(store, pipe)
            ends.append(len(pipe))
        replies = pipe.execute()
    return [replies[start:end] for start, end in itertools.pairwise(ends)]


def store_of(redis: Any, lane: Lane) -> Store:
    """The lane's `Store`."""
    return Store(redis, Keys.of(lane))


def pause(app: Any, lane: Lane, *, paused: bool) -> None:
    """Have the lane's workers fetch nothing more, or go on; it stays so over restarts."""
    with broker(app) as redis:
        store_of(redis, lane).pause(paused=paused)


def held(redis: Any, lane: Lane, key: str | None = None) -> dict[str, int]:
    """How many messages a lane holds, by what `purge` deletes, and "running": what workers hold.

    Args:
        key: of this key alone. All dead letters are looked through, and all that is delayed and has
            a key.
    """
    store = store_of(redis, lane)
    counts = store.counts() if key is None else store.counts_of(key)
    if isinstance(counts, Counts):
        dead = counts.dead
    else:
        dead = sum(1 for _ in deadletters.read(redis, lane, key=key, messages=False))
    return {
        "waiting": counts.waiting,
        "delayed": counts.delayed,
        "dead": dead,
        "running": counts.leased,
    }


def purge(
    redis: Any, lane: Lane, what: str, gone: Callable[[int], None], *, key: str | None = None
) -> int:
    """Delete for good what of the lane is "waiting", "delayed" or "dead"; returns how many.

    Args:
        gone: told how many went in each step, for a progress bar.
        key: what has this key alone.
    """
    if what == "dead":
        letters = deadletters.read(redis, lane, key=key, messages=False)
        return deadletters.purge(redis, lane, letters, gone)
    store, total = store_of(redis, lane), 0
    counts = store.counts() if key is None else store.counts_of(key)
    most = counts.waiting if what == "waiting" else counts.delayed
    for count in store.purge(what, most, key):
        total += count
        gone(count)
    return total


def _periods(stores: Sequence[Store], *, now: float) -> list[tuple[Period, ...]]:
    """Of each lane, the last five minutes, hour and 30 days."""
    found = [_last(stores, seconds, now=now) for seconds in (_MINUTES, _HOUR, _MONTH)]
    return list(zip(*found, strict=True))


def _last(stores: Sequence[Store], seconds: int, *, now: float) -> list[Period]:
    replies = ask(stores, lambda store, pipe: Counters(store).ask_last(pipe, seconds, now=now))
    return [Counters.read_last(each, seconds, now=now) for each in replies]


def _status(lane: Lane, seen: Seen, wanted: int | None, periods: tuple[Period, ...]) -> LaneStatus:
    counts = seen.counts
    last_5m, last_1h, last_30d = (_recent(period.all, period.seconds) for period in periods)
    return LaneStatus(
        lane=lane.name,
        waiting=counts.waiting,
        oldest=seen.oldest,
        running=sum(load.running for load in seen.loads),
        slots=sum(load.slots for load in seen.loads),
        workers=len(seen.loads),
        wanted_workers=wanted,
        latency_slo=lane.latency_slo,
        slo_kept=(seen.oldest or 0) <= lane.latency_slo,
        keys=counts.keys,
        keys_held=counts.keys_held,
        delayed=counts.delayed,
        dead=counts.dead,
        dead_full=counts.is_full(cap=lane.dead_cap, size=lane.dead_size),
        paused=counts.paused,
        slo_target=lane.slo_target,
        budget_left=_budget_left(last_30d.in_time, lane.slo_target),
        last_5m=last_5m,
        last_1h=last_1h,
        last_30d=last_30d,
    )


def _recent(counted: Counted, seconds: float) -> Recent:
    done = counted.outcomes.total()
    return Recent(
        seconds=seconds,
        done=done,
        per_second=done / seconds,
        outcomes=dict(counted.outcomes),
        in_time=counted.good / counted.total if counted.total else None,
        wait_p50=counted.wait.quantile(0.5),
        wait_p99=counted.wait.quantile(0.99),
        run_p50=counted.run.quantile(0.5),
        run_p99=counted.run.quantile(0.99),
    )


def _budget_left(in_time: float | None, target: float) -> float | None:
    return None if in_time is None else 1 - (1 - in_time) / (1 - target)
