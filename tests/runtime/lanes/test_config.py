from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from acme_tasks.lanes import schema, values
from acme_tasks.lanes.config import Lane, load
from acme_tasks.lanes.errors import ConfigError, RoutingError

Write = Callable[[str], Path]

GOOD = """
default_lane = "quick"
[lanes.quick]
[lanes.slow]
"""

KEYS = (
    "profile, queue, latency_slo, slo_target, concurrency, workers, pool, prefetch, "
    "max_running_per_key, rate_per_key, time_limit, soft_time_limit, expires, max_retries, "
    "drain, drain_timeout, max_deliveries, unknown_wait, lease, "
    "dead_cap, dead_size, dead_age, results, max_tasks_per_child, "
    "max_memory_per_child, nice, memory_max"
)
QUEUE_RULE = (
    "expected a queue name of letters, digits, '_', '.' or '-', "
    "not one of Celery's own (celeryev..., ...pidbox, unacked...)"
)


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# One mistake each, at one key of the lane `a`: what is written there, and what is said about it.
LANE_MISTAKES = {
    "unknown key with a suggestion": (
        'latency_sla = "1s"',
        'lanes.a.latency_sla: unknown key; did you mean "latency_slo"?',
    ),
    "unknown key like no other": (
        "zzz = 1",
        f"lanes.a.zzz: unknown key; known: {KEYS}",
    ),
    "unknown profile": (
        'profile = "fast"',
        'lanes.a.profile: "fast" (expected "quick" or "standard" or "slow")',
    ),
    "profile that is no text": (
        "profile = 1",
        'lanes.a.profile: 1 (expected "quick" or "standard" or "slow")',
    ),
    "profile that is a list": (
        'profile = ["quick"]',
        'lanes.a.profile: ["quick"] (expected "quick" or "standard" or "slow")',
    ),
    "duration that is a number": (
        "latency_slo = 45",
        'lanes.a.latency_slo: 45 (expected a duration such as "30s")',
    ),
    "duration without a unit": (
        'latency_slo = "45"',
        'lanes.a.latency_slo: "45" (expected a duration such as "30s")',
    ),
    "duration in an unknown unit": (
        'latency_slo = "1w"',
        'lanes.a.latency_slo: "1w" (expected a duration such as "30s")',
    ),
    "duration of nothing": (
        'latency_slo = "0s"',
        'lanes.a.latency_slo: "0s" (expected a duration such as "30s")',
    ),
    "duration below nothing": (
        'latency_slo = "-1s"',
        'lanes.a.latency_slo: "-1s" (expected a duration such as "30s")',
    ),
    "duration with a line end": (
        'latency_slo = "1s\\n"',
        'lanes.a.latency_slo: "1s\\n" (expected a duration such as "30s")',
    ),
    "limit that is true": (
        "time_limit = true",
        'lanes.a.time_limit: true (expected a duration such as "30s", or false for none)',
    ),
    "expiry that is a table": (
        "expires = {minutes = 1}",
        'lanes.a.expires: {"minutes": 1} (expected a duration such as "30s", or false for none)',
    ),
    "a share below a half": (
        "slo_target = 0.49",
        "lanes.a.slo_target: 0.49 (expected a share from 0.5 to 0.99999, such as 0.99 for 99 %)",
    ),
    "a share in percent": (
        "slo_target = 99",
        "lanes.a.slo_target: 99 (expected a share from 0.5 to 0.99999, such as 0.99 for 99 %)",
    ),
    "a share that leaves nothing to be late": (
        "slo_target = 1.0",
        "lanes.a.slo_target: 1.0 (expected a share from 0.5 to 0.99999, such as 0.99 for 99 %)",
    ),
    "a share that is no number": (
        'slo_target = "99%"',
        'lanes.a.slo_target: "99%" (expected a share from 0.5 to 0.99999, such as 0.99 for 99 %)',
    ),
    "a share that is not a number": (
        "slo_target = nan",
        "lanes.a.slo_target: NaN (expected a share from 0.5 to 0.99999, such as 0.99 for 99 %)",
    ),
    "size without a unit": (
        'max_memory_per_child = "512"',
        'lanes.a.max_memory_per_child: "512" (expected a size such as "512M", or false for none)',
    ),
    "size of nothing": (
        'max_memory_per_child = "0M"',
        'lanes.a.max_memory_per_child: "0M" (expected a size such as "512M", or false for none)',
    ),
    "whole number too low": (
        "concurrency = 0",
        "lanes.a.concurrency: 0 (expected a whole number from 1 to 1000)",
    ),
    "whole number too high": (
        "nice = 20",
        "lanes.a.nice: 20 (expected a whole number from 0 to 19)",
    ),
    "whole number as text": (
        'workers = "2"',
        'lanes.a.workers: "2" (expected a whole number from 1 to 100)',
    ),
    "whole number with a fraction": (
        "prefetch = 1.5",
        "lanes.a.prefetch: 1.5 (expected a whole number from 1 to 1000)",
    ),
    "none at once of a key": (
        "max_running_per_key = 0",
        (
            "lanes.a.max_running_per_key: 0 "
            "(expected a whole number from 1 to 100000, or false for none)"
        ),
    ),
    "a rate that is a number": (
        "rate_per_key = 100",
        'lanes.a.rate_per_key: 100 (expected a rate such as "100/m", or false for none)',
    ),
    "a rate without a time": (
        'rate_per_key = "100"',
        'lanes.a.rate_per_key: "100" (expected a rate such as "100/m", or false for none)',
    ),
    "a rate of nothing": (
        'rate_per_key = "0/m"',
        'lanes.a.rate_per_key: "0/m" (expected a rate such as "100/m", or false for none)',
    ),
    "tasks held ready where they are counted": (
        "max_running_per_key = 2\nprefetch = 4",
        (
            "lanes.a.prefetch: 4 (expected 1 with max_running_per_key: what a worker holds ready "
            "would count as running, and start later than it was counted)"
        ),
    ),
    "tasks held ready where their starts are": (
        'rate_per_key = "1/s"\nprefetch = 2',
        (
            "lanes.a.prefetch: 2 (expected 1 with rate_per_key: what a worker holds ready would "
            "count as running, and start later than it was counted)"
        ),
    ),
    "whole number that is true": (
        "max_retries = true",
        "lanes.a.max_retries: true (expected a whole number from 0 to 1000)",
    ),
    "count that is text": (
        'max_tasks_per_child = "many"',
        (
            'lanes.a.max_tasks_per_child: "many" '
            "(expected a whole number from 1 to 100000, or false for none)"
        ),
    ),
    "unknown drain": (
        'drain = "kill"',
        'lanes.a.drain: "kill" (expected "finish" or "requeue")',
    ),
    "drain by threads, which cannot be ended": (
        'pool = "threads"\ndrain = "requeue"',
        'lanes.a.drain: "requeue" (works with pool = "prefork" alone; remove it, or pool)',
    ),
    "drain by solo, which cannot be ended": (
        'pool = "solo"\ndrain = "requeue"',
        'lanes.a.drain: "requeue" (works with pool = "prefork" alone; remove it, or pool)',
    ),
    "no end to a drain": (
        "drain_timeout = false",
        'lanes.a.drain_timeout: false (expected a duration such as "30s")',
    ),
    "lease too short to renew": (
        'lease = "499ms"',
        (
            'lanes.a.lease: "499ms" (expected at least "500ms": a worker renews each third of it, '
            "and may be late)"
        ),
    ),
    "lease that is a number": (
        "lease = 45",
        'lanes.a.lease: 45 (expected a duration such as "30s")',
    ),
    "no delivery at all": (
        "max_deliveries = 0",
        "lanes.a.max_deliveries: 0 (expected a whole number from 1 to 1000)",
    ),
    "no dead letter at all": (
        "dead_cap = 0",
        "lanes.a.dead_cap: 0 (expected a whole number from 1 to 100000)",
    ),
    "dead letters of any size": (
        "dead_size = false",
        'lanes.a.dead_size: false (expected a size such as "512M")',
    ),
    "dead letters for ever": (
        "dead_age = false",
        'lanes.a.dead_age: false (expected a duration such as "30s")',
    ),
    "memory without a unit": (
        "memory_max = 512",
        'lanes.a.memory_max: 512 (expected a size such as "512M", or false for none)',
    ),
    "truth as text": (
        'results = "yes"',
        'lanes.a.results: "yes" (expected true or false)',
    ),
    "truth as a number": ("results = 1", "lanes.a.results: 1 (expected true or false)"),
    "unknown pool": (
        'pool = "gevent"',
        'lanes.a.pool: "gevent" (expected "prefork" or "threads" or "solo")',
    ),
    "queue of Celery's own": (
        'queue = "unacked"',
        f'lanes.a.queue: "unacked" ({QUEUE_RULE})',
    ),
    "queue with a space": (
        'queue = "my queue"',
        f'lanes.a.queue: "my queue" ({QUEUE_RULE})',
    ),
    "queue that is a number": (
        "queue = 7",
        f"lanes.a.queue: 7 ({QUEUE_RULE})",
    ),
    "hard limit under the soft one": (
        'time_limit = "10s"\nsoft_time_limit = "20s"',
        'lanes.a.soft_time_limit: "20s" (must be less than time_limit, which is "10s")',
    ),
    "hard limit of the profile under the soft one": (
        'soft_time_limit = "10m"',
        'lanes.a.soft_time_limit: "10m" (must be less than time_limit, which is "5m")',
    ),
    "time limit without processes": (
        'pool = "threads"\ntime_limit = "10s"',
        ('lanes.a.time_limit: "10s" (works with pool = "prefork" alone; remove it, or pool)'),
    ),
    "child limit without children": (
        'pool = "solo"\nmax_tasks_per_child = 5',
        ('lanes.a.max_tasks_per_child: 5 (works with pool = "prefork" alone; remove it, or pool)'),
    ),
    "solo with four at once": (
        'pool = "solo"\nconcurrency = 4',
        'lanes.a.concurrency: 4 (pool = "solo" runs one task at a time; expected 1)',
    ),
}


