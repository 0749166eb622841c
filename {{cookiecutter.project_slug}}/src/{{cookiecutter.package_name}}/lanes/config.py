"""Read lanes.toml: what a lane is, its defaults by profile, and every mistake at once."""

import difflib
import fnmatch
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError, RoutingError

DEFAULT_FILE = Path(__file__).parent.parent / "lanes.toml"
LANE_NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")
POOLS = ("prefork", "threads", "solo")
DRAINS = ("finish", "requeue")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A named class of work: its queue, its workers, its limits. `None` means no limit."""

    name: str
    queue: str
    latency_slo: float  # seconds a task may wait in its queue before it starts
    concurrency: int  # tasks at once, in each worker
    workers: int  # worker processes, each with `concurrency`
    pool: str  # one of POOLS
    prefetch: int  # messages a worker holds per slot, the running one included
    time_limit: float | None  # seconds, then the child process is killed
    soft_time_limit: float | None  # seconds, then SoftTimeLimitExceeded is raised in the task
    expires: float | None  # seconds after it was due; an older task is discarded, not run
    max_retries: int  # runs after the first, before a task has failed
    drain: str  # what a stopping worker does with running tasks, one of DRAINS
    drain_timeout: float  # seconds that "requeue" gives them first
    max_deliveries: int  # deliveries without an acknowledgement, before a message is set aside
    lease: float  # seconds without a sign of life, after which a worker's messages are taken back
    dead_cap: int  # dead letters to keep; the oldest are dropped for it
    dead_age: float  # seconds to keep them
    results: bool  # whether return values are stored, so that `.get()` works
    max_tasks_per_child: int | None  # tasks, then a fresh child process
    max_memory_per_child: int | None  # bytes resident, then a fresh child process
    nice: int  # 0 to 19; a CPU-bound flood in a niced lane leaves the others their latency
    memory_max: int | None  # bytes, for each worker with its children; under systemd

    @property
    def stop_time(self) -> float:
        """Seconds that a stop may take: what running tasks are given, and 30 to clean up."""
        given = self.drain_timeout if self.drain == "requeue" else self.time_limit
        return (given or 3600) + 30


@dataclass(frozen=True, slots=True)
class Lanes:
    """Every lane by name, the default one, and the patterns that send a task name to a lane."""

    by_name: Mapping[str, Lane]
    default: Lane
    routes: tuple[tuple[str, Lane], ...] = field(default=())

    def __iter__(self) -> Iterator[Lane]:
        return iter(self.by_name.values())

    def get(self, name: str) -> Lane:
        """The lane called `name`.

        Raises:
            RoutingError: when there is none; the message names those there are.
        """
        if name not in self.by_name:
            raise RoutingError(
                f"no lane is called {_shown(name)}{_suggestion(name, self.by_name)} "
                f"(lanes: {', '.join(self.by_name)})"
            )
        return self.by_name[name]

    def for_queue(self, queue: str) -> Lane:
        """The lane that consumes `queue`.

        Raises:
            RoutingError: when no lane does; the message names the queues that are consumed.
        """
        for lane in self:
            if lane.queue == queue:
                return lane
        consumed = ", ".join(f"{lane.queue} by {lane.name}" for lane in self)
        raise RoutingError(f"no lane consumes the queue {_shown(queue)} (queues: {consumed})")

    def for_task(self, task_name: str) -> Lane:
        """The lane of a task that names none: the first matching route, else the default."""
        for pattern, lane in self.routes:
            if fnmatch.fnmatchcase(task_name, pattern):
                return lane
        return self.default


def parse_duration(value: object) -> float:
    """Seconds in a duration such as "250ms", "30s", "10m", "1h".

    Raises:
        ValueError: when `value` is anything else; the message is the rule, with an example.
    """
    match = isinstance(value, str) and re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", value)
    if not match or float(match[1]) == 0:
        raise ValueError('expected a duration such as "30s"')
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def parse_size(value: object) -> int:
    """Bytes in a size such as "512K", "512M", "2G" (powers of 1024).

    Raises:
        ValueError: when `value` is anything else; the message is the rule, with an example.
    """
    match = isinstance(value, str) and re.fullmatch(r"([1-9]\d*)([KMG])", value)
    if not match:
        raise ValueError('expected a size such as "512M"')
    return int(match[1]) << {"K": 10, "M": 20, "G": 30}[match[2]]


def _whole_number(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return value

    return parse


def _optional(parse: Callable[[object], Any]) -> Callable[[object], Any]:
    def parse_or_off(value: object) -> Any:
        if value is False:
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or false for none") from None

    return parse_or_off


def _choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            expected = " or ".join(json.dumps(choice) for choice in choices)
            raise ValueError(f"expected {expected}")
        return str(value)

    return parse


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")  # noqa: TRY004 - one kind for every rule
    return value


def _queue_name(value: object) -> str:
    # The names that kombu and Celery keep for themselves in the same Redis database.
    reserved = isinstance(value, str) and re.match(r"celeryev|.*\.pidbox|unacked", value)
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][\w.-]{0,99}", value) or reserved:
        raise ValueError(
            "expected a queue name of letters, digits, '_', '.' or '-', "
            "not one of Celery's own (celeryev..., ...pidbox, unacked...)"
        )
    return value


_TOP_KEYS = ("default_lane", "lanes", "routes")
_COUNT = _whole_number(1, 100_000)
_KEYS: dict[str, Callable[[object], Any]] = {
    "queue": _queue_name,
    "latency_slo": parse_duration,
    "concurrency": _whole_number(1, 1000),
    "workers": _whole_number(1, 100),
    "pool": _choice(*POOLS),
    "prefetch": _whole_number(1, 1000),
    "time_limit": _optional(parse_duration),
    "soft_time_limit": _optional(parse_duration),
    "expires": _optional(parse_duration),
    "max_retries": _whole_number(0, 1000),
    "drain": _choice(*DRAINS),
    "drain_timeout": parse_duration,
    "max_deliveries": _whole_number(1, 1000),
    "lease": parse_duration,
    "dead_cap": _COUNT,
    "dead_age": parse_duration,
    "results": _truth,
    "max_tasks_per_child": _optional(_COUNT),
    "max_memory_per_child": _optional(parse_size),
    "nice": _whole_number(0, 19),
    "memory_max": _optional(parse_size),
}
_PREFORK_ONLY = ("time_limit", "soft_time_limit", "max_tasks_per_child", "max_memory_per_child")

_COMMON: dict[str, Any] = {
    "workers": 1,
    "pool": "prefork",
    "prefetch": 1,  # with late acks: fetch a message only for a free slot, so none is hoarded
    "expires": False,
    "max_retries": 3,
    "drain": "finish",
    "drain_timeout": "30s",
    "max_deliveries": 3,
    "lease": "15s",
    "dead_cap": 10_000,
    "dead_age": "30d",
    "results": True,
    "max_tasks_per_child": False,
    "max_memory_per_child": False,
    "nice": 0,
    "memory_max": False,
}
PROFILES: dict[str, dict[str, Any]] = {
    # Somebody waits for the answer; a few tasks held ready spare a round trip between them.
    "quick": _COMMON
    | {
        "latency_slo": "1s",
        "concurrency": 4,
        "time_limit": "30s",
        "expires": "10m",
        "prefetch": 4,
    },
    "standard": _COMMON | {"latency_slo": "30s", "concurrency": 2, "time_limit": "5m"},
    # Nobody waits; it must not take the processor from those for whom somebody does.
    "slow": _COMMON
    | {
        "latency_slo": "10m",
        "concurrency": 2,
        "time_limit": "1h",
        "drain": "requeue",
        "nice": 10,
    },
}
_SOFT_SHARE = 0.9  # of time_limit: the soft limit comes first and leaves time to clean up


def load(path: Path | None = None) -> Lanes:
    """The lanes declared in `path`, the package's own lanes.toml when `None`.

    Raises:
        ConfigError: when the file cannot be read or used, with every problem in it.
    """
    path = path or DEFAULT_FILE
    try:
        text = path.read_bytes().decode("utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"{path.name}: cannot be read: {error.strerror} ({path})"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path.name}: not UTF-8 text: {error.reason} ({path})"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path.name}: not valid TOML: {error} ({path})"]) from None
    problems: list[str] = []
    lanes = _Reader(path.name, problems).read(document)
    if lanes is None or problems:
        raise ConfigError(problems)
    return lanes


@dataclass(slots=True)
class _Reader:
    label: str
    problems: list[str]

    def complain(self, key: str, value: object, rule: str) -> None:
        self.problems.append(f"{self.label}: {key}: {_shown(value)} ({rule})")

    def table(self, key: str, value: object) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.complain(key, value, f"expected a table, [{key}]")
        return {}

    def read(self, document: dict[str, Any]) -> Lanes | None:
        for key in document:
            if key not in _TOP_KEYS:
                self.unknown(key, key, _TOP_KEYS)
        declared = self.table("lanes", document.get("lanes", {}))
        if "lanes" not in document or document["lanes"] == {}:
            self.problems.append(
                f"{self.label}: lanes: none declared (expected one table a lane, such as "
                "[lanes.quick])"
            )
        lanes = {name: self.lane(name, value) for name, value in declared.items()}
        self.no_shared_queue(lanes)
        default = self.reference("default_lane", document.get("default_lane"), lanes)
        routes = [
            (pattern, self.reference(f"routes.{json.dumps(pattern)}", name, lanes))
            for pattern, name in self.table("routes", document.get("routes", {})).items()
        ]
        if self.problems or default is None:
            return None
        return Lanes(
            by_name={name: lane for name, lane in lanes.items() if lane},
            default=default,
            routes=tuple((pattern, lane) for pattern, lane in routes if lane),
        )

    def unknown(self, where: str, key: str, known: tuple[str, ...]) -> None:
        hint = _suggestion(key, known) or f"; known: {', '.join(known)}"
        self.problems.append(f"{self.label}: {where}: unknown key{hint}")

    def reference(self, key: str, name: object, lanes: dict[str, Lane | None]) -> Lane | None:
        if isinstance(name, str) and name in lanes:
            return lanes[name]
        self.complain(key, name, f"expected a declared lane: {', '.join(lanes) or 'none yet'}")
        return None

    def lane(self, name: str, value: object) -> Lane | None:
        before = len(self.problems)
        where = f"lanes.{name}"
        if not LANE_NAME.fullmatch(name):
            self.problems.append(
                f"{self.label}: lanes: {_shown(name)} (expected a lane name of up to 30 "
                'lower-case letters, digits and "_", such as "quick")'
            )
            return None
        given = self.table(where, value)
        profile = given.get("profile", name if name in PROFILES else "standard")
        if not isinstance(profile, str) or profile not in PROFILES:
            rule = " or ".join(json.dumps(known) for known in PROFILES)
            self.complain(f"{where}.profile", profile, f"expected {rule}")
            profile = "standard"
        known = ("profile", *_KEYS)
        values: dict[str, Any] = {}
        for key in given:
            if key not in known:
                self.unknown(f"{where}.{key}", key, known)
        for key, parse in _KEYS.items():
            raw = given.get(key, ({"queue": f"{name}_tasks"} | PROFILES[profile]).get(key))
            try:
                values[key] = parse(raw) if raw is not None else None
            except ValueError as error:
                self.complain(f"{where}.{key}", raw, str(error))
        if len(self.problems) > before:
            return None
        self.across_keys(where, given, PROFILES[profile], values)
        if len(self.problems) > before:
            return None
        return Lane(name=name, **values)

    def across_keys(
        self, where: str, given: dict[str, Any], profile: dict[str, Any], values: dict[str, Any]
    ) -> None:
        if values["pool"] != "prefork":
            rule_of_prefork = 'works with pool = "prefork" alone; remove it, or pool'
            for key in _PREFORK_ONLY:
                if given.get(key):
                    self.complain(f"{where}.{key}", given[key], rule_of_prefork)
                values[key] = None
            if given.get("drain") == "requeue":  # a thread cannot be ended
                self.complain(f"{where}.drain", "requeue", rule_of_prefork)
            values["drain"] = "finish"
        if values["pool"] == "solo":
            if given.get("concurrency", 1) != 1:
                rule = 'pool = "solo" runs one task at a time; expected 1'
                self.complain(f"{where}.concurrency", given["concurrency"], rule)
            values["concurrency"] = 1
        hard, soft = values["time_limit"], values["soft_time_limit"]
        if hard and soft and soft >= hard:
            limit = given.get("time_limit", profile["time_limit"])
            rule = f"must be less than time_limit, which is {_shown(limit)}"
            self.complain(f"{where}.soft_time_limit", given["soft_time_limit"], rule)
        if hard and "soft_time_limit" not in given:
            values["soft_time_limit"] = hard * _SOFT_SHARE

    def no_shared_queue(self, lanes: dict[str, Lane | None]) -> None:
        owner: dict[str, str] = {}
        for lane in lanes.values():
            if lane and owner.setdefault(lane.queue, lane.name) != lane.name:
                rule = f"taken by lanes.{owner[lane.queue]}; a queue belongs to one lane"
                self.complain(f"lanes.{lane.name}.queue", lane.queue, rule)


def _shown(value: object) -> str:
    """`value` as its owner wrote it, or nearly: TOML and JSON agree on what goes wrong here."""
    return "nothing" if value is None else json.dumps(value, default=str, ensure_ascii=False)


def _suggestion(word: str, known: object) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)  # type: ignore[call-overload]
    return f'; did you mean "{close[0]}"?' if close else ""
