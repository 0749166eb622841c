"""Keys of lanes.toml that do not fit what their lane does."""

from collections.abc import Iterator

from ..capacity import wait_of
from ..config import Lane
from ..counting import Counted
from ..schema import KEYS, PROFILES
from ..values import parse_duration, spoken
from .advice import Advice, setting
from .place import LEAST_RUNS, longest
from .seen import Seen

_MANY = 1000  # runs, of which the longest says what is usual
_NOWHERE_NEAR = 0.1  # of a limit
_SOME = 0.1  # of the runs of a task
_FEW = 0.05  # of what came
_LEAST = 10  # of anything, below which it is chance
#: Durations as people write them.
_ROUND = (
    *("1s", "2s", "5s", "10s", "20s", "30s", "1m", "2m", "5m", "10m", "20m", "30m"),
    *("1h", "2h", "4h", "8h", "12h", "1d", "2d"),
)


def find(seen: Seen) -> Iterator[Advice]:
    """The keys of one lane."""
    yield from _unreached_time_limit(seen)
    for task, counted in seen.period.tasks.items():
        yield from _hit_time_limit(seen, task, counted)
        yield from _useless_retries(seen, task, counted)
    yield from _short_expiry(seen)
    yield from _hoarding_prefetch(seen)
    yield from _long_lease(seen)


def _unreached_time_limit(seen: Seen) -> Iterator[Advice]:
    """A default is no choice of the owner's, and is left alone."""
    lane, run = seen.lane, seen.period.all.run
    if lane.time_limit is None or run.count < _MANY or _is_default(lane, "time_limit"):
        return
    most = longest(run, lane)
    limit = _round_up(5 * most)
    if most <= _NOWHERE_NEAR * lane.time_limit and limit:
        what = (
            f"a time_limit of {spoken(lane.time_limit)}, and none of {run.count:,} runs took "
            f"longer than {spoken(most)}: a task that hangs keeps its slot until the limit"
        )
        yield _of_lane(seen, "time_limit", what, "lower it", f'time_limit = "{limit}"')


def _hit_time_limit(seen: Seen, task: str, counted: Counted) -> Iterator[Advice]:
    """Runs up to the limit, of a task that fails as often."""
    lane, runs = seen.lane, counted.run.count
    soft, hard = lane.soft_time_limit or lane.time_limit, lane.time_limit
    if soft is None or hard is None or runs < LEAST_RUNS:
        return
    # The edge below the limit is the nearest that is known; what ran on to it has run that long.
    edges = sorted(edge for edge in counted.run.buckets if edge < soft)
    cut = runs - sum(counted.run.buckets[edge] for edge in edges)
    ended_badly = sum(counted.outcomes[each] for each in ("failed", "retried", "poison"))
    if cut >= max(_LEAST, _SOME * runs) and ended_badly >= cut / 2:
        what = (
            f"{cut:,} of {runs:,} runs of {task} lasted to about the limit ({spoken(soft)}, then "
            f"{spoken(hard)}), and {ended_badly:,} failed or were retried"
        )
        do = f"raise it, or give {task} a time_limit of its own or a lane with a longer one"
        limit = _round_up(2 * hard)
        line = f'time_limit = "{limit}"' if limit else "time_limit = false"
        yield Advice(lane.name, "time_limit", task, what, do, setting(lane.name, line))


def _useless_retries(seen: Seen, task: str, counted: Counted) -> Iterator[Advice]:
    """Each success ends at most one row of retries: so few successes, so few that helped."""
    retried, succeeded = counted.outcomes["retried"], counted.outcomes["succeeded"]
    failed = counted.outcomes["failed"]
    if retried >= LEAST_RUNS and failed >= _LEAST and succeeded <= _FEW * retried:
        what = (
            f"{task} was retried {retried:,} times, and {succeeded:,} of its tasks succeeded where "
            f"{failed:,} failed for good"
        )
        do = (
            "mend what fails (dead list --group says why), retry only on errors that pass, or "
            "retry less"
        )
        yield Advice(
            *(seen.lane.name, "max_retries", task, what, do),
            "@app.task(max_retries=0), or fewer errors in autoretry_for",
        )