@pytest.mark.parametrize(("lines", "said"), LANE_MISTAKES.values(), ids=LANE_MISTAKES)
def test_a_mistake_in_a_lane_is_told_with_its_key_value_and_rule(
    lines: str, said: str, lanes_file: Write
) -> None:
    path = lanes_file(f'default_lane = "a"\n[lanes.a]\n{lines}\n')
    assert problems(path) == [f"lanes.toml: {said}"]


CRON = 'expected five fields such as "0 3 * * *"'
ENTRY_MISTAKES = {
    "no task": ('every = "1h"', "task: nothing (expected a task's name)"),
    "a task that is no text": ('task = 1\nevery = "1h"', "task: 1 (expected a text)"),
    "neither": ('task = "t"', 'cron: nothing (expected cron = "0 3 * * *" or every = "10m")'),
    "both": (
        'task = "t"\nevery = "1h"\ncron = "0 3 * * *"',
        'cron: "0 3 * * *" (does not go with every; remove one of them)',
    ),
    "a time zone of nothing": (
        'task = "t"\nevery = "1h"\ntimezone = "UTC"',
        'timezone: "UTC" (does not go with every; remove one of them)',
    ),
    "too few fields": ('task = "t"\ncron = "0 3"', f'cron: "0 3" ({CRON})'),
    "seconds": ('task = "t"\ncron = "0 0 3 * * *"', f'cron: "0 0 3 * * *" ({CRON})'),
    "no such hour": (
        'task = "t"\ncron = "0 24 * * *"',
        f'cron: "0 24 * * *" (Bad hour; {CRON})',
    ),
    "no such day": (
        'task = "t"\ncron = "0 0 31 2 *"',
        f'cron: "0 0 31 2 *" (Bad day-of-month; {CRON})',
    ),
    "a zone that does not exist": (
        'task = "t"\ncron = "0 3 * * *"\ntimezone = "Europe/Bonn"',
        'timezone: "Europe/Bonn" (expected a time zone such as "Europe/Berlin")',
    ),
    "a zone that is a folder": (
        'task = "t"\ncron = "0 3 * * *"\ntimezone = "Europe"',
        'timezone: "Europe" (expected a time zone such as "Europe/Berlin")',
    ),
    "a zone outside": (
        'task = "t"\ncron = "0 3 * * *"\ntimezone = "../x"',
        'timezone: "../x" (expected a time zone such as "Europe/Berlin")',
    ),
    "too often": ('task = "t"\nevery = "500ms"', 'every: "500ms" (expected "1s" or more)'),
    "no duration": (
        'task = "t"\nevery = 10',
        'every: 10 (expected a duration such as "30s")',
    ),
    "arguments that are no list": (
        'task = "t"\nevery = "1h"\nargs = "all"',
        'args: "all" (expected a list of arguments such as ["all"])',
    ),
    "an argument that JSON lacks": (
        'task = "t"\nevery = "1h"\nargs = [2025-01-01]',
        'args: ["2025-01-01"] (expected a list of arguments such as ["all"])',
    ),
    "keywords that are no table": (
        'task = "t"\nevery = "1h"\nkwargs = ["all"]',
        'kwargs: ["all"] (expected a table of arguments such as { name = "all" })',
    ),
    "a lane that is not there": (
        'task = "t"\nevery = "1h"\nlane = "b"',
        'lane: "b" (expected a declared lane: a)',
    ),
    "missed otherwise": (
        'task = "t"\nevery = "1h"\nmissed = "twice"',
        'missed: "twice" (expected "none" or "once" or "all")',
    ),
    "a key that is no text": (
        'task = "t"\nevery = "1h"\nkey = 7',
        "key: 7 (expected a text of 1 to 200 characters)",
    ),
    "a key of nothing": (
        'task = "t"\nevery = "1h"\nkey = ""',
        'key: "" (expected a text of 1 to 200 characters)',
    ),
    "an unknown key": (
        'task = "t"\nevery = "1h"\narg = [1]',
        'arg: unknown key; did you mean "args"?',
    ),
}


