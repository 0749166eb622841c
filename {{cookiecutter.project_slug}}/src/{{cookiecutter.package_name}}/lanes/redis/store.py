"""What a lane keeps in Redis beside its queue: leases, delayed messages, dead letters."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
        - `dead`, `dead:messages`, `dead:reports`: dead letters by time, their bytes, their reports.
        """
        if name == "queue":
            return self.queue
        return f"{self.queue}{name}" if name in PRIORITY_LISTS else f"lanes:{self.lane}:{name}"


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

    def acknowledge(self, ids: Sequence[str]) -> None:
        """Forget messages that are done with."""
        if ids:
            self._run("exchange", EXCHANGE_KEYS, (0, 0, "", 0, *ids))

    def renew(self, ids: Sequence[str], lease: float) -> list[str]:
        """Give leases `lease` seconds from now; returns those not taken back, which stay gone."""
        return [id_.decode() for id_ in self._run("renew", ("leases",), (lease, *ids))]

    def hand_back(
        self, ids: Sequence[str], *, most: int = 0, only_expired: bool = False
    ) -> list[tuple[str, int, bytes]]:
        """Return messages to the front of their queue, `ids` oldest first.

        Args:
            most: deliveries that make a message poison; 0 does not count this one.
            only_expired: pass over leases that were renewed meanwhile.

        Returns:
            The poison among them, (id, deliveries, message), which is left for `set_aside`.
        """
        if not ids:
            return []
        keys = ("queue", "leased", "leases", "deliveries")
        _, *poison = self._run("hand_back", keys, (most, "expired" if only_expired else "", *ids))
        return [
            (bytes(id_).decode(), int(count), bytes(message))
            for id_, count, message in zip(poison[::3], poison[1::3], poison[2::3], strict=True)
        ]

    def overdue(self, lease: float) -> list[str]:
        """Ids of the leases that ran out, oldest first; none while owners may still renew."""
        return [id_.decode() for id_ in self._run("overdue", ("leases", "watch"), (lease,))]

    def has_twin(self) -> bool:
        """Whether another connection has the name that this client's has."""
        names = {each["id"]: each["name"] for each in self.redis.client_list()}
        own = names.pop(str(self.redis.client_id()), "")
        return own != "" and own in names.values()

    def owned(self, owner: str) -> list[str]:
        """Ids of the leases that a worker of this node name holds, oldest first."""
        mine = [
            id_
            for id_ in map(bytes.decode, self.redis.hkeys(self.keys("leased")))
            if id_.partition("@")[2] == owner
        ]
        return sorted(mine, key=lambda id_: int(id_.partition("@")[0]))

    def postpone(self, due: dict[str, float]) -> None:
        """Have leased messages wait among the delayed ones, each until its seconds since 1970."""
        args = [part for id_and_due in due.items() for part in id_and_due]
        self._run("postpone", ("leased", "leases", "delayed"), args)

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

    def retry(self, messages: dict[int, bytes]) -> int:
        """Put dead letters, by number, back in the queue; returns how many were still there."""
        args = [part for number_and_message in messages.items() for part in number_and_message]
        return int(self._run("retry", ("queue", "dead", "dead:messages", "dead:reports"), args))
