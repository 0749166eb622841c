"""What was revoked, kept in Redis: it holds for what waits or is delayed, and over restarts.

Celery keeps it in the memory of the workers that are up. A worker hears of a change with its next
messages, and looks at the whole list before it runs any.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .store import REVOCATIONS

AGE = 30 * 86_400.0  # seconds, then a revocation is forgotten
MOST = 100_000  # revocations; more than that, and the oldest are forgotten
_REVOKED = "lanes:revoked"  # sorted set of revocations by time
_SCRIPT = (Path(__file__).parent / "scripts" / "revoke.lua").read_text(encoding="utf-8")

Stamps = Mapping[str, Any]


def revoke(redis: Any, *, ids: Iterable[str] = (), stamps: Stamps | None = None) -> None:
    """Have the tasks of these ids, or with one of these stamps, not start any more.

    Args:
        redis: a redis-py client.
        stamps: a stamp, or a list of them, by its header.
    """
    members = [json.dumps(id_) for id_ in ids]
    members += [json.dumps(pair) for pair in _pairs(stamps or {})]
    if members:
        run = redis.register_script(_SCRIPT)
        run(keys=(_REVOKED, REVOCATIONS), args=(AGE, MOST, *members))


def _pairs(stamps: Stamps) -> Iterator[tuple[str, Any]]:
    for header, value in stamps.items():
        for stamp in value if isinstance(value, list | tuple | set) else [value]:
            yield header, stamp


class Revocations:
    """What a worker knows of them."""

    def __init__(self, redis: Any) -> None:
        """`redis` is a redis-py client that returns bytes."""
        self._redis = redis
        self.number: bytes | None = None  # of the last one that is known
        self.ids: set[str] = set()
        self.stamps: dict[str, set[Any]] = {}
        self._latest = "-inf"  # seconds since 1970, of the last one that is known

    def learn(self, number: bytes) -> tuple[set[str], dict[str, set[Any]]]:
        """Ask for those that are new, up to at least `number`; returns their ids and stamps."""
        is_older = (int(number or 0)) < int(self.number or 0)  # the server has lost its data
        if is_older or len(self.ids) > 2 * MOST:
            self.ids, self.stamps, self._latest = set(), {}, "-inf"
        ids: set[str] = set()
        stamps: dict[str, set[Any]] = {}
        for member, at in self._redis.zrange(
            _REVOKED, self._latest, "+inf", byscore=True, withscores=True
        ):
            self._latest = max(self._latest, repr(at), key=float)
            what = json.loads(member)
            if isinstance(what, str):
                ids.add(what)
            elif isinstance(what[1], str | int | float):
                stamps.setdefault(what[0], set()).add(what[1])
        self.number = number
        self.ids |= ids
        for header, values in stamps.items():
            self.stamps.setdefault(header, set()).update(values)
        return ids, stamps

    def cover(self, headers: Any) -> bool:
        """Whether a message with these headers, whatever they are, was revoked."""
        if not isinstance(headers, Mapping):
            return False
        id_, stamps = headers.get("id"), headers.get("stamps")
        if isinstance(id_, str) and id_ in self.ids:
            return True
        if not self.stamps or not isinstance(stamps, Mapping):
            return False
        return any(
            isinstance(stamp, str | int | float) and stamp in self.stamps.get(header, ())
            for header, stamp in _pairs(stamps)
        )