@pytest.mark.parametrize(("lines", "said"), ENTRY_MISTAKES.values(), ids=ENTRY_MISTAKES)
def test_a_mistake_in_the_schedule_is_told_likewise(
    lines: str, said: str, lanes_file: Write
) -> None:
    path = lanes_file(f'default_lane = "a"\n[lanes.a]\n[schedule.e]\n{lines}\n')
    assert problems(path) == [f"lanes.toml: schedule.e.{said}"]


def test_an_entry_is_called_so_that_a_shell_can_say_it(lanes_file: Write) -> None:
    text = GOOD + '[schedule."nightly report"]\ntask = "t"\nevery = "1h"\n'
    rule = 'expected a name of letters, digits, "_", "-" and ".", such as "nightly_report"'
    assert problems(lanes_file(text)) == [f'lanes.toml: schedule: "nightly report" ({rule})']


def test_an_entry_has_what_is_written(lanes_file: Write) -> None:
    text = (
        GOOD
        + """
[schedule.nightly]
task = "report"
cron = "0  3 * * *"
timezone = "Europe/Berlin"
args = ["all"]
kwargs = { deep = { list = [1] } }
lane = "quick"
expires = "1h"
key = "42"
missed = "all"
[schedule.often]
task = "report"
every = "10m"
"""
    )
    nightly, often = load(lanes_file(text)).schedule
    assert (nightly.name, nightly.task, nightly.cron) == ("nightly", "report", "0 3 * * *")
    assert (nightly.timezone, nightly.args, nightly.missed) == ("Europe/Berlin", ("all",), "all")
    assert nightly.kwargs == {"deep": {"list": [1]}}
    assert nightly.options == {"lane": "quick", "expires": 3600.0, "key": "42"}
    assert (often.every, often.cron, often.timezone, often.missed) == (600.0, None, "UTC", "once")
    assert (often.args, often.kwargs, often.options) == ((), {}, {})


