"""What a lane keeps in Redis: the one place that knows its keys, its scripts and its leases' ids.

Every other module asks a `Store`. A message is in exactly one place: in the queue, among the
delayed ones, leased, or a dead letter; it leaves by acknowledgement or by a purge alone.
"""

import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote, unquote

from ..config import Lane

_T = TypeVar("_T")
_SCRIPTS = Path(__file__).parent / "scripts"
#: What stands in the queue for a message with a key, as JSON: see parts/lane.lua.
STAND_IN = "keyed"
#: Headers of a message, made by keyed.py and once.py: its key, and its lock.
KEY, ONCE = "lane_key", "lane_once"
#: What stands before an acknowledged lease's id when its task was revoked: see exchange.lua.
REVOKED = "-"
#: What is put in front of scripts. `lane` has keys and an argument of its own, behind all others.
_PARTS = {
    "set_aside": ("lane", "letters"),
    "take_dead": ("lane", "letters"),
    "send": ("lane", "send"),
    "claim": ("lane", "send"),
} | dict.fromkeys(
    (
        *("exchange", "rescue", "hand_back", "give_back", "postpone", "await_release", "promote"),
        *("purge", "send_keyed", "sent", "take"),
    ),
    ("lane",),
)


def script(name: str) -> str:
    """The text of a script, with what it shares with others."""
    files = [*(f"parts/{part}" for part in _PARTS.get(name, ())), name]
    if name == "exchange":  # what comes first returns where no message has a key
        files = ["exchange", "parts/lane", "parts/turns"]
    return "\n".join((_SCRIPTS / f"{each}.lua").read_text(encoding="utf-8") for each in files)


#: Run on the connection that waits for messages, and so apart from the others.
EXCHANGE = script("exchange")

#: Plain Celery senders push what has a priority to lists beside the queue, called so by kombu. A
#: lane's own senders do not, and its workers take from them what the queue itself leaves free.
PRIORITY_LISTS = ("\x06\x163", "\x06\x166", "\x06\x169")
EXCHANGE_KEYS = (
    *("queue", "delayed", "paused", "sequence", "leased", "leases", "deliveries"),
    "revocations",
    *PRIORITY_LISTS,
)
#: Counts the revocations of all lanes; see revocations.py.
REVOCATIONS = "lanes:revocations"
_LETTERS_KEYS = ("dead", "dead:messages", "dead:reports", "dead:ran", "dead:totals")
#: Reasons of dead letters whose task ran. Those of any other reason never did, and are kept.
RAN = ("failed", "poison")
FULL = -2  # what `set_aside` returns when there is no room
ENDS = 500  # messages that are looked at from each end of a list
_ENDS_BYTES = 4 << 20  # bytes of them, at most, and one message more
_PURGED = 200  # messages in one step, while which Redis serves nobody else
#: Seconds between two looks at a lane's leases, at most; a third of a shorter lease.
LOOK = 4.0
#: Seconds that a message of an unknown task waits, at the least and at the most, until it is tried
#: again: as long as it has waited already.
RELEASE_WAITS = (1.0, 30.0)
#: Messages in one step, some 15 ms, while which Redis serves nobody else.
BATCH = 1000
_STEP_BYTES = 4 << 20  # bytes of messages that are sent in one step, and one message more
_PROMOTIONS = 10  # steps of as many messages
_STEP = "\x06\x16"  # between a queue's name and a priority, in the names of kombu's lists
#: Last parts of the names of a lane's keys that hold messages, or say who is at work.
_OF_A_LANE = ("delayed", "leased", "dead", "workers", "paused", "keyed")
#: Commands by the key of a lane that each is run on; some of those that docs/access.md lists.
_SENDING = (("lpush", "queue", "m"), ("zadd", "delayed", 0, "m"))
_WORKING = (
    *(("rpop", "queue"), ("rpush", "queue", "m"), ("hset", "leased", "id", "m")),
    *(("zadd", "leases", 0, "id"), ("hset", "workers", "o", "n"), ("zadd", "dead", 0, "1")),
)
_AGE_OF_WORKERS = 86_400  # seconds, then a worker that said nothing is forgotten


class Limits(NamedTuple):
    """What a lane's messages of one key may do, over all its workers; None: as they like."""

    running: int | None = None  # tasks at once
    interval: float | None = None  # seconds between two starts

    def __str__(self) -> str:
        """For scripts."""
        return f"{self.running or 0} {self.interval or 0:.6f}"


