"""Too few workers, too many, or enough of them for what comes in bursts."""

from collections.abc import Iterator

from ..capacity import HIGHEST_USE
from ..values import spoken
from .advice import Advice, percent, setting
from .seen import Seen, Sizing, size

_TIGHT = 0.9  # of the slots' time, or more: with a little more to do, the queue would only grow
_LEAST_LATE = 10  # tasks that started late; fewer are no pattern
_A_DAY = 20 * 3600  # seconds, nearly: who sees less may not have seen the busiest hour
_MOST_WORKERS = 100  # that lanes.toml takes


def find(seen: Seen) -> Iterator[Advice]:
    """Whether the lane's workers are as many as its objective wants."""
    sizing = size(seen)
    if sizing is None or seen.flow is None:
        return
    counted = seen.period.all
    is_late = not seen.keeps and counted.total - counted.good >= _LEAST_LATE
    is_tight = seen.flow.load >= _TIGHT * seen.slots
    if (is_late or is_tight) and sizing.workers > -(-seen.workers // seen.hosts):
        yield _more(seen, sizing) if sizing.workers > seen.lane.workers else _away(seen, sizing)
    elif is_late:
        yield _bursts(seen, sizing)
    elif (
        (seen.period.since or 0) >= _A_DAY
        and 2 * sizing.workers * seen.hosts <= seen.workers
        and sizing.workers < seen.lane.workers
    ):
        yield _fewer(seen, sizing)


def _more(seen: Seen, sizing: Sizing) -> Advice:
    return Advice(seen.lane.name, "workers", None, _too_few(seen, sizing), *_so_many(seen, sizing))


def _away(seen: Seen, sizing: Sizing) -> Advice:
    do = (
        f"lanes.toml has enough, {seen.lane.workers}, and {seen.workers} are there: start the "
        "others"
    )
    return Advice(seen.lane.name, "workers", None, _too_few(seen, sizing), do)


def _too_few(seen: Seen, sizing: Sizing) -> str:
    what = f"too few workers: {_came(seen, sizing)}"
    if sizing.busiest.load >= seen.slots:
        what += f", so that the queue only grew; {_measured(seen)}"
    else:
        what += (
            f"; {percent(sizing.wait.beyond(seen.lane.latency_slo))} would start late in the long "
            f"run, and wait for {spoken(sizing.wait.mean)} on average; {_measured(seen)}"
        )
    return what


def _fewer(seen: Seen, sizing: Sizing) -> Advice:
    what = f"more workers than it wants: {_came(seen, sizing)}; {_measured(seen)}"
    return Advice(seen.lane.name, "workers", None, what, *_so_many(seen, sizing))


def _bursts(seen: Seen, sizing: Sizing) -> Advice:
    what = (
        f"late, though its workers suffice for what comes if that comes evenly: "
        f"{_came(seen, sizing)}; {_measured(seen)}"
    )
    do = (
        "tasks came many at once, or workers were away or paused, which counts cannot tell apart; "
        "more workers shorten a burst in proportion, and a longer latency_slo allows for it"
    )
    return Advice(seen.lane.name, "workers", None, what, do)


def _came(seen: Seen, sizing: Sizing) -> str:
    flow = sizing.busiest
    return (
        f"in the busiest {spoken(sizing.seconds)}, {flow.arrivals:.3g} tasks a second came, each "
        f"of which takes a slot for {spoken(flow.taken)} (variation {flow.variation:.2g}): "
        f"{flow.load:.3g} of {seen.slots} slots busy"
    )


def _measured(seen: Seen) -> str:
    counted = seen.period.all
    return (
        f"{percent(seen.late)} of {counted.total:,} did not start within "
        f"{spoken(seen.lane.latency_slo)}"
    )


def _so_many(seen: Seen, sizing: Sizing) -> tuple[str, str]:
    """What to do, and what to write."""
    use = sizing.busiest.load / sizing.slots
    each = f" on each of {seen.hosts} hosts" if seen.hosts > 1 else ""
    do = (
        f"{sizing.slots} slots start {percent(seen.lane.slo_target)} in time at {percent(use)} use "
        f"(at most {percent(HIGHEST_USE)}), which are {sizing.workers} workers of "
        f"{seen.lane.concurrency}{each}"
    )
    if sizing.workers > _MOST_WORKERS:
        concurrency = -(-sizing.slots // seen.workers)
        return do, setting(seen.lane.name, f"concurrency = {concurrency}")
    return do, setting(seen.lane.name, f"workers = {sizing.workers}")
