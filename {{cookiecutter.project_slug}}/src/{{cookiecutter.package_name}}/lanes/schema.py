"""The keys of lanes.toml: for each its rule, its default (of a lane by profile), its sentence.

This is the one list of them. `docs/reference.md` has it as a table, and the template's tests see
that the two agree.
"""

from dataclasses import dataclass
from typing import Any

from .timetable import MISSED
from .values import (
    Parser,
    choice,
    optional,
    parse_arguments,
    parse_cron,
    parse_duration,
    parse_every,
    parse_key,
    parse_keywords,
    parse_queue_name,
    parse_rate,
    parse_share,
    parse_size,
    parse_text,
    parse_timezone,
    parse_truth,
    whole_number,
)

PROFILES = ("quick", "standard", "slow")
POOLS = ("prefork", "threads", "solo")
DRAINS = ("finish", "requeue")
SHORTEST_LEASE = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a lane, or of an entry of the schedule."""

    name: str
    parse: Parser  # from the value in the file; raises ValueError with the rule
    default: Any  # as written in the file; None: it follows from others, and `what` says how
    what: str  # a sentence for its owner
    quick: Any = None  # instead of `default`, in this profile
    slow: Any = None

    def default_in(self, profile: str) -> Any:
        """What the key is where the file says nothing, as it would be written there."""
        own = {"quick": self.quick, "slow": self.slow}.get(profile)
        return self.default if own is None else own


def _parse_lease(value: object) -> float:
    # With 10 ms, on a busy machine, half of what ran was taken back and run again, or set aside.
    seconds = parse_duration(value)
    if seconds < SHORTEST_LEASE:
        raise ValueError(
            f'expected at least "{1000 * SHORTEST_LEASE:.0f}ms": a worker renews each third of it, '
            "and may be late"
        )
    return seconds


_COUNT = whole_number(1, 100_000)

KEYS = (
    Key("queue", parse_queue_name, None, 'the name of its queue; `"<lane>_tasks"` by default'),
    # quick: somebody waits for the answer.
    Key(
        "latency_slo",
        parse_duration,
        "30s",
        "how long a task may wait in its queue before it starts",
        quick="1s",
        slow="10m",
    ),
    Key(
        "slo_target",
        parse_share,
        0.99,
        "the share of tasks that should start within `latency_slo`, over 30 days",
    ),
    Key("concurrency", whole_number(1, 1000), 2, "tasks at once, in each worker", quick=4),
    Key("workers", whole_number(1, 100), 1, "worker processes, each with `concurrency`"),
    Key(
        "pool",
        choice(*POOLS),
        "prefork",
        '`"prefork"`, `"threads"` or `"solo"`; time limits need `"prefork"`',
    ),
    # quick: a few tasks held ready spare a round trip between them. Elsewhere a message is fetched
    # for a free slot alone, so that no worker holds what another could run.
    Key(
        "prefetch",
        whole_number(1, 1000),
        1,
        "messages a worker holds for each of its slots, the running one included",
        quick=4,
    ),
    Key(
        "max_running_per_key",
        optional(_COUNT),
        False,
        "tasks of one key at once, over all workers",
    ),
    Key(
        "rate_per_key",
        optional(parse_rate),
        False,
        'how often tasks of one key start, such as `"100/m"`: so far apart at the least',
    ),
    Key(
        "time_limit",
        optional(parse_duration),
        "5m",
        "a task that runs for longer is killed",
        quick="30s",
        slow="1h",
    ),
    Key(
        "soft_time_limit",
        optional(parse_duration),
        None,
        "a task that runs for longer gets `SoftTimeLimitExceeded`; 90 % of `time_limit` by default",
    ),
    Key(
        "expires",
        optional(parse_duration),
        False,
        "a task that is older than this, from when it was due, is set aside",
        quick="10m",
    ),
    Key("max_retries", whole_number(0, 1000), 3, "runs after the first, for `retry()`"),
    Key(
        "drain",
        choice(*DRAINS),
        "finish",
        'what a stopping worker does with running tasks: `"finish"`, or `"requeue"` (prefork only)',
        slow="requeue",
    ),
    Key(
        "drain_timeout",
        parse_duration,
        "30s",
        'how long `"requeue"` lets them run before it hands them back',
    ),
    Key(
        "max_deliveries",
        whole_number(1, 1000),
        3,
        "deliveries that no worker lived to acknowledge, before a message is set aside",
    ),
    # In a rolling deploy, workers of the old release are given tasks of the new one.
    Key(
        "unknown_wait",
        optional(parse_duration),
        "1h",
        "how long a task that no worker knows waits for a release that does, before it is set "
        "aside",
    ),
    Key(
        "lease",
        _parse_lease,
        "15s",
        "how long a worker may give no sign of life before its tasks are taken back; "
        '`"500ms"` or more',
    ),
    Key(
        "dead_cap",
        _COUNT,
        10_000,
        "how many dead letters are kept; those of tasks that ran are dropped for it, the oldest "
        "first",
    ),
    Key("dead_size", parse_size, "256M", "of what size together, their reports included; likewise"),
    Key("dead_age", parse_duration, "30d", "for how long those of tasks that ran are kept"),
    Key("results", parse_truth, True, "whether return values are stored, so that `.get()` works"),
    Key("max_tasks_per_child", optional(_COUNT), False, "tasks, then a fresh child process"),
    Key(
        "max_memory_per_child",
        optional(parse_size),
        False,
        'memory, with what it shares with its worker, then a fresh child process, such as `"512M"`',
    ),
    # slow: nobody waits, and it must not take the processor from those for whom somebody does.
    Key(
        "nice",
        whole_number(0, 19),
        0,
        "0 to 19: how far the lane gives way when the processor is busy",
        slow=10,
    ),
    Key(
        "memory_max",
        optional(parse_size),
        False,
        "memory of a worker with its children, under systemd and in a container, such as "
        '`"2G"`; with `false`, all there is',
    ),
)

#: The keys of an entry of the schedule.
ENTRY_KEYS = (
    Key("task", parse_text, None, "the task's name"),
    Key("cron", parse_cron, None, 'when: minute, hour, day, month, weekday, such as `"0 3 * * *"`'),
    Key("every", parse_every, None, 'or how often, such as `"10m"`; at its multiples since 1970'),
    Key("timezone", parse_timezone, "UTC", 'of `cron`, such as `"Europe/Berlin"`'),
    Key("args", parse_arguments, [], "the task's positional arguments"),
    Key("kwargs", parse_keywords, {}, "its keyword arguments"),
    Key("lane", parse_text, None, "another lane than the task's own"),
    Key("expires", parse_duration, None, "another expiry than the lane's"),
    Key("key", parse_key, None, "the key of its messages, where the task says none or another"),
    Key(
        "missed",
        choice(*MISSED),
        "once",
        'after an outage: `"none"`, `"once"` for all that was missed, or `"all"`, 100 at the most',
    ),
)