def _short_expiry(seen: Seen) -> Iterator[Advice]:
    """What expires while there are slots enough has too little time; else it is the slots."""
    lane, counted = seen.lane, seen.period.all
    if lane.expires is not None and lane.expires < lane.latency_slo:
        what = (
            f"a task expires after {spoken(lane.expires)}, and is in time when it starts within "
            f"{spoken(lane.latency_slo)}"
        )
        do = "let expires be the longer one, or lower latency_slo"
        line = _round_up(2 * lane.latency_slo)
        write = f'expires = "{line}"' if line else "expires = false"
        yield _of_lane(seen, "expires", what, do, write)
        return
    expired = counted.outcomes["expired"]
    usual = counted.wait.quantile(0.5)
    flow = seen.flow
    enough = flow and wait_of(flow, seen.slots).beyond(lane.latency_slo) <= 1 - lane.slo_target
    if expired >= max(_LEAST, _FEW * counted.total) and usual is not None and enough:
        after = f"after {spoken(lane.expires)}" if lane.expires else "when their senders said"
        what = (
            f"{expired:,} of {counted.total:,} tasks expired ({after}), and half of the others "
            f"waited for up to about {spoken(usual)}"
        )
        do = "give them longer, unless nobody wants them by then"
        limit = _round_up(2 * lane.expires) if lane.expires else None
        line = setting(lane.name, f'expires = "{limit}"') if limit else ""
        yield Advice(lane.name, "expires", None, what, do, line)


def _hoarding_prefetch(seen: Seen) -> Iterator[Advice]:
    """With one worker, nobody else could run what it holds."""
    lane, mean = seen.lane, seen.period.all.run.mean
    if lane.prefetch == 1 or seen.workers == 1 or seen.period.all.run.count < LEAST_RUNS:
        return
    behind = (lane.prefetch - 1) * (mean or 0.0)
    if behind > lane.latency_slo:
        what = (
            f"a worker holds {lane.prefetch} messages for each slot, and tasks run for "
            f"{spoken(mean or 0.0)} on average: the last of them waits for {spoken(behind)} in "
            f"it, beyond {spoken(lane.latency_slo)}, while another of {seen.workers} workers may "
            f"be free"
        )
        do = "fetch for a free slot alone; that costs a round trip of about a millisecond a task"
        yield _of_lane(seen, "prefetch", what, do, "prefetch = 1")


def _long_lease(seen: Seen) -> Iterator[Advice]:
    """Where workers did die, and what they held waited for its lease to end."""
    lane, again = seen.lane, seen.period.all.redelivered
    usual = parse_duration(next(key for key in KEYS if key.name == "lease").default)
    if again and lane.lease > max(usual, lane.latency_slo):
        what = (
            f"{again:,} starts were of tasks that may have run before; one whose worker is lost "
            f"waits for {spoken(lane.lease)} until another takes it, beyond "
            f"{spoken(lane.latency_slo)}"
        )
        do = "shorten it: it is renewed while a worker lives, so that long tasks do not need it"
        yield _of_lane(seen, "lease", what, do, f'lease = "{usual:g}s"')


def _of_lane(seen: Seen, about: str, what: str, do: str, line: str) -> Advice:
    return Advice(seen.lane.name, about, None, what, do, setting(seen.lane.name, line))


def _is_default(lane: Lane, name: str) -> bool:
    key = next(key for key in KEYS if key.name == name)
    values = [key.parse(key.default_in(profile)) for profile in PROFILES]
    return getattr(lane, name) in values


def _round_up(seconds: float) -> str | None:
    """The next duration that people write; None: there is none that long."""
    return next((text for text in _ROUND if parse_duration(text) >= seconds), None)