NO_LIMITS = Limits()


class Outgoing(NamedTuple):
    """A message that can be sent."""

    text: str
    key: str | None = None  # as its header says it, which is the first of its name
    unread: bool = False  # the script has to see whether it has a key or a lock


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of a lane's keys, and the limits of its messages' keys."""

    lane: str
    queue: str  # list of messages, as kombu has it: pushed on the left, taken from the right
    limits: Limits = NO_LIMITS

    @classmethod
    def of(cls, lane: Lane) -> Self:
        """Those of a declared lane."""
        return cls(lane.name, lane.queue, Limits(lane.max_running_per_key, lane.rate_per_key))

    @property
    def shared(self) -> tuple[str, str]:
        """What scripts with parts/lane.lua get behind their own keys."""
        return self.queue, f"lanes:{self.lane}:"

    def __call__(self, name: str) -> str:
        """The key of this name.

        - `queue`: the queue itself; one of PRIORITY_LISTS: that list of the queue;
        - `leased`: hash of lease id to message;
        - `leases`: sorted set of lease ids by the time they end;
        - `sequence`: the last lease's number;
        - `deliveries`: hash of the SHA-1 of a message that came back to how many of its deliveries
          count, and of `unknown:` and that to since when nobody knows its task;
        - `revocations`: the number of the last one, of all lanes;
        - `delayed`: sorted set of messages by the time they are due;
        - `keyed:...`, `once:...`, `latest`: of messages with a key or a lock: see parts/lane.lua;
        - `paused`: there while the lane is paused;
        - `watch`: hash, when leases were last looked over;
        - `workers`: hash of owner to when it was last there, and where it runs;
        - `loads`: hash of owner to how much it runs; `counts`, `counts:...`: see counters.py;
        - `dead`, `dead:messages`, `dead:reports`: dead letters by time, their bytes, their reports;
        - `dead:ran`, `dead:totals`: those whose task ran, by time; how many, of how many bytes.
        """
        if name == "queue":
            return self.queue
        if name == "revocations":
            return REVOCATIONS
        return f"{self.queue}{name}" if name in PRIORITY_LISTS else f"lanes:{self.lane}:{name}"


@dataclass(frozen=True, slots=True)
class Counts:
    """How much of what a lane holds, at one moment."""

    waiting: int  # messages that may be fetched: in the queue, or due
    delayed: int  # messages whose time has not come
    leased: int
    dead: int
    never_ran: int  # dead letters whose task never ran
    never_ran_bytes: int
    paused: bool
    due: float | None  # seconds since 1970, when the first of what is due was due
    keys: int  # that have messages waiting in the queue
    keys_held: int  # of those, the ones that a limit of theirs holds back
    now: float  # seconds since 1970, by the server's clock

    def is_full(self, *, cap: int, size: int) -> bool:
        """Whether there is no room for another dead letter whose task never ran."""
        return self.never_ran >= cap or self.never_ran_bytes >= size


@dataclass(frozen=True, slots=True)
class Rescued:
    """What a look at the leases of others found."""

    wait: float | None  # seconds until another look makes sense; None: as usual
    more: bool  # there was no time for all
    poison: list[tuple[str, int, bytes]]  # id, deliveries, message: now ours, for `set_aside`


@dataclass(frozen=True, slots=True)
class KeyState:
    """One key of a lane's messages, at one moment."""

    key: str
    waiting: int  # messages
    running: int  # messages that workers hold
    held_by: str  # the limit that holds it back, by its name in lanes.toml; "" when it may start


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """What a lane holds of one key, at one moment or nearly."""

    waiting: int  # messages that may be fetched, but for the key's limits: in its queue, or due
    delayed: int  # messages whose time has not come
    leased: int


def number_of(id_: str) -> int:
    """The number in a lease's id; they are in the order of the fetches."""
    return int(id_.removeprefix(REVOKED).partition("@")[0])


def owner_of(id_: str) -> str:
    """Who took a lease."""
    return id_.partition("@")[2]


def in_order(ids: Iterable[str]) -> list[str]:
    """Lease ids in the order of the fetches."""
    return sorted(ids, key=number_of)


