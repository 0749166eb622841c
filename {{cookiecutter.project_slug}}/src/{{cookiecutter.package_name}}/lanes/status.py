"""What an operator looks at: what waits in each lane, for how long, and who works on it."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kombu.exceptions import OperationalError

from .config import Lane, Lanes
from .errors import BrokerError
from .redis.store import PRIORITY_LISTS, Keys
from .routing import SENT_AT
from .settings import redacted

#: Seconds to wait for the workers' answers; a worker with the solo pool answers between tasks.
_ANSWER_TIME = 1.0
#: Of a person or a monitor: what accepts a connection and says nothing more is down, too.
_PATIENCE = {"socket_timeout": 5, "socket_connect_timeout": 5}


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
    url = redacted(app.conf.broker_url.replace("lanes+socket", "redis+socket", 1))
    with app.connection_for_read(transport_options=_PATIENCE) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
            yield connection.default_channel.client
        except (OperationalError, *connection.connection_errors) as error:
            why = str(error).partition(" : <")[0]  # a Sentinel's goes on with clients' reprs
            raise BrokerError(
                f"broker {url} does not answer ({why}); start it, or set BROKER_URL"
            ) from None
        except connection.channel_errors as error:
            raise BrokerError(
                f"broker {url} refuses ({error}); docs/delivery.md says what can be done"
            ) from None


def read(app: Any) -> list[LaneStatus]:
    """The state of every lane, in the order of lanes.toml.

    Raises:
        BrokerError: when the broker does not answer, or refuses.
    """
    with broker(app) as redis:
        kept = [(lane, *_kept(redis, lane)) for lane in app.lanes]
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


def pause(app: Any, lane: Lane, *, paused: bool) -> None:
    """Have the lane's workers fetch nothing more, or go on; it stays so over restarts."""
    with broker(app) as redis:
        key = Keys(lane.name, lane.queue)("paused")
        if paused:
            redis.set(key, "1")
        else:
            redis.delete(key)


def _kept(redis: Any, lane: Lane) -> tuple[int, float | None, int, int, bool]:
    """Messages in the queue, seconds that the next has waited, delayed, dead, whether paused."""
    keys = Keys(lane.name, lane.queue)
    with redis.pipeline() as pipe:
        # kombu pushes on the left and takes from the right.
        pipe.lindex(lane.queue, -1)
        pipe.zcard(keys("delayed")).zcard(keys("dead")).exists(keys("paused"))
        for name in ("queue", *PRIORITY_LISTS):
            pipe.llen(keys(name))
        following, delayed, dead, paused, *waiting = pipe.execute()
    return sum(waiting), _waited(following), delayed, dead, bool(paused)


def _waited(message: bytes | None) -> float | None:
    """Seconds since a message was sent or was due; None when it does not say, or there is none."""
    try:
        headers = json.loads(message or b"")["headers"]
        since = float(headers[SENT_AT])
        if headers.get("eta"):
            since = max(since, datetime.fromisoformat(headers["eta"]).timestamp())
        return max(0.0, time.time() - since)
    except (TypeError, ValueError, KeyError, AttributeError):
        return None


def _at_work(app: Any, lanes: Lanes) -> tuple[Counter[str], Counter[str]]:
    """By lane: workers that answered, tasks that they run."""
    lane_of = {lane.queue: lane.name for lane in lanes}
    queues = app.control.inspect(timeout=_ANSWER_TIME).active_queues() or {}
    served = {
        node: lane_of.get(consumed[0]["name"]) for node, consumed in queues.items() if consumed
    }
    workers = Counter(lane for lane in served.values() if lane)
    running: Counter[str] = Counter()
    if served:
        # Knowing who is there, do not wait for more answers than that.
        everyone = app.control.inspect(
            list(served), timeout=_ANSWER_TIME, limit=len(served)
        ).active()
        for node, tasks in (everyone or {}).items():
            if lane := served.get(node):
                running[lane] += len(tasks)
    return workers, running