FILE_MISTAKES = {
    "unknown table with a suggestion": (
        GOOD + "[lane.extra]",
        'lane: unknown key; did you mean "lanes"?',
    ),
    "unknown key like no other": (
        "zzz = 1\n" + GOOD,
        "zzz: unknown key; known: default_lane, lanes, routes, schedule",
    ),
    "no default lane": (
        "[lanes.quick]\n[lanes.slow]",
        "default_lane: nothing (expected a declared lane: quick, slow)",
    ),
    "a default lane that does not exist": (
        GOOD.replace('"quick"', '"fast"'),
        'default_lane: "fast" (expected a declared lane: quick, slow)',
    ),
    "a default lane that is no text": (
        GOOD.replace('"quick"', "1"),
        "default_lane: 1 (expected a declared lane: quick, slow)",
    ),
    "a route to a missing lane": (
        GOOD + '[routes]\n"reports.*" = "reports"',
        'routes."reports.*": "reports" (expected a declared lane: quick, slow)',
    ),
    "a route to a table": (
        GOOD + "[routes]\nreports.build = 'slow'",
        'routes."reports": {"build": "slow"} (expected a declared lane: quick, slow)',
    ),
    "routes that are no table": (
        'routes = "slow"\n' + GOOD,
        'routes: "slow" (expected a table, [routes])',
    ),
    "a lane that is no table": (
        'default_lane = "quick"\nlanes = {quick = {}, slow = 5}',
        "lanes.slow: 5 (expected a table, [lanes.slow])",
    ),
    "a lane name in capitals": (
        GOOD + "[lanes.Bulk]",
        (
            'lanes: "Bulk" (expected a lane name of up to 30 lower-case letters, digits and "_", '
            'such as "quick")'
        ),
    ),
    "a lane name with a space": (
        GOOD + '[lanes."very slow"]',
        (
            'lanes: "very slow" (expected a lane name of up to 30 lower-case letters, digits and '
            '"_", such as "quick")'
        ),
    ),
    "a queue of two lanes": (
        GOOD + '[lanes.bulk]\nqueue = "slow_tasks"',
        'lanes.bulk.queue: "slow_tasks" (taken by lanes.slow; a queue belongs to one lane)',
    ),
}


