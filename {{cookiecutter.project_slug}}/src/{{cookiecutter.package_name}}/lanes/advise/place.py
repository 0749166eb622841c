"""Tasks whose run time does not fit their lane, and the lane that they fit."""

import math
from collections.abc import Iterator, Sequence

from ..capacity import Flow, wait_of
from ..config import Lane
from ..counting import OTHER, Counted, Histogram
from ..values import spoken
from .advice import Advice, percent
from .seen import Seen, late

LEAST_RUNS = 20  # of a task, and of the others of its lane together
_MUCH = 0.5  # of its lane's busy time, or more, is of such tasks
_APART = 4  # times as long as the others' is its run time, or more


def find(seen: Seen, everywhere: Sequence[Seen]) -> Iterator[Advice]:
    """The task of a lane that the others wait for, or those others."""
    tasks = seen.period.tasks
    apart = [name for name in tasks if name != OTHER and _is_long(seen, tasks[name])]
    together = _sum(tasks[name] for name in apart)
    others = _sum(counted for name, counted in tasks.items() if name not in apart)
    if not _keep_busy(seen, together, others) or not _suffer(seen, others):
        return
    said = set()
    for name in apart:
        if _p95(tasks[name]) < _APART * _p95(others):
            continue
        for advice in _moved(seen, name, tasks[name], others, everywhere):
            if advice.task not in said:
                said.add(advice.task)
                yield advice


def _is_long(seen: Seen, counted: Counted) -> bool:
    """Whether a task keeps a slot for longer than others of its lane may wait."""
    return counted.run.count >= LEAST_RUNS and _p95(counted) > seen.lane.latency_slo


def _keep_busy(seen: Seen, together: Counted, others: Counted) -> bool:
    """Whether long tasks take much of a lane's time, and the others are short."""
    if min(together.run.count, others.run.count) < LEAST_RUNS:
        return False
    busy = together.run.sum + others.run.sum
    return together.run.sum >= _MUCH * busy and _p95(others) <= seen.lane.latency_slo


def _suffer(seen: Seen, others: Counted) -> bool:
    """Whether the others start late, or would by what is predicted, and would not alone."""
    if late(others) > 1 - seen.lane.slo_target:
        return True
    flow, slo = seen.flow, seen.lane.latency_slo
    if flow is None:
        return False
    share = others.run.count / seen.period.all.run.count
    alone = Flow.of(share * flow.arrivals, others.run)
    beyond = [wait_of(each, seen.slots).beyond(slo) for each in (flow, alone)]
    return beyond[0] > 1 - seen.lane.slo_target >= beyond[1]


def _moved(
    seen: Seen, name: str, counted: Counted, others: Counted, everywhere: Sequence[Seen]
) -> Iterator[Advice]:
    how_it_is = (
        f"{name} runs for {spoken(_p95(counted))} at its p95, where {seen.lane.name} is to start "
        f"tasks within {spoken(seen.lane.latency_slo)}; it takes "
        f"{percent(counted.run.sum / seen.period.all.run.sum)} of the lane's busy time "
        f"({counted.run.count:,} runs), and of {others.total:,} others, which run for "
        f"{spoken(_p95(others))}, {percent(late(others))} started late"
    )
    if home := _home(seen, counted, everywhere):
        do = f"move it to {home.name}, whose tasks may wait for {spoken(home.latency_slo)}"
        yield _advice(seen, name, how_it_is, do, home.name)
        return
    if others_moved := list(_others_moved(seen, name, how_it_is, everywhere)):
        yield from others_moved
        return
    declared = {each.lane.name for each in everywhere}
    fresh = "slow" if "slow" not in declared else f"{seen.lane.name[:25]}_slow"
    do = f'move it to a lane of its own: [lanes.{fresh}] profile = "slow"'
    yield _advice(seen, name, how_it_is, do, fresh)


def _others_moved(seen: Seen, name: str, what: str, everywhere: Sequence[Seen]) -> Iterator[Advice]:
    """Long tasks belong in the lane that may wait for longest: there, the short ones should go."""
    urgent = [each for each in everywhere if each.lane.latency_slo < seen.lane.latency_slo]
    if len(urgent) < len(everywhere) - 1:
        return
    for other, counted in seen.period.tasks.items():
        if other in (name, OTHER) or counted.run.count < LEAST_RUNS:
            continue
        if home := _home(seen, counted, urgent):
            yield _advice(seen, other, what, f"move {other} to {home.name}", home.name)


def _advice(seen: Seen, task: str, what: str, do: str, to: str) -> Advice:
    where = f'@app.task(lane="{to}"), or [routes] "{task}" = "{to}" where the task names no lane'
    return Advice(seen.lane.name, "lane", task, what, do, where)


def _home(seen: Seen, counted: Counted, among: Sequence[Seen]) -> Lane | None:
    """The most urgent other lane in which a task would keep nobody waiting beyond an objective."""
    fits = [
        each.lane
        for each in among
        if each is not seen
        and each.lane.latency_slo >= _p95(counted)
        and (each.lane.time_limit or math.inf) >= longest(counted.run, seen.lane)
    ]
    return min(fits, key=lambda lane: lane.latency_slo, default=None)


def longest(run: Histogram, lane: Lane) -> float:
    """Seconds that none of the runs took longer than, and their lane lets none."""
    edge = max((edge for edge, count in run.buckets.items() if count), default=0.0)
    return min(edge, lane.time_limit or math.inf)


def _p95(counted: Counted) -> float:
    return counted.run.quantile(0.95) or 0.0


def _sum(counted: Iterator[Counted]) -> Counted:
    return sum(counted, Counted())
