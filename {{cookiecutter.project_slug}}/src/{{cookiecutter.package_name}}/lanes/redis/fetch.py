"""How a worker asks its lane for messages: a state machine that knows Redis, and nothing of kombu.

A round is one or two commands, sent together: a wait for the queue, which changes nothing, and the
script that acknowledges and takes, pipelined behind it, so that the reply that wakes us holds the
messages already. Whoever owns the connection sends what `begin` returns and gives the replies to
`end`; when it loses the connection, it says so to `lost`.
"""

import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError, ResponseError

from ..timeouts import FETCH, REPLY
from .store import EXCHANGE, EXCHANGE_KEYS, Keys

EXCHANGE_SHA = hashlib.sha1(EXCHANGE.encode(), usedforsecurity=False).hexdigest()
MOST = 100  # messages in one round
_SOONEST = 0.001  # seconds that a round waits at the least; for Redis, 0 is for ever

Command = tuple[Any, ...]


class Mode(enum.Enum):
    """What the next round waits for."""

    QUEUE = "a message in the queue"
    NOTHING = "nothing: the last round got all it asked for, there may be more"
    TIME = "some time: there is something that it may not take"


@dataclass(frozen=True, slots=True)
class Round:
    """What was asked, and has no reply yet."""

    commands: tuple[Command, ...]
    wanted: int  # messages
    acknowledged: tuple[str, ...]  # ids of leases that the script is told are done with
    sent_at: float  # monotonic seconds

    @property
    def waits(self) -> bool:
        """Whether the server waits for something before it carries out the last command."""
        return len(self.commands) > 1

    def is_late(self) -> bool:
        """Whether a server that is there would have replied."""
        return monotonic() - self.sent_at > FETCH + REPLY


class Leased(NamedTuple):
    """A message that is ours."""

    id: str  # of its lease
    message: bytes
    again: bool  # somebody may have had it before


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a round brought."""

    messages: tuple[Leased, ...]  # in the order to run them in
    now: float | None  # seconds since 1970 by the server's clock; None: the script did not run
    took: float  # seconds from the question to the answer's being read
    untold: tuple[str, ...] = ()  # what it did not acknowledge after all
    refused: ResponseError | None = None  # the server's no
    revocations: bytes = b""  # the number of the last one
    unknown_script: bool = False  # the server has lost the script: load it, and begin again


class Fetch:
    """One worker's side of the conversation with its lane."""

    def __init__(self, keys: Keys, *, owner: str, lease: float) -> None:
        """`owner` holds the leases, of `lease` seconds, that this takes."""
        self.keys, self.owner, self.lease = keys, owner, lease
        self.round: Round | None = None  # the one in flight
        self._mode = Mode.QUEUE
        self._names = [*(keys(key) for key in EXCHANGE_KEYS), *keys.shared]
        self.ended_at = 0.0  # monotonic seconds, when the last round did
        self._soon = FETCH  # seconds until a key's rate lets another start, if that is sooner

    def begin(
        self, wanted: int, acknowledged: Sequence[str] = (), *, last: int = 0
    ) -> tuple[Command, ...]:
        """The commands of the next round.

        Args:
            wanted: messages to take, at most.
            acknowledged: ids of leases that are done with. Those of a round that waits are told
                late, so give them to one that does not: see `waits`.
            last: the highest number of a lease that the owner holds.
        """
        wait: tuple[Command, ...] = ()
        if self._mode is Mode.QUEUE:
            # From the end of the list to the same end: it wakes us and changes nothing.
            wait = (("BLMOVE", self.keys.queue, self.keys.queue, "RIGHT", "RIGHT", self._soon),)
        elif self._mode is Mode.TIME:
            wait = (("BRPOP", self.keys("never"), FETCH),)  # a list that is never there
        wanted = min(wanted, MOST)
        exchange = ("EVALSHA", EXCHANGE_SHA, len(self._names), *self._names)
        exchange += (wanted, self.lease, self.owner, last, *acknowledged, str(self.keys.limits))
        commands = (*wait, exchange)
        self.round = Round(commands, wanted, tuple(acknowledged), monotonic())
        return commands

    @property
    def waits(self) -> bool:
        """Whether the next round waits for something before it is carried out."""
        return self._mode is not Mode.NOTHING

    def end(self, replies: Sequence[Any]) -> Fetched:
        """Take the replies to the commands of `begin`, in their order; errors among them."""
        asked, self.round = self.round, None
        if asked is None:
            raise RuntimeError("a reply to nothing that was asked")
        self.ended_at = monotonic()
        took = self.ended_at - asked.sent_at
        *waited, reply = replies
        if isinstance(reply, ResponseError):
            lost = isinstance(reply, NoScriptError)
            self._mode = Mode.NOTHING if lost else Mode.TIME
            return Fetched(
                messages=(),
                now=None,
                took=took,
                untold=asked.acknowledged,
                refused=None if lost else reply,
                unknown_script=lost,
            )
        now, revocations, soon, *rest = reply
        self._soon = min(FETCH, max(_SOONEST, float(soon))) if soon else FETCH
        paused = rest == [b"paused"]
        if paused:
            rest = []
        messages = tuple(
            Leased(id_.decode(), message, bool(again))
            for id_, message, again in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
        )
        refusals = [each for each in waited if isinstance(each, ResponseError)]
        if refusals and self._mode is Mode.TIME:
            # It lets us wait for nothing at all: to ask again and again would take a processor.
            return Fetched(messages, float(now), took, refused=refusals[0])
        if len(messages) >= asked.wanted:
            self._mode = Mode.NOTHING
        elif paused or refusals:
            # A server without memory refuses to wait for the queue, since a move may need some.
            self._mode = Mode.TIME
        else:
            self._mode = Mode.QUEUE
        return Fetched(messages, float(now), took, revocations=revocations)

    def lost(self) -> tuple[str, ...]:
        """No reply will come; returns the ids that may not have been acknowledged.

        What the round leased, if it did, is nobody's until the lease runs out.
        """
        asked, self.round = self.round, None
        if asked is None:
            return ()
        self._mode = Mode.QUEUE
        return asked.acknowledged
