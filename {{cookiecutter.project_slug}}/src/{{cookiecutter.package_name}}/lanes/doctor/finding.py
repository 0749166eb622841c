"""What a check found, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

from ..redis.refusals import lacks_right

#: A note is worth knowing; a problem loses or delays tasks, now or with the next mishap.
Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str  # "versions", "broker", "results", "lanes", "schedule", "deploy" or "machine"
    level: Level
    what: str  # how it is, in one line without secrets
    do: str = ""  # what to change; empty when it is well


def weight(error: BaseException) -> Level:
    """How much it weighs that something could not be looked at: a right that lacks is no fault."""
    return "note" if lacks_right(error) else "problem"


def refused(area: str, line: str, *, level: Level = "problem") -> Finding:
    """What a `BrokerError` says, as a finding; its way out stands behind the first semicolon."""
    what, _, do = line.partition("; ")
    return Finding(area, level, what, do)
