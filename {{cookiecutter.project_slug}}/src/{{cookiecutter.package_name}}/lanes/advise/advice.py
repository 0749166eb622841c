"""One thing that would be better otherwise, and how numbers are said."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """What was found in a lane, and what to do about it."""

    lane: str
    about: str  # "lane" of a task that is in the wrong one, "workers", or a key of lanes.toml
    task: str | None  # None: the lane as a whole
    what: str  # how it is, with its numbers
    do: str
    write: str = ""  # the line for lanes.toml or the task, where there is one


def percent(share: float) -> str:
    """Such as "12 %"; with a decimal, or more, where it is nearly nothing or all."""
    shown = 100 * share
    if shown in (0, 100) or 1 <= shown <= 99:
        return f"{shown:.0f} %"
    return f"{shown:.2g} %" if shown < 1 else f"{shown:.1f} %"


def setting(lane: str, line: str) -> str:
    """A lane's key in lanes.toml, with its table before it."""
    return f"[lanes.{lane}] {line}"
