"""What a lane keeps in Redis: the one place that knows its keys, its scripts and its leases' ids.

Every other module asks a `Store`. A message is in exactly one place: in the queue, among the
delayed ones, leased, or a dead letter; it leaves by acknowledgement or by a purge alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_SCRIPTS = Path(__file__).parent / "scripts"
#: Run on the connection that waits for messages, and so apart from the others.
EXCHANGE = (_SCRIPTS / "exchange.lua").read_text(encoding="utf-8")

#: Plain Celery senders push what has a priority to lists beside the queue, called so by kombu. A
#: lane's own senders do not, and its workers take from them what the queue itself leaves free.
PRIORITY_LISTS = ("\x06\x163", "\x06\x166", "\x06\x169")
EXCHANGE_KEYS = (
    *("queue", "delayed", "paused", "sequence", "leased", "leases", "deliveries"),
    *PRIORITY_LISTS,
)
#: Seconds between two looks at a lane's leases, at most; a third of a shorter lease.
LOOK = 4.0
_AGE_OF_WORKERS = 86_400  # seconds, then a worker that said nothing is forgotten


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of a lane's keys."""

    lane: str
    queue: str  # list of messages, as kombu has it: pushed on the left, taken from the right

    def __call__(self, name: str) -> str:
        """The key of this name.

        - `queue`: the queue itself; one of PRIORITY_LISTS: that list of the queue;
        - `leased`: hash of lease id to message;
        - `leases`: sorted set of lease ids by the time they end;
        - `sequence`: the last lease's number;
        - `deliveries`: hash of a message's SHA-1 to how often it came back;
        - `delayed`: sorted set of messages by the time they are due;
        - `paused`: there while the lane is paused;
        - `watch`: hash, when leases were last looked over;
        - `workers`: hash of owner to when it was last there, and where it runs;
        - `dead`, `dead:messages`, `dead:reports`: dead letters by time, their bytes, their reports.
        """
        if name == "queue":
            return self.queue
        return f"{self.queue}{name}" if name in PRIORITY_LISTS else f"lanes:{self.lane}:{name}"


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of what a lane holds, at one moment."""

    waiting: int  # messages that may be fetched: in the queue, or due
    delayed: int  # messages whose time has not come
    leased: int
    dead: int
    paused: bool
    next: bytes | None  # the message that is fetched next
    now: float  # seconds since 1970, by the server's clock


@dataclass(frozen=True, slots=True)
class Rescued:
    """What a look at the leases of others found."""

    wait: float | None  # seconds until another look makes sense; None: as usual
    more: bool  # there is more than one step takes
    poison: list[tuple[str, int, bytes]]  # id, deliveries, message: now ours, for `set_aside`


def number_of(id_: str) -> int:
    """The number in a lease's id; they are in the order of the fetches."""
    return int(id_.partition("@")[0])


def in_order(ids: Iterable[str]) -> list[str]:
    """Lease ids in the order of the fetches."""
    return sorted(ids, key=number_of)


def instant(text: object) -> float | None:
    """Seconds since 1970 of an ISO 8601 time, in UTC where it names no zone; None for all else."""
    try:
        when = datetime.fromisoformat(text)  # type: ignore[arg-type]
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