@pytest.mark.parametrize(("text", "said"), FILE_MISTAKES.values(), ids=FILE_MISTAKES)
def test_a_mistake_between_lanes_is_told(text: str, said: str, lanes_file: Write) -> None:
    assert problems(lanes_file(text)) == [f"lanes.toml: {said}"]


def test_a_file_without_lanes_says_what_a_lane_looks_like(lanes_file: Write) -> None:
    assert problems(lanes_file("")) == [
        "lanes.toml: lanes: none declared (expected one table a lane, such as [lanes.quick])",
        "lanes.toml: default_lane: nothing (expected a declared lane: none yet)",
    ]


def test_lanes_that_are_no_table_are_told(lanes_file: Write) -> None:
    assert problems(lanes_file('default_lane = "quick"\nlanes = ["quick"]')) == [
        'lanes.toml: lanes: ["quick"] (expected a table, [lanes])',
        'lanes.toml: default_lane: "quick" (expected a declared lane: none yet)',
    ]


def test_every_mistake_is_told_at_once_in_the_order_of_the_file(lanes_file: Write) -> None:
    path = lanes_file(
        """
        color = "red"
        default_lane = "fast"
        [lanes.quick]
        expires = 10
        concurrency = 0
        [lanes.slow]
        leese = "15s"
        time_limit = "soon"
        [routes]
        "mail.*" = "mail"
        """
    )
    assert problems(path) == [
        "lanes.toml: color: unknown key; known: default_lane, lanes, routes, schedule",
        "lanes.toml: lanes.quick.concurrency: 0 (expected a whole number from 1 to 1000)",
        (
            'lanes.toml: lanes.quick.expires: 10 (expected a duration such as "30s", '
            "or false for none)"
        ),
        'lanes.toml: lanes.slow.leese: unknown key; did you mean "lease"?',
        (
            'lanes.toml: lanes.slow.time_limit: "soon" (expected a duration such as "30s", '
            "or false for none)"
        ),
        'lanes.toml: default_lane: "fast" (expected a declared lane: quick, slow)',
        'lanes.toml: routes."mail.*": "mail" (expected a declared lane: quick, slow)',
    ]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lanes.toml"
    assert problems(path) == [f"lanes.toml: cannot be read: No such file or directory ({path})"]


def test_a_directory_in_its_place_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path) == [f"{tmp_path.name}: cannot be read: Is a directory ({tmp_path})"]


