"""What is known of the schedule in Redis: who keeps it, how far each entry is, what is paused.

No worker leads. Any of them may claim an instant, and one script sends its message in the same
step: it is sent once, or not yet. Where workers have different schedules, as in a rolling deploy,
the one that appeared last is kept, for as long as a worker has it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .identity import PROJECT
from .store import NO_LIMITS, script

#: Seconds without a word after which a worker keeps no schedule any more.
GONE = 15.0
#: Seconds by which a run is late, and counted as such.
LATE = 1.0
#: Seconds that a schedule is remembered which no worker has: one that comes back is not a new one.
_REMEMBERED = 86_400.0


@dataclass(frozen=True, slots=True)
class Run:
    """The last run of an entry, and what was counted up to it."""

    id: str  # of its task
    due: float  # seconds since 1970
    late_by: float  # seconds
    late: int = 0  # runs that were late by more than LATE seconds, of all
    missed: int = 0  # instants that were not sent in time, and by `missed` not at all


@dataclass(frozen=True, slots=True)
class Claim:
    """One instant of an entry, and what would send its message; times are seconds since 1970."""

    name: str
    last: float  # the entry's last instant, as `lasts` says
    instant: float  # the one that is to run
    id: str  # of its task
    missed: int  # instants between the two, which nobody sends
    command: Sequence[Any]  # as redis-py has it: a name, a key, and more


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one entry."""

    last: float | None  # instant that is done with, seconds since 1970; None: no worker has it
    paused: bool
    run: Run | None  # None: there was none


class Schedule:
    """One project's schedule."""

    def __init__(self, redis: Any, definitions: Mapping[str, str]) -> None:
        """As this process has it.

        Args:
            redis: a redis-py client that returns bytes.
            definitions: what each entry says, by name.
        """
        self._redis = redis
        self._says = {name: _digest(said) for name, said in definitions.items()}
        self._digest = _digest(json.dumps(self._says, sort_keys=True))
        # No lane can be called so.
        self._keys = {
            name: f"lanes:@schedule:{PROJECT}:{name}"
            for name in ("keepers", "schedules", "entries", "paused", "runs")
        }
        self._scripts = {name: redis.register_script(script(name)) for name in ("keep", "claim")}

    def keep(self, owner: str) -> tuple[float, bool]:
        """Say that a worker has this schedule.

        Args:
            owner: the worker's; no other process has it.

        Returns:
            The server's time in seconds since 1970; whether this schedule is the one that is kept.
        """
        keys = [self._keys[each] for each in ("keepers", "schedules", "entries")]
        args = (owner, self._digest, GONE, _REMEMBERED, len(self._says))
        now, how = self._scripts["keep"](keys=keys, args=(*args, ""))
        if how == b"tell":
            pairs = [part for pair in self._says.items() for part in pair]
            now, how = self._scripts["keep"](keys=keys, args=(*args, "1", *pairs))
        return float(now), how != b"other"

    def leave(self, owner: str) -> None:
        """The worker ends, and its schedule does not count any more."""
        self._redis.hdel(self._keys["keepers"], owner)

    def lasts(self, names: Sequence[str]) -> dict[str, float]:
        """The last instants of entries, in seconds since 1970, without those that are not ours."""
        values = self._redis.hmget(self._keys["entries"], names) if names else []
        known = dict(zip(names, map(_read, values), strict=True))
        return {name: last for name, (says, last) in known.items() if says == self._says[name]}

    def claim(self, claims: Sequence[Claim]) -> list[str]:
        """Send the messages of instants, each unless somebody did.

        Returns:
            Of each "sent", "paused", "changed" or "early"; see claim.lua.
        """
        if not claims:
            return []
        with self._redis.pipeline(transaction=False) as pipe:
            names = ("entries", "paused", "runs")
            for each in claims:
                how, key, *more = each.command
                shared = [key, self._keys["entries"]]  # unused, and a key that a worker may use
                if how == "send":  # of a message with a key
                    shared, (due, message, limits) = [key, more[0]], more[1:]
                    more = [due, message]
                else:
                    limits = str(NO_LIMITS)
                says = self._says[each.name]
                known, claimed = f"{says} {each.last:.3f}", f"{says} {each.instant:.3f}"
                counted = (f"{each.instant:.3f}", each.id, each.missed, LATE)
                self._scripts["claim"](
                    keys=[*(self._keys[name] for name in names), key, *shared],
                    args=(each.name, known, claimed, *counted, how, *more, limits),
                    client=pipe,
                )
            return [answer.decode() for answer in pipe.execute()]

    def note_run(self, name: str, run: Run) -> None:
        """What was sent of an entry when somebody asked for it."""
        said = {each: getattr(run, each) for each in Run.__slots__}
        self._redis.hset(self._keys["runs"], name, json.dumps(said))

    def pause(self, name: str, *, paused: bool) -> None:
        """Have an entry's instants pass by, or be sent again; it stays so over restarts."""
        change = self._redis.sadd if paused else self._redis.srem
        change(self._keys["paused"], name)

    def states(self) -> dict[str, State]:
        """What is known of each entry that this process has, by name."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._keys["entries"]).smembers(self._keys["paused"])
            pipe.hgetall(self._keys["runs"])
            entries, paused, runs = pipe.execute()
        found = {}
        for name, wanted in self._says.items():
            key = name.encode()
            says, last = _read(entries.get(key))
            run = Run(**json.loads(runs[key])) if key in runs else None
            found[name] = State(last if says == wanted else None, key in paused, run)
        return found

    def keepers(self, now: float) -> tuple[int, int]:
        """How many workers keep a schedule, and how many of them this one.

        Args:
            now: seconds since 1970, by the server's clock.
        """
        said = self._redis.hgetall(self._keys["keepers"]).values()
        known = [each.decode().split(" ") for each in said]
        there = [schedule for seen, schedule in known if now - float(seen) <= GONE]
        return len(there), there.count(self._digest)


def _read(value: bytes | None) -> tuple[str, float]:
    """What an entry says, and its last instant."""
    says, _, last = (value or b"").decode().partition(" ")
    return says, float(last or 0)


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
