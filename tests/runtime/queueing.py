"""A queue with several servers, simulated: what formulas and real workers are compared with."""

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean, pvariance

from acme_tasks.lanes.capacity import Flow

Task = tuple[float, float]  # seconds after the first when it comes, and for which it runs


def waits(tasks: Iterable[Task], slots: int) -> Iterator[float]:
    """Seconds that each waits for a free slot; first come, first served."""
    free = [0.0] * slots  # when each slot is
    for comes, runs in tasks:
        starts = max(comes, free[0])
        heapq.heapreplace(free, starts + runs)
        yield starts - comes


def poisson(arrivals: float, runs: Iterable[float], seed: int) -> Iterator[Task]:
    """Tasks that come independently of each other, so many a second."""
    # Seeded, so that each run of the tests has the same.
    gaps = random.Random(seed)  # noqa: S311
    comes = itertools.accumulate(gaps.expovariate(arrivals) for _ in itertools.count())
    return zip(comes, runs)  # noqa: B905 - one of them has no end


def exponential(mean: float, count: int, seed: int) -> list[float]:
    """Run times in seconds."""
    drawn = random.Random(seed)  # noqa: S311 - likewise
    return [drawn.expovariate(1 / mean) for _ in range(count)]


def flow_of(tasks: Sequence[Task]) -> Flow:
    """What these amount to."""
    runs = [run for _, run in tasks]
    mean = fmean(runs)
    return Flow(len(tasks) / tasks[-1][0], mean, pvariance(runs) / mean**2)