class Store:
    """One lane's keys and the scripts that change them; each call is one step for Redis."""

    def __init__(self, redis: Any, keys: Keys) -> None:
        """`redis` is a redis-py client that returns bytes."""
        self.redis, self.keys = redis, keys
        self._scripts = {
            path.stem: redis.register_script(path.read_text(encoding="utf-8"))
            for path in _SCRIPTS.glob("*.lua")
        }

    def _run(self, script: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._scripts[script](keys=[self.keys(key) for key in keys], args=args)

    # Sending

    def delay(self, due: Mapping[str, float], *, batch: Any = None) -> None:
        """Have messages wait, each until its seconds since 1970 by the server's clock.

        Args:
            batch: kombu's, which sends the command with its others; None sends it now.
        """
        if batch is None:
            self.redis.zadd(self.keys("delayed"), due)
        else:
            batch.add("zadd", self.keys("delayed"), due)

    # A worker's messages

    def acknowledge(self, ids: Sequence[str]) -> None:
        """Forget messages that are done with."""
        if ids:
            self._run("exchange", EXCHANGE_KEYS, (0, 0, "", 0, *ids))

    def renew(
        self, ids: Sequence[str], lease: float, *, owner: str = "", note: str = ""
    ) -> tuple[float, list[str]]:
        """Give leases `lease` seconds from now; those that were taken back stay gone.

        Args:
            owner: who is at work here; empty does not say so.
            note: what to note of the owner, for `workers`.

        Returns:
            The server's time in seconds since 1970, and the ids that were renewed.
        """
        now, *renewed = self._run("renew", ("leases", "workers"), (lease, owner, note, *ids))
        return float(now), [id_.decode() for id_ in renewed]

    def hand_back(self, ids: Sequence[str]) -> None:
        """Return messages to the front of their queue, `ids` oldest first; no delivery counts."""
        if ids:
            self._run("hand_back", ("queue", "leased", "leases"), ids)

    def postpone(self, due: Mapping[str, float]) -> None:
        """Have leased messages wait among the delayed ones, each until its seconds since 1970."""
        args = [part for id_and_due in due.items() for part in id_and_due]
        self._run("postpone", ("leased", "leases", "delayed"), args)

    # The messages of workers that died

    def rescue_expired(self, *, lease: float, at_once: int, most: int) -> Rescued:
        """Take back the leases that ran out, unless owners may not have had a chance to renew.

        Args:
            lease: seconds.
            at_once: tasks that a worker runs at once: so many of its oldest count as delivered.
            most: deliveries that make a message poison.
        """
        return self._rescue("expired", lease, at_once, most)

    def rescue_from(self, owner: str, *, lease: float, at_once: int, most: int) -> Rescued:
        """Take back all that a worker held that is dead for sure, and forget the worker."""
        rescued = self._rescue("owner", lease, at_once, most, owner)
        self.redis.hdel(self.keys("workers"), owner)
        return rescued

    def requeue(self, ids: Sequence[str], *, lease: float, most: int) -> Rescued:
        """Take messages back that are to be run again, and count each as delivered."""
        return self._rescue("ids", lease, len(ids), most, *ids)

    def _rescue(self, how: str, lease: float, at_once: int, most: int, *more: str) -> Rescued:
        keys = ("queue", "leased", "leases", "deliveries", "watch", "workers")
        gap = 2 * min(lease / 3, LOOK)  # two looks that nobody took
        answer = self._run("rescue", keys, (how, most, at_once, lease, gap, *more))
        wait, _, unfinished, *poison = answer
        return Rescued(
            wait=float(wait) if wait else None,
            more=bool(unfinished),
            poison=[
                (bytes(id_).decode(), int(count), bytes(message))
                for id_, count, message in zip(poison[::3], poison[1::3], poison[2::3], strict=True)
            ],
        )

    def workers(self) -> dict[str, tuple[float, str]]:
        """Who is at work, by owner: when it was last there (seconds since 1970), and its note."""
        found: dict[str, tuple[float, str]] = {}
        for owner, value in self.redis.hgetall(self.keys("workers")).items():
            at, _, note = value.decode().partition(" ")
            found[owner.decode()] = (float(at), note)
        return found

    def forget_worker(self, owner: str) -> None:
        """It has ended in order."""
        self.redis.hdel(self.keys("workers"), owner)

    def forget_old_workers(self, now: float) -> None:
        """Those that have said nothing for a day; `now` in seconds since 1970."""
        old = [owner for owner, (at, _) in self.workers().items() if now - at > _AGE_OF_WORKERS]
        if old:
            self.redis.hdel(self.keys("workers"), *old)

    # Dead letters

    def set_aside(self, id_: str, report: dict[str, Any], *, cap: int, age: float) -> int:
        """Make a leased message a dead letter and acknowledge it.

        Args:
            report: what is known of it, JSON values; `reason` at least.
            cap: dead letters to keep; the oldest are dropped for it.
            age: seconds to keep them.

        Returns:
            How many were dropped; -1 when the message was not ours any more, and nothing was done.
        """
        keys = ("leased", "leases", "deliveries", "dead", "dead:messages", "dead:reports")
        args = (id_, json.dumps(report, default=repr), cap, age)
        return int(self._run("set_aside", keys, args))

    def dead_numbers(self) -> list[int]:
        """Of all dead letters, oldest first."""
        return [int(number) for number in self.redis.zrange(self.keys("dead"), 0, -1)]

    def dead_letters(self, numbers: Sequence[int]) -> list[tuple[int, bytes, dict[str, Any]]]:
        """Number, message and report of the dead letters of these numbers that are there."""
        if not numbers:
            return []
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.hmget(self.keys("dead:messages"), numbers)
            pipe.hmget(self.keys("dead:reports"), numbers)
            messages, reports = pipe.execute()
        return [
            (number, message, json.loads(report))
            for number, message, report in zip(numbers, messages, reports, strict=True)
            if message is not None and report is not None
        ]

    def retry(self, messages: Mapping[int, bytes]) -> int:
        """Put dead letters, by number, back in the queue; returns how many were still there."""
        args = [part for number_and_message in messages.items() for part in number_and_message]
        return int(self._run("retry", ("queue", "dead", "dead:messages", "dead:reports"), args))

    def purge_dead(self, numbers: Sequence[int]) -> int:
        """Delete dead letters for good; returns how many were there."""
        with self.redis.pipeline() as pipe:
            pipe.zrem(self.keys("dead"), *numbers)
            pipe.hdel(self.keys("dead:messages"), *numbers)
            pipe.hdel(self.keys("dead:reports"), *numbers)
            return int(pipe.execute()[0])

    # The lane

    def pause(self, *, paused: bool) -> None:
        """Have the lane's workers fetch nothing more, or go on; it stays so over restarts."""
        if paused:
            self.redis.set(self.keys("paused"), "1")
        else:
            self.redis.delete(self.keys("paused"))

    def now(self) -> float:
        """What time it is at the server, in seconds since 1970."""
        seconds, microseconds = self.redis.time()
        return float(seconds + microseconds / 1e6)

    def counts(self) -> Counts:
        """What the lane holds."""
        now = self.now()
        with self.redis.pipeline() as pipe:
            pipe.zcount(self.keys("delayed"), "-inf", now).zcard(self.keys("delayed"))
            pipe.hlen(self.keys("leased")).zcard(self.keys("dead")).exists(self.keys("paused"))
            # kombu pushes on the left and takes from the right.
            pipe.lindex(self.keys.queue, -1).zrange(self.keys("delayed"), 0, 0)
            for name in ("queue", *PRIORITY_LISTS):
                pipe.llen(self.keys(name))
            due, delayed, leased, dead, paused, plain, first, *waiting = pipe.execute()
        return Counts(
            waiting=sum(waiting) + due,
            delayed=delayed - due,
            leased=leased,
            dead=dead,
            paused=bool(paused),
            next=first[0] if due else plain,
            now=now,
        )