def _ran(ids: Iterable[bytes], at_once: int) -> list[tuple[str, str]]:
    """Lease ids in the order of the fetches, each with "1" where a task may have run, else "".

    Tasks start in it, too, so the oldest of each owner are those that ran. The others only waited
    beside one that may have killed the worker.
    """
    seen: Counter[str] = Counter()
    found = []
    for id_ in in_order(each.decode() for each in ids):
        owner = owner_of(id_)
        seen[owner] += 1
        found.append((id_, "1" if seen[owner] <= at_once else ""))
    return found


def _newest_first(ids: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """In parts of which each is one step for Redis, to be put before the last."""
    for end in range(len(ids), 0, -BATCH):
        yield ids[max(0, end - BATCH) : end]


def _parts(messages: Iterable[str], most: int = BATCH) -> Iterator[list[str]]:
    """In parts of which each is one step for Redis, of so many at most."""
    part: list[str] = []
    size = 0
    for each in messages:
        part.append(each)
        size += len(each)
        if len(part) == most or size > _STEP_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _steps(messages: Iterable[Outgoing]) -> Iterator[list[Any]]:
    """Of those with a key: each key, how many messages it has, and these; in parts, likewise."""
    of_keys: dict[str, list[str]] = {}
    for text, key, _ in messages:
        if key is not None:
            of_keys.setdefault(key, []).append(text)
    step: list[Any] = []
    count = size = 0
    for key, texts in of_keys.items():
        for part in _parts(texts):
            if step and (count + len(part) > BATCH or size > _STEP_BYTES):
                yield step
                step, count, size = [], 0, 0
            step += (key, len(part), *part)
            count, size = count + len(part), size + sum(map(len, part))
    if step:
        yield step


def _scan(redis: Any, within: float, **chosen: Any) -> tuple[set[str], bool]:
    """Names of keys; whether these are all: it ends after so many seconds."""
    until, found = monotonic() + within, set()
    for key in redis.scan_iter(count=BATCH, **chosen):
        found.add(key.decode(errors="backslashreplace"))
        if monotonic() > until:
            return found, False
    return found, True


def quoted(key: str) -> str:
    """A key as it stands in a header and in Redis: without what JSON would write otherwise."""
    return quote(key, safe=" /:@+,=")


def _headers(message: bytes) -> Mapping[str, Any]:
    """What a message has for headers; none where it cannot be read."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        headers = json.loads(message)["headers"]
        return headers if isinstance(headers, dict) else {}
    return {}


def _due(due: float | None) -> str:
    """For scripts."""
    return "" if due is None else f"{due:.6f}"


def key_in(headers: Mapping[str, Any]) -> str | None:
    """The key that a message's headers say, as its sender said it; None where there is none."""
    key = headers.get(KEY)
    return unquote(key) if isinstance(key, str) and key else None


def instant(text: object) -> float | None:
    """Seconds since 1970 of an ISO 8601 time, in UTC where it names no zone; None for all else."""
    try:
        when = datetime.fromisoformat(text)  # type: ignore[arg-type]
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


class Store:
    """One lane's keys and the scripts that change them.

    A call is one step for Redis, or for more than BATCH messages several.
    """

    def __init__(self, redis: Any, keys: Keys) -> None:
        """`redis` is a redis-py client that returns bytes."""
        self.redis, self.keys = redis, keys
        self._scripts = {
            path.stem: redis.register_script(script(path.stem)) for path in _SCRIPTS.glob("*.lua")
        }

    def run(
        self, script: str, keys: Sequence[str], args: Sequence[Any], *, pipe: Any = None
    ) -> Any:
        """Run a script on keys of the lane, each by its name; in a pipeline, when that is."""
        names, arguments = self._arguments(script, keys, args)
        return self._scripts[script](keys=names, args=arguments, client=pipe)

    def _arguments(
        self, script: str, keys: Sequence[str], args: Sequence[Any]
    ) -> tuple[list[str], list[Any]]:
        names, arguments = [self.keys(key) for key in keys], list(args)
        if "lane" in _PARTS.get(script, ()):
            names += self.keys.shared
            arguments.append(str(self.keys.limits))
        return names, arguments

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

    def send(
        self, messages: Sequence[str | bytes], *, due: float | None = None, batch: Any = None
    ) -> list[str]:
        """Send messages that have a key, or that are sent once.

        Args:
            due: seconds since 1970 by the server's clock, until which they wait.
            batch: kombu's, which sends the command with its others; None sends it now.

        Returns:
            Of each "" when it was sent, or the id of the task that holds its lock: then it was not,
            or has taken that one's place. Nothing for a batch.
        """
        args = (_due(due), *messages)
        if batch is None:
            return [unquote(id_.decode()) for id_ in self.run("send", (), args)]
        names, arguments = self._arguments("send", (), args)
        send = self._scripts["send"]
        if pipeline := getattr(batch, "pipeline", None):
            pipeline.scripts.add(send)  # which it loads where the server lacks it
        batch.add("evalsha", send.sha, len(names), *names, *arguments)
        return []

    def sending(self, message: Outgoing, due: float | None) -> tuple[Any, ...]:
        """The command that sends a message, for who runs it on a connection of its own.

        Of one with a key it fails where the server lacks the script.

        Args:
            due: seconds since 1970 by the server's clock, until which it waits.
        """
        if message.key is not None:
            names, arguments = self._arguments("send", (), (_due(due), message.text))
            return "EVALSHA", self._scripts["send"].sha, len(names), *names, *arguments
        if due is not None:
            return "ZADD", self.keys("delayed"), due, message.text
        return "LPUSH", self.keys.queue, message.text

    def send_all(self, messages: Sequence[Outgoing], due: float | None, pipe: Any) -> None:
        """Add to a pipeline the commands, few as they are, that send messages in their order.

        Args:
            due: seconds since 1970 by the server's clock, until which they wait.
        """
        plain = [text for text, key, unread in messages if key is None and not unread]
        for part in _parts(plain):
            if due is None:
                pipe.lpush(self.keys.queue, *part)
            else:
                pipe.zadd(self.keys("delayed"), dict.fromkeys(part, due))
        if len(plain) == len(messages):
            return
        when = _due(due)
        if any(unread for _, _, unread in messages):
            marked = (text for text, key, unread in messages if unread or key is not None)
            for part in _parts(marked, BATCH // 2):  # a look at each takes as long again
                self.run("send", (), (when, *part), pipe=pipe)
            return
        for step in _steps(messages):
            self.run("send_keyed", (), (when, *step), pipe=pipe)

    def promote(self, *, keyed: bool = False) -> None:
        """Put what is due behind what waits already, up to 10,000 messages.

        For who consumes the queue itself, and leases nothing. Who leases takes what is due from
        where it is; but the first of a key may be due behind thousands of another's.

        Args:
            keyed: messages with a key alone.
        """
        for _ in range(_PROMOTIONS):
            if int(self.run("promote", (), ("keyed" if keyed else "all",))) < BATCH:
                return

    def take(self, message: str = "") -> bytes | None:
        """The message of which a token was taken from the queue; likewise.

        Args:
            message: one that was taken itself, and has a lock, which goes.
        """
        return self.run("take", (), (message,)) or None

    # A worker's messages

    def acknowledge(self, ids: Sequence[str]) -> None:
        """Forget messages that are done with; REVOKED is before the id of a revoked task's."""
        for part in _newest_first(ids):
            self.run("exchange", EXCHANGE_KEYS, (0, 0, "", 0, *part))

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
        now, *renewed = self.run("renew", ("leases", "workers"), (lease, owner, note, *ids))
        return float(now), [id_.decode() for id_ in renewed]

    def hand_back(self, ids: Sequence[str]) -> None:
        """Return messages to the front of their queue, `ids` oldest first; no delivery counts."""
        for part in _newest_first(ids):
            self.run("hand_back", ("leased", "leases", "deliveries"), part)

    def postpone(self, due: Mapping[str, float]) -> None:
        """Have leased messages wait among the delayed ones, each until its seconds since 1970."""
        args = [part for id_and_due in due.items() for part in id_and_due]
        self.run("postpone", ("leased", "leases"), args)

    def await_release(self, id_: str, *, most: float) -> float | None:
        """Have a leased message of an unknown task wait for workers that know it.

        Args:
            most: seconds, from the first time, for which it waits at all.

        Returns:
            Seconds until it is tried again, longer each time; None when it has waited for `most`,
            and is still leased.
        """
        keys = ("leased", "leases", "deliveries")
        wait = self.run("await_release", keys, (id_, most, *RELEASE_WAITS))
        return float(wait) if wait else None

    def give_back(self, id_: str, *, wait: float, most: int) -> bool:
        """Have a leased message that could not be handled come again, and count the delivery.

        Args:
            wait: seconds, after the first time; after the second twice as many, and so on.
            most: deliveries that are too many.

        Returns:
            False: it was delivered too often, and is still leased, for `set_aside`.
        """
        keys = ("leased", "leases", "deliveries")
        return bool(self.run("give_back", keys, (id_, wait, most)))

    # The messages of workers that died

    def rescue_expired(self, *, lease: float, at_once: int, most: int) -> Rescued:
        """Take back the leases that ran out, unless owners may not have had a chance to renew.

        After a sixth of a lease it leaves the rest for later: the caller has leases of its own.

        Args:
            lease: seconds.
            at_once: tasks that a worker runs at once: so many of its oldest count as delivered.
            most: deliveries that make a message poison.
        """
        now, wait, _ = self._rescue("expired", (), lease, most)
        if wait is not None:
            return Rescued(wait=wait, more=False, poison=[])
        ids = self.redis.zrangebyscore(self.keys("leases"), "-inf", now)
        return self._rescue_all("expired", _ran(ids, at_once), lease, most, within=lease / 6)

    def rescue_from(self, owner: str, *, lease: float, at_once: int, most: int) -> Rescued:
        """Take back all that a worker held that is dead for sure, and forget the worker."""
        ids = [
            id_ for id_ in self.redis.hkeys(self.keys("leased")) if owner_of(id_.decode()) == owner
        ]
        rescued = self._rescue_all("owner", _ran(ids, at_once), lease, most)
        self.forget_worker(owner)
        return rescued

    def requeue(self, ids: Sequence[str], *, lease: float, most: int) -> Rescued:
        """Take messages back that are to be run again, and count each as delivered."""
        return self._rescue_all("ids", [(id_, "1") for id_ in in_order(ids)], lease, most)

    def _rescue_all(
        self,
        how: str,
        ids: Sequence[tuple[str, str]],
        lease: float,
        most: int,
        *,
        within: float = math.inf,
    ) -> Rescued:
        until = monotonic() + within
        poison: list[tuple[str, int, bytes]] = []
        left = len(ids)
        for part in _newest_first(ids):
            _, wait, found = self._rescue(how, part, lease, most)
            poison += found
            left -= len(part)
            if wait is not None or monotonic() > until:
                return Rescued(wait=wait, more=wait is None and left > 0, poison=poison)
        return Rescued(wait=None, more=False, poison=poison)

    def _rescue(
        self, how: str, ids: Sequence[tuple[str, str]], lease: float, most: int
    ) -> tuple[bytes, float | None, list[tuple[str, int, bytes]]]:
        """One step: the server's time, seconds to wait, and what is poison."""
        keys = ("leased", "leases", "deliveries", "watch", "workers")
        gap = 2 * min(lease / 3, LOOK)  # two looks that nobody took
        args = [part for id_and_ran in ids for part in id_and_ran]
        now, wait, *poison = self.run("rescue", keys, (how, most, lease, gap, *args))
        found = [
            (bytes(id_).decode(), int(count), bytes(message))
            for id_, count, message in zip(poison[::3], poison[1::3], poison[2::3], strict=True)
        ]
        return now, float(wait) if wait else None, found

    def workers(self) -> dict[str, tuple[float, str]]:
        """Who is at work, by owner: when it was last there (seconds since 1970), and its note."""
        found: dict[str, tuple[float, str]] = {}
        for owner, value in self.redis.hgetall(self.keys("workers")).items():
            at, _, note = value.decode().partition(" ")
            found[owner.decode()] = (float(at), note)
        return found

    @staticmethod
    def all_workers(redis: Any) -> Iterator[tuple[str, float, str]]:
        """Of every lane that a database has, whoever's: owner, when it was last there, its note."""
        for key in redis.scan_iter(match="lanes:*:workers", count=BATCH):
            lane = key.decode(errors="replace").split(":")[1]
            for owner, (at, note) in Store(redis, Keys(lane, "")).workers().items():
                yield owner, at, note

    @staticmethod
    def lanes_of(redis: Any, *, within: float) -> tuple[set[str], bool]:
        """The lanes of which a database holds anything, whoever's; whether all was seen in time."""
        keys, whole = _scan(redis, within, match="lanes:*:*")
        return {key.split(":")[1] for key in keys if key.split(":")[2] in _OF_A_LANE}, whole

    @staticmethod
    def queues_of(redis: Any, *, within: float) -> tuple[dict[str, set[str]], bool]:
        """The lists that may be queues, with those of kombu's lists by priority that each has.

        Args:
            within: seconds; then it returns what it has seen.

        Returns:
            The suffixes of the lists by their queue, "" for the queue itself; whether all was seen.
        """
        keys, whole = _scan(redis, within, _type="LIST")
        queues: dict[str, set[str]] = {}
        for key in keys:
            if key.startswith("lanes:"):
                continue  # a lane's own, of messages with a key
            queue, separator, step = key.partition(_STEP)
            if not queue.endswith(".celery.pidbox"):  # answers of remote control
                queues.setdefault(queue, set()).add(separator + step)
        return queues, whole

    @staticmethod
    def messages_of(redis: Any, list_: str) -> int:
        """How many a list holds, if these are messages of Celery's, or stand for such; else 0."""
        try:
            first = json.loads(redis.lindex(list_, -1) or b"")
        except ValueError:
            return 0
        is_message = isinstance(first, dict) and {"body", "headers", "properties"} <= first.keys()
        return int(redis.llen(list_)) if is_message or first == STAND_IN else 0

    def refused(self, user: str) -> dict[str, str]:
        """Which commands a user may not run of those that it takes to send, and to work.

        The server is asked, and runs none (ACL DRYRUN, Redis 7 or later).

        Returns:
            By "send" and "work", the first command that is denied; without it, none is.
        """
        trials = {"send": _SENDING, "work": _WORKING}
        found: dict[str, str] = {}
        for role, commands in trials.items():
            for name, key, *args in commands:
                answer = self.redis.execute_command(
                    "ACL", "DRYRUN", user, name, self.keys(key), *args
                )
                if answer not in (b"OK", "OK", True):
                    found.setdefault(role, name)
        return found

    def forget_worker(self, *owners: str) -> None:
        """They have ended."""
        for key in ("workers", "loads"):
            self.redis.hdel(self.keys(key), *owners)

    def forget_old_workers(self, now: float) -> None:
        """Those that have said nothing for a day; `now` in seconds since 1970."""
        # In this order, or who comes meanwhile would be forgotten. What one that ended was running
        # may have been said after it was forgotten.
        names = {each for key in ("workers", "loads") for each in self.redis.hkeys(self.keys(key))}
        known = {name.decode() for name in names}
        recent = {each for each, (at, _) in self.workers().items() if now - at <= _AGE_OF_WORKERS}
        if known - recent:
            self.forget_worker(*known - recent)

    # Dead letters

    def set_aside(
        self, id_: str, report: Mapping[str, Any], *, cap: int, size: int, age: float
    ) -> int:
        """Make a leased message a dead letter and acknowledge it.

        Where there are too many, those whose task ran are dropped, the oldest first; what never
        ran never is. One whose task ran is always taken, so that there may be one too many.

        Args:
            report: what is known of it, JSON values; `reason` at least, and first.
            cap: dead letters to keep.
            size: bytes of messages and reports to keep.
            age: seconds to keep those whose task ran.

        Returns:
            How many were dropped; -1 when the message was not ours any more, FULL when it never
            ran and there is no room. In both cases nothing was done.
        """
        ran = "1" if report["reason"] in RAN else ""
        args = (id_, json.dumps(report, default=repr), ran, cap, size, age)
        return int(self.run("set_aside", (*_LETTERS_KEYS, "leased", "leases", "deliveries"), args))

    def is_full(self, *, cap: int, size: int) -> bool:
        """Whether there is no room for another dead letter whose task never ran."""
        never, bytes_ = (
            int(self.redis.hget(self.keys("dead:totals"), name) or 0)
            for name in ("never", "never_bytes")
        )
        return never >= cap or bytes_ >= size

    def dead_numbers(self) -> list[int]:
        """Of all dead letters, oldest first."""
        return [int(number) for number in self.redis.zrange(self.keys("dead"), 0, -1)]

    def dead_count(self) -> int:
        """How many there are."""
        return int(self.redis.zcard(self.keys("dead")))

    def dead_letters(
        self, numbers: Sequence[int], *, messages: bool = True, keys: bool = False
    ) -> list[tuple[int, bytes, dict[str, Any]]]:
        """Number, message and report of the dead letters of these numbers that are there.

        Args:
            messages: False reads those alone whose report does not name the task; others are empty.
            keys: reads those, too, whose report does not say whether they have a key.
        """
        if not numbers:
            return []
        reports = {
            number: json.loads(report)
            for number, report in self._dead_parts("dead:reports", numbers)
        }
        wanted = [
            number
            for number, each in reports.items()
            if messages or not each.get("task") or (keys and "key" not in each)
        ]
        found = dict(self._dead_parts("dead:messages", wanted))
        return [
            (number, found.get(number, b""), report)
            for number, report in reports.items()
            if number in found or number not in wanted
        ]

    def _dead_parts(self, key: str, numbers: Sequence[int]) -> list[tuple[int, bytes]]:
        values = self.redis.hmget(self.keys(key), numbers) if numbers else []
        pairs = zip(numbers, values, strict=True)
        return [(number, value) for number, value in pairs if value is not None]

    def retry(self, messages: Mapping[int, bytes]) -> int:
        """Put dead letters, by number, back in the queue; returns how many were still there."""
        args = [part for number_and_message in messages.items() for part in number_and_message]
        return int(self.run("take_dead", _LETTERS_KEYS, ("retry", *args)))

    def purge_dead(self, numbers: Sequence[int]) -> int:
        """Delete dead letters for good; returns how many were there."""
        return int(self.run("take_dead", _LETTERS_KEYS, ("purge", *numbers)))

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

    def purge(self, what: str, most: int, key: str | None = None) -> Iterator[int]:
        """Delete messages for good, and the counts of their deliveries; leases are not touched.

        Args:
            what: "waiting", as `Counts` has it, or "delayed".
            most: messages to delete, or senders that go on could keep it busy for ever.
            key: of this key alone.

        Yields:
            How many went in each step.
        """
        only, so_far = "" if key is None else quoted(key), b""
        keys = ("deliveries", *PRIORITY_LISTS)
        while most > 0:
            gone, so_far = self.run("purge", keys, (what, min(most, _PURGED), only, so_far))
            most -= gone
            if gone:
                yield int(gone)
            if not so_far:
                return

    def keys_waiting(self, most: int = 10) -> list[KeyState]:
        """Keys that have messages waiting in the queue, those of which most wait first.

        Args:
            most: keys.
        """
        found: list[tuple[int, bytes]] = []
        scan = self.redis.hscan_iter(self.keys("keyed:keys"), count=BATCH)
        while part := list(islice(scan, BATCH)):
            with self.redis.pipeline(transaction=False) as pipe:
                for name, _ in part:
                    pipe.llen(self.keys(f"keyed:messages:{name.decode()}"))
                lengths = pipe.execute()
            found += [(length, name) for length, (name, _) in zip(lengths, part, strict=True)]
            found = heapq.nlargest(most, set(found))  # a scan may tell one twice
        found = [(length, name) for length, name in found if length]
        if not found:
            return []
        names = [name for _, name in found]
        with self.redis.pipeline() as pipe:
            pipe.hmget(self.keys("keyed:running"), names)
            pipe.zmscore(self.keys("keyed:rates"), names)
            running, rates = pipe.execute()
        states = []
        for (waiting, name), runs, rate in zip(found, running, rates, strict=True):
            most_running, held = self.keys.limits.running, ""
            if most_running is not None and int(runs or 0) >= most_running:
                held = "max_running_per_key"
            elif rate is not None:
                held = "rate_per_key"
            states.append(KeyState(unquote(name.decode()), waiting, int(runs or 0), held))
        return states

    def ids_of(self, key: str) -> Iterator[str]:
        """The ids of a key's tasks: those that wait, are delayed, or are held by workers."""
        name = quoted(key)
        for message in self._messages_of(name):
            headers = _headers(message)
            if headers.get(KEY) == name and "id" in headers:
                yield str(headers["id"])

    def counts_of(self, key: str) -> KeyCounts:
        """What the lane holds of a key; all that is delayed and has a key is looked through."""
        name, now = quoted(key), self.now()
        with self.redis.pipeline() as pipe:
            pipe.llen(self.keys(f"keyed:messages:{name}"))
            pipe.hget(self.keys("keyed:running"), name)
            waiting, running = pipe.execute()
        due = delayed = 0
        for message, at in self.redis.zscan_iter(self.keys("keyed:delayed"), count=BATCH):
            if _headers(message).get(KEY) == name:
                due, delayed = due + (at <= now), delayed + (at > now)
        return KeyCounts(waiting=waiting + due, delayed=delayed, leased=int(running or 0))

    def _messages_of(self, name: str) -> Iterator[bytes]:
        """Among others' for all but those that wait; in the order in which a message moves on."""
        for message, _ in self.redis.zscan_iter(self.keys("keyed:delayed"), count=BATCH):
            yield message
        # From the left, where they come: what is taken on the right moves none of the others.
        list_, start = self.keys(f"keyed:messages:{name}"), 0
        while found := self.redis.lrange(list_, start, start + BATCH - 1):
            yield from found
            start += BATCH
        begins = f"{name}\n".encode()
        marks = self.redis.hscan_iter(self.keys("keyed:leased"), count=BATCH)
        for id_ in [id_ for id_, mark in marks if mark.startswith(begins)]:
            if message := self.redis.hget(self.keys("leased"), id_):
                yield message

    def ask_oldest(self, pipe: Any, sent_at: str, *, most: int = ENDS) -> None:
        """Ask when messages at both ends of the queue and its lists were sent and were due.

        `most` from each end, fewer where they are large. A list of up to twice as many is looked
        through. What was pushed to a longer one has been in it for no longer than what was pushed
        before it, so that what is not seen has stood there for no longer than what is; a retried
        dead letter in the middle may have been sent before. Only if more than `most` were handed
        back at once can they hide what waits behind them, until they are fetched, which is next.

        Args:
            pipe: whose reply is for `read_oldest`.
            sent_at: the header with the time of sending.
            most: messages.
        """
        self.run("sent", ("queue", *PRIORITY_LISTS), (sent_at, most, _ENDS_BYTES), pipe=pipe)

    @staticmethod
    def read_oldest(replies: Sequence[Any]) -> Iterator[tuple[float, str]]:
        """Seconds since 1970, and the `eta`, of messages that say when they were sent."""
        [told] = replies
        for sent, eta in zip(told[::2], told[1::2], strict=True):
            with suppress(ValueError):
                yield float(sent), eta.decode(errors="replace")

    def counts(self) -> Counts:
        """What the lane holds."""
        now = self.now()
        with self.redis.pipeline() as pipe:
            self.ask_counts(pipe, now)
            return self.read_counts(pipe.execute(), now)

    def ask_counts(self, pipe: Any, now: float) -> None:
        """Put the questions into a pipeline, whose replies are for `read_counts`.

        Args:
            now: seconds since 1970, by the server's clock.
        """
        for name in ("delayed", "keyed:delayed"):
            pipe.zcount(self.keys(name), "-inf", now).zcard(self.keys(name))
            pipe.zrange(self.keys(name), 0, 0, withscores=True)
        fields = ("added", "removed", "waiting", "free")
        pipe.hmget(self.keys("keyed:state"), fields).hlen(self.keys("keyed:keys"))
        pipe.llen(self.keys("keyed:messages:"))
        pipe.hlen(self.keys("leased")).zcard(self.keys("dead")).exists(self.keys("paused"))
        pipe.hmget(self.keys("dead:totals"), "never", "never_bytes")
        for name in ("queue", *PRIORITY_LISTS):
            pipe.llen(self.keys(name))

    @staticmethod
    def read_counts(replies: Sequence[Any], now: float) -> Counts:
        """What `counts` returns."""
        of_plain, of_keyed, (said, keys, plain, *rest) = replies[:3], replies[3:6], replies[6:]
        leased, dead, paused, never, *waiting = rest
        due, delayed = (sum(pair) for pair in zip(of_plain[:2], of_keyed[:2], strict=True))
        firsts = [first[0][1] for count, _, first in (of_plain, of_keyed) if count]
        # A token stands in the queue for a message that may start; those of keys wait elsewhere.
        added, removed, with_key, free = (int(each or 0) for each in said)
        return Counts(
            waiting=sum(waiting) - (added - removed) + plain + with_key + due,
            delayed=delayed - due,
            leased=leased,
            dead=dead,
            never_ran=int(never[0] or 0),
            never_ran_bytes=int(never[1] or 0),
            paused=bool(paused),
            due=min(firsts, default=None),
            keys=keys,
            keys_held=max(0, keys - free),
            now=now,
        )
