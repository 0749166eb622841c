"""What an operator looks at: what waits in each lane, for how long, and who works on it."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from .config import Lane, Lanes
from .errors import BrokerError
from .redis.store import Keys, Store, instant
from .routing import SENT_AT
from .timeouts import ANSWER


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One lane at one moment."""

    lane: str
    waiting: int  # messages in the queue
    oldest: float | None  # seconds that the message next in line has waited; None: none, or unknown
    running: int  # tasks
    workers: int  # workers that answered
    latency_slo: float  # seconds
    slo_kept: bool  # nothing waits for longer than latency_slo
    delayed: int  # messages that wait for their time
    dead: int  # dead letters
    paused: bool


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


def read(app: Any) -> list[LaneStatus]:
    """The state of every lane, in the order of lanes.toml.

    Raises:
        BrokerError: when the broker does not answer, or refuses.
    """
    with broker(app) as redis:
        kept = [(lane, *_kept(store_of(redis, lane))) for lane in app.lanes]
        workers, running = _at_work(app, app.lanes)
    return [
        LaneStatus(
            lane=lane.name,
            waiting=waiting,
            oldest=oldest,
            running=running[lane.name],
            workers=workers[lane.name],
            latency_slo=lane.latency_slo,
            slo_kept=(oldest or 0) <= lane.latency_slo,
            delayed=delayed,
            dead=dead,
            paused=paused,
        )
        for lane, waiting, oldest, delayed, dead, paused in kept
    ]


def store_of(redis: Any, lane: Lane) -> Store:
    """The lane's `Store`."""
    return Store(redis, Keys(lane.name, lane.queue))


def pause(app: Any, lane: Lane, *, paused: bool) -> None:
    """Have the lane's workers fetch nothing more, or go on; it stays so over restarts."""
    with broker(app) as redis:
        store_of(redis, lane).pause(paused=paused)


def _kept(store: Store) -> tuple[int, float | None, int, int, bool]:
    """Messages that wait, seconds that the next has waited, delayed, dead, whether paused."""
    counts = store.counts()
    oldest = _waited(counts.next, counts.now)
    return counts.waiting, oldest, counts.delayed, counts.dead, counts.paused


def _waited(message: bytes | None, now: float) -> float | None:
    """Seconds since a message was sent or was due; None when it does not say, or there is none."""
    try:
        headers = json.loads(message or b"")["headers"]
        return max(0.0, now - max(float(headers[SENT_AT]), instant(headers.get("eta")) or 0.0))
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _at_work(app: Any, lanes: Lanes) -> tuple[Counter[str], Counter[str]]:
    """By lane: workers that answered, tasks that they run."""
    lane_of = {lane.queue: lane.name for lane in lanes}
    queues = app.control.inspect(timeout=ANSWER).active_queues() or {}
    served = {
        node: lane_of.get(consumed[0]["name"]) for node, consumed in queues.items() if consumed
    }
    workers = Counter(lane for lane in served.values() if lane)
    running: Counter[str] = Counter()
    if served:
        # Knowing who is there, do not wait for more answers than that.
        everyone = app.control.inspect(list(served), timeout=ANSWER, limit=len(served)).active()
        for node, tasks in (everyone or {}).items():
            if lane := served.get(node):
                running[lane] += len(tasks)
    return workers, running