def test_invalid_toml_is_told_with_its_line(lanes_file: Write) -> None:
    path = lanes_file("[lanes.quick")
    assert problems(path) == [
        (
            "lanes.toml: not valid TOML: Expected ']' at the end of a table declaration "
            f"(at end of document) ({path})"
        )
    ]


def test_text_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lanes.toml"
    path.write_bytes("# schön".encode("latin-1"))
    assert problems(path) == [f"lanes.toml: not UTF-8 text: invalid start byte ({path})"]


def test_every_field_of_a_lane_is_a_key() -> None:
    assert {field.name for field in fields(Lane)} == {"name"} | {key.name for key in schema.KEYS}


@pytest.mark.parametrize("profile", schema.PROFILES)
def test_a_profile_is_a_whole_lane(profile: str, lanes_file: Write) -> None:
    lanes = load(lanes_file(f'default_lane = "a"\n[lanes.a]\nprofile = "{profile}"'))
    assert lanes.default.queue == "a_tasks"


def test_a_lane_called_like_a_profile_has_it(lanes_file: Write) -> None:
    lanes = load(lanes_file(GOOD + "[lanes.other]"))
    assert [(lane.name, lane.latency_slo) for lane in lanes] == [
        ("quick", 1.0),
        ("slow", 600.0),
        ("other", 30.0),
    ]


def test_a_lane_without_keys_has_these(lanes_file: Write) -> None:
    assert load(lanes_file('default_lane = "mail"\n[lanes.mail]')).default == Lane(
        name="mail",
        queue="mail_tasks",
        latency_slo=30.0,
        slo_target=0.99,
        concurrency=2,
        workers=1,
        pool="prefork",
        prefetch=1,
        max_running_per_key=None,
        rate_per_key=None,
        time_limit=300.0,
        soft_time_limit=270.0,
        expires=None,
        max_retries=3,
        drain="finish",
        drain_timeout=30.0,
        max_deliveries=3,
        unknown_wait=3600.0,
        lease=15.0,
        dead_cap=10_000,
        dead_size=256 * 1024**2,
        dead_age=30 * 86400.0,
        results=True,
        max_tasks_per_child=None,
        max_memory_per_child=None,
        nice=0,
        memory_max=None,
    )


def test_every_key_is_read(lanes_file: Write) -> None:
    path = lanes_file(
        """
        default_lane = "mail"
        [lanes.mail]
        profile = "quick"
        queue = "Post.office-1"
        latency_slo = "250ms"
        slo_target = 0.999
        concurrency = 3
        workers = 2
        pool = "prefork"
        prefetch = 1
        max_running_per_key = 2
        rate_per_key = "100/m"
        time_limit = "1.5h"
        soft_time_limit = "2m"
        expires = "1h"
        max_retries = 0
        drain = "requeue"
        drain_timeout = "5s"
        max_deliveries = 1
        unknown_wait = "2h"
        lease = "1m"
        dead_cap = 100
        dead_size = "1M"
        dead_age = "2d"
        results = false
        max_tasks_per_child = 100
        max_memory_per_child = "2G"
        nice = 19
        memory_max = "512M"
        """
    )
    assert load(path).default == Lane(
        name="mail",
        queue="Post.office-1",
        latency_slo=0.25,
        slo_target=0.999,
        concurrency=3,
        workers=2,
        pool="prefork",
        prefetch=1,
        max_running_per_key=2,
        rate_per_key=0.6,
        time_limit=5400.0,
        soft_time_limit=120.0,
        expires=3600.0,
        max_retries=0,
        drain="requeue",
        drain_timeout=5.0,
        max_deliveries=1,
        unknown_wait=7200.0,
        lease=60.0,
        dead_cap=100,
        dead_size=1024**2,
        dead_age=2 * 86400.0,
        results=False,
        max_tasks_per_child=100,
        max_memory_per_child=2 * 1024**3,
        nice=19,
        memory_max=512 * 1024**2,
    )


@pytest.mark.parametrize("limit", ["max_running_per_key = 2", 'rate_per_key = "1/s"'])
def test_a_lane_with_a_limit_by_key_holds_no_task_ready(limit: str, lanes_file: Write) -> None:
    """Whatever its profile says."""
    lane = load(lanes_file(f'default_lane = "quick"\n[lanes.quick]\n{limit}')).default
    assert lane.prefetch == 1


