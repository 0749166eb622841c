"""A lane in which one key is most of what waits, and may take every slot."""

from collections.abc import Iterator

from .advice import Advice, percent, setting
from .seen import Seen

_LEAST = 100  # messages that wait, below which it is chance
_MOST_OF = 0.5  # of those, more than which are of one key


def find(seen: Seen) -> Iterator[Advice]:
    """Whether one key should leave slots to the others.

    Keys take turns, so that the others wait for no more than one message of it. But between two of
    theirs its tasks take all slots, and when they run for long, the next of theirs waits for one to
    end. With a single slot, a limit changes nothing.
    """
    lane, key = seen.lane, seen.longest_key
    if key is None or lane.max_running_per_key is not None or seen.slots < 2:
        return
    if seen.waiting < _LEAST or key.waiting <= _MOST_OF * seen.waiting:
        return
    what = (
        f"one key, {key.key!r:.100}, is most of its load: {key.waiting:,} of {seen.waiting:,} "
        f"messages that wait ({percent(key.waiting / seen.waiting)}), and {key.running:,} that "
        f"workers hold, of {seen.slots} slots; a task of another key waits until one of its tasks "
        "ends"
    )
    most = seen.slots // 2
    do = "let no key have more than half of the slots, or as many as you like to give it"
    if lane.prefetch != 1:
        do += "; prefetch is 1 with that, so leave it out of the lane"
    line = setting(lane.name, f"max_running_per_key = {most}")
    yield Advice(lane.name, "max_running_per_key", None, what, do, line)
