"""What a worker counts of its tasks, and what is made of it when it is read.

Counted is where it happens, in a worker's main process, which hears of every child. A worker's
`Tally` gathers it, and once a second Redis is told; see redis/counters.py. So no message pays for
it, and no worker needs a port: with prefork, a port is one child's, which knows nothing of others.
"""

import math
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

#: Upper edges of the buckets of a histogram, in seconds; beyond the last there is one more.
EDGES = tuple(float(f"{mantissa}e{power}") for power in range(-3, 5) for mantissa in (1, 2.5, 5))
#: Names of tasks that a lane counts apart; the others are one more, of this name.
MOST_NAMES = 100
OTHER = "other"
_LONGEST_NAME = 200  # characters
_FOREVER = 1e9  # seconds, 30 years: a sender may say anything of when it sent


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long something took, many times."""

    #: By the upper edge in seconds, of the last infinite: how many lie between it and that below.
    buckets: Mapping[float, int] = field(default_factory=dict)
    sum: float = 0.0  # seconds
    squares: float = 0.0  # of seconds, summed; of waits they are not kept

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.buckets.values())

    @property
    def mean(self) -> float | None:
        """Seconds; None of nothing."""
        return self.sum / self.count if self.count else None

    @property
    def variance(self) -> float | None:
        """Seconds squared; None of nothing."""
        mean = self.mean
        return None if mean is None else max(0.0, self.squares / self.count - mean * mean)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each edge with how many lie below it, as Prometheus has it; the last is infinite."""
        total = 0
        # Those that are empty, too: where a bucket begins, the one before it ends.
        there = dict.fromkeys((*EDGES, math.inf), 0) | dict(self.buckets)
        for edge, count in sorted(there.items()):
            total += count
            yield edge, total

    def quantile(self, share: float) -> float | None:
        """The seconds below which this share of all lies; None of nothing.

        Within a bucket, as if they lay evenly; of those beyond the last edge, that edge.
        """
        below, before, wanted = 0.0, 0, share * self.count
        for edge, count in self.cumulative():
            if count >= wanted and count > before:
                if math.isinf(edge):
                    return below
                return below + (edge - below) * (wanted - before) / (count - before)
            below, before = edge, count
        return None

    def __add__(self, other: "Histogram") -> "Histogram":
        """Both together."""
        both = Counter(self.buckets)
        both.update(other.buckets)
        return Histogram(both, self.sum + other.sum, self.squares + other.squares)


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted of a task, or of all."""

    #: Those that are done with: "succeeded", "retried", "ignored", "revoked", or why set aside.
    outcomes: Counter[str] = field(default_factory=Counter)
    wait: Histogram = field(default_factory=Histogram)  # from sent, or due, to its first start
    run: Histogram = field(default_factory=Histogram)  # from each start to its end
    good: int = 0  # started in time
    total: int = 0  # started at all, or expired
    redelivered: int = 0  # started, and may have run before

    def __add__(self, other: "Counted") -> "Counted":
        """Both together."""
        return Counted(
            self.outcomes + other.outcomes,
            self.wait + other.wait,
            self.run + other.run,
            self.good + other.good,
            self.total + other.total,
            self.redelivered + other.redelivered,
        )


@dataclass(frozen=True, slots=True)
class Period:
    """What was counted in the last so many seconds."""

    seconds: float  # up to now
    tasks: Mapping[str, Counted]  # by name
    backlog: int | None  # messages that waited when it began; None: nobody looked
    since: float | None  # seconds before now when `backlog` was looked at

    @property
    def all(self) -> Counted:
        """Of all tasks."""
        return sum(self.tasks.values(), Counted())


@dataclass(frozen=True, slots=True)
class Load:
    """A worker that is there."""

    node: str  # its node name
    slots: int  # tasks that it runs at once
    running: int  # tasks
    clock: float  # seconds that its host's clock is behind the server's


#: A thing that was counted, of which task, and how many more. With a fraction, it is a sum.
Addition = tuple[str, str, int | float]


class Tally:
    """What this worker has counted and Redis has not been told; safe from any thread."""

    def __init__(self, latency_slo: float) -> None:
        """A task that waits for up to `latency_slo` seconds starts in time."""
        self._slo = latency_slo
        self._edges = sorted({*EDGES, latency_slo})  # of waits: a bucket ends just there
        self._tasks: dict[str, _Of] = {}
        self._lock = threading.Lock()

    def started(self, task: str, wait: float | None, *, again: bool) -> None:
        """A task begins to run.

        Args:
            wait: seconds since it was sent, or due if that was later; None: nobody knows.
            again: it may have run before, so that this is no wait in the queue.
        """
        with self._lock:
            if again:
                self._of(task).start_again()
            elif wait is not None and not math.isnan(wait):
                wait = min(max(wait, 0.0), _FOREVER)
                place = bisect_left(self._edges, wait)
                self._of(task).start(wait, place, in_time=wait <= self._slo)

    def ran(self, task: str, seconds: float) -> None:
        """A task has run, whatever became of it."""
        with self._lock:
            self._of(task).run(seconds, bisect_left(EDGES, seconds))

    def ended(self, task: str, outcome: str) -> None:
        """A task is done with; one that expired did not start in time."""
        with self._lock:
            self._of(task).end(outcome)

    def take(self) -> list[Addition]:
        """What was counted since this was last asked."""
        with self._lock:
            tasks, self._tasks = self._tasks, {}
        return [
            (what, name, amount)
            for name, counted in tasks.items()
            for what, amount in counted.amounts(self._edges)
            if amount
        ]

    def _of(self, task: str) -> "_Of":
        if task in self._tasks:
            return self._tasks[task]
        fits = 0 < len(task) <= _LONGEST_NAME and task.isprintable()
        return self._tasks.setdefault(task if fits else OTHER, _Of(len(self._edges) + 1))


class _Of:
    """Counts of one task; its histograms are lists, since this is done for each message."""

    def __init__(self, buckets: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self.waits, self.runs = [0] * buckets, [0] * (len(EDGES) + 1)
        self.wait = self.ran = self.squares = 0.0  # seconds, and seconds squared of `ran`
        self.good = self.total = self.again = 0

    def start(self, wait: float, place: int, *, in_time: bool) -> None:
        self.waits[place] += 1
        self.wait += wait
        self.total += 1
        self.good += in_time

    def start_again(self) -> None:
        self.again += 1

    def run(self, seconds: float, place: int) -> None:
        self.runs[place] += 1
        self.ran += seconds
        self.squares += seconds * seconds

    def end(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self.total += outcome == "expired"

    def amounts(self, edges: Iterable[float]) -> Iterator[tuple[str, int | float]]:
        """By what they are called in Redis; `edges` are those of waits, in seconds."""
        yield from ((f"outcome={outcome}", count) for outcome, count in self.outcomes.items())
        for what, ends, counts in (("wait", edges, self.waits), ("run", EDGES, self.runs)):
            ends_and_last = (*ends, math.inf)
            for edge, count in zip(ends_and_last, counts, strict=True):
                yield f"{what}<={edge}", count
        yield from (("good", self.good), ("total", self.total), ("again", self.again))
        yield from (("wait", self.wait), ("run", self.ran), ("run^2", self.squares))


def gather(additions: Iterable[Addition]) -> dict[str, Counted]:
    """By task, what `Tally.take` gave, once or many times."""
    found: dict[str, dict[str, float]] = {}
    for what, task, amount in additions:
        of_task = found.setdefault(task, {})
        of_task[what] = of_task.get(what, 0) + amount
    return {task: _counted(amounts) for task, amounts in found.items()}


def _counted(amounts: Mapping[str, float]) -> Counted:
    histograms: dict[str, dict[float, int]] = {"wait": {}, "run": {}}
    outcomes: Counter[str] = Counter()
    for what, amount in amounts.items():
        of, separator, edge = what.partition("<=")
        if separator:
            histograms[of][float(edge)] = int(amount)
        elif what.startswith("outcome="):
            outcomes[what.removeprefix("outcome=")] = int(amount)
    return Counted(
        outcomes,
        Histogram(histograms["wait"], amounts.get("wait", 0.0)),
        Histogram(histograms["run"], amounts.get("run", 0.0), amounts.get("run^2", 0.0)),
        *(int(amounts.get(what, 0)) for what in ("good", "total", "again")),
    )