def test_false_turns_a_limit_off(lanes_file: Write) -> None:
    lane = load(
        lanes_file(
            """
            default_lane = "quick"
            [lanes.quick]
            time_limit = false
            expires = false
            """
        )
    ).default
    assert (lane.time_limit, lane.soft_time_limit, lane.expires) == (None, None, None)


def test_the_soft_limit_alone_can_be_off(lanes_file: Write) -> None:
    lane = load(lanes_file('default_lane = "a"\n[lanes.a]\nsoft_time_limit = false')).default
    assert (lane.time_limit, lane.soft_time_limit) == (300.0, None)


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_pool_without_processes_takes_no_limits_from_its_profile(
    pool: str, lanes_file: Write
) -> None:
    lane = load(lanes_file(f'default_lane = "quick"\n[lanes.quick]\npool = "{pool}"')).default
    assert (lane.time_limit, lane.soft_time_limit) == (None, None)
    assert lane.concurrency == {"threads": 4, "solo": 1}[pool]


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_pool_without_processes_finishes_whatever_its_profile_says(
    pool: str, lanes_file: Write
) -> None:
    lane = load(lanes_file(f'default_lane = "slow"\n[lanes.slow]\npool = "{pool}"')).default
    assert {key.name: key.default_in("slow") for key in schema.KEYS}["drain"] == "requeue"
    assert lane.drain == "finish"


STOPS = {
    "finish: the longest task": ('time_limit = "5m"', 300 + 30),
    "finish without a limit: an hour": ("time_limit = false", 3600 + 30),
    "requeue: what running tasks are given": (
        'drain = "requeue"\ndrain_timeout = "90s"\ntime_limit = "5h"',
        90 + 30,
    ),
}


@pytest.mark.parametrize(("lines", "seconds"), STOPS.values(), ids=STOPS)
def test_a_stop_may_take_as_long_as_the_drain_and_30_seconds(
    lines: str, seconds: float, lanes_file: Write
) -> None:
    lane = load(lanes_file(f'default_lane = "a"\n[lanes.a]\n{lines}')).default
    assert lane.stop_time == seconds


def test_a_slow_lane_gives_way_and_hands_its_tasks_back(lanes_file: Write) -> None:
    slow = load(lanes_file(GOOD)).get("slow")
    assert (slow.nice, slow.drain, slow.drain_timeout) == (10, "requeue", 30.0)


def test_the_first_matching_route_wins(lanes_file: Write) -> None:
    lanes = load(lanes_file(GOOD + '[routes]\n"a.b" = "quick"\n"a.*" = "slow"\n"*" = "quick"'))
    assert [lanes.for_task(name).name for name in ("a.b", "a.c", "a.B", "z")] == [
        "quick",
        "slow",
        "slow",
        "quick",
    ]


def test_an_unknown_lane_names_those_there_are(lanes_file: Write) -> None:
    with pytest.raises(RoutingError) as caught:
        load(lanes_file(GOOD)).get("slwo")
    assert str(caught.value) == (
        'no lane is called "slwo"; did you mean "slow"? (lanes: quick, slow)'
    )


def test_an_unknown_queue_names_those_there_are(lanes_file: Write) -> None:
    with pytest.raises(RoutingError) as caught:
        load(lanes_file(GOOD)).for_queue("celery")
    assert str(caught.value) == (
        'no lane consumes the queue "celery" (queues: quick_tasks by quick, slow_tasks by slow)'
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("10m", 600),
        ("1h", 3600),
        ("1.5h", 5400),
        ("30d", 2_592_000),
    ],
)
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("100/m", 0.6), ("10/s", 0.1), ("0.5/h", 7200), ("1/h", 3600)]
)
def test_a_rate_is_the_seconds_between_two(text: str, seconds: float) -> None:
    assert values.parse_rate(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("512K", 524_288), ("512M", 536_870_912), ("2G", 2_147_483_648)]
)
def test_a_size_is_bytes(text: str, size: int) -> None:
    assert values.parse_size(text) == size
