"""How long tasks of a lane will wait with so many slots, and how many slots it wants.

A lane is a queue with several servers. Arrivals are taken as independent of each other (Poisson),
since only their number is counted. The wait is Erlang's (his C formula, which takes run times as
exponential), multiplied by (1 + variation) / 2 for run times that vary otherwise, as Allen and
Cunneen do; the share that waits for longer than a time falls off exponentially.
"""

import math
from dataclasses import dataclass

from .config import Lane
from .counting import Histogram, Period

#: Seconds between two tasks in a slot: 4 slots run 2,400 tasks a second that do nothing.
TURNAROUND = 0.002
HIGHEST_USE = 0.75  # of the slots: what is left is for arrivals that come together
LEAST_RUNS = 50  # with fewer, a mean and a variation say nothing yet
LEAST_TIME = 600.0  # seconds; likewise of a rate
_MOST_SLOTS = 100_000  # of a lane; with more, at HIGHEST_USE, nothing waits


@dataclass(frozen=True, slots=True)
class Flow:
    """What comes to a lane."""

    arrivals: float  # tasks a second, each run of a task that is retried included
    taken: float  # mean seconds for which each takes a slot
    variation: float  # of that time: its variance by its mean squared; 1 where exponential

    @classmethod
    def of(cls, arrivals: float, run: Histogram) -> "Flow":
        """Tasks that run for as long as these did, of which there is one at least."""
        taken = (run.mean or 0.0) + TURNAROUND
        return cls(arrivals, taken, (run.variance or 0.0) / taken**2)

    @property
    def load(self) -> float:
        """Slots that are busy on average, as long as there are enough of them."""
        return self.arrivals * self.taken


@dataclass(frozen=True, slots=True)
class Wait:
    """How long tasks wait before they start."""

    share: float  # of the tasks that wait at all; 1.0 where too much comes
    conditional: float  # mean seconds of those that do; infinite where too much comes

    @property
    def mean(self) -> float:
        """Seconds, of all tasks."""
        return self.share * self.conditional

    def beyond(self, seconds: float) -> float:
        """The share of the tasks that wait for longer than this."""
        return self.share * math.exp(-seconds / self.conditional)


def flow_of(period: Period, waiting: int) -> Flow | None:
    """What came to a lane in `period`; None where it holds too little to say.

    What came has started, has expired, or waits now and did not when the period began.

    Args:
        waiting: messages that wait now.
    """
    counted = period.all
    if counted.run.count < LEAST_RUNS or period.since is None or period.since < LEAST_TIME:
        return None
    # Whose sender does not say when it was sent has a run and no wait.
    started = max(counted.wait.count + counted.redelivered, counted.run.count)
    came = started + counted.outcomes["expired"] + waiting - (period.backlog or 0)
    return Flow.of(max(0, came) / period.since, counted.run)


def wait_of(flow: Flow, slots: int) -> Wait:
    """How long tasks wait with so many slots, in the long run."""
    return _wait(flow, slots, _blocked(flow.load, slots))


def slots_wanted(flow: Flow, slo: float, share: float) -> int:
    """The fewest slots with which `share` of the tasks start within `slo` seconds.

    With them, no more than HIGHEST_USE of the slots' time is used.
    """
    slots = max(1, math.ceil(flow.load / HIGHEST_USE))
    if slots > _MOST_SLOTS:
        return slots
    blocked = _blocked(flow.load, slots)
    while _wait(flow, slots, blocked).beyond(slo) > 1 - share:
        slots += 1
        blocked = _with_one_more(blocked, flow.load, slots)
    return slots


def wanted_workers(period: Period, lane: Lane, waiting: int) -> int | None:
    """The fewest workers of the lane with which it meets its objective; None: too little data.

    They also work off what waits now, in as long as it was counted for.

    Args:
        period: the last hour, say; shorter ones follow what comes sooner, and vary more.
        waiting: messages that wait now.
    """
    flow = flow_of(period, waiting)
    if flow is None or period.since is None:
        return None
    more = Flow(flow.arrivals + waiting / period.since, flow.taken, flow.variation)
    return math.ceil(slots_wanted(more, lane.latency_slo, lane.slo_target) / lane.concurrency)


def _wait(flow: Flow, slots: int, blocked: float) -> Wait:
    if flow.load >= slots:
        return Wait(1.0, math.inf)
    use = flow.load / slots
    share = blocked / (1 - use * (1 - blocked))
    return Wait(share, (1 + flow.variation) / 2 * flow.taken / (slots - flow.load))


def _blocked(load: float, slots: int) -> float:
    """Erlang's B formula: the share that would find no free slot, if none waited."""
    blocked = 1.0
    for number in range(1, slots + 1):
        blocked = _with_one_more(blocked, load, number)
    return blocked


def _with_one_more(blocked: float, load: float, slots: int) -> float:
    """Erlang B of `slots`, from that of one less: all terms are positive, so nothing cancels."""
    return load * blocked / (slots + load * blocked)
