"""What would be better otherwise: tasks in the wrong lane, workers, keys that do not fit.

All is reckoned from what the workers have counted. What it takes for granted is in `ASSUMED`.
"""

from collections.abc import Iterator, Sequence

from . import keys, limits, place, slots
from .advice import Advice
from .seen import Seen, Sizing, look, size

__all__ = ["ASSUMED", "Advice", "Seen", "Sizing", "examine", "look", "size"]

#: What a number of workers rests on.
ASSUMED = (
    "Reckoned with: tasks that come independently of each other, at the rate and with the run "
    "times of the busiest part of the period; slots that do not slow each other down, so with "
    "processor and memory to spare; Erlang's C formula, times (1 + variation) / 2, where "
    "variation is the variance of the run times by their mean squared."
)


def examine(lanes: Sequence[Seen], only: str | None = None) -> Iterator[Advice]:
    """What to change in every lane, or in the one of this name.

    Workers are not advised to a lane in which a task is in the wrong place: its move changes what
    the lane wants.
    """
    for seen in lanes:
        if only in (None, seen.lane.name):
            misplaced = list(place.find(seen, lanes))
            yield from misplaced or slots.find(seen)
            yield from limits.find(seen)
            yield from keys.find(seen)
