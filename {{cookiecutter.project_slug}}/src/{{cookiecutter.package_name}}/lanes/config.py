"""Read lanes.toml: what a lane is, and every mistake in the file at once."""

import difflib
import fnmatch
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError, RoutingError
from .schema import ENTRY_KEYS, KEYS, PROFILES, Key
from .timetable import Entry

DEFAULT_FILE = Path(__file__).parent.parent / "lanes.toml"
LANE_NAME = re.compile(r"[a-z][a-z0-9_]{0,29}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A named class of work: its queue, its workers, its limits. `None` means no limit."""

    name: str
    queue: str
    latency_slo: float  # seconds a task may wait in its queue before it starts
    slo_target: float  # share of tasks that should start within latency_slo, over 30 days
    concurrency: int  # tasks at once, in each worker
    workers: int  # worker processes, each with `concurrency`
    pool: str  # one of schema.POOLS
    prefetch: int  # messages a worker holds per slot, the running one included
    max_running_per_key: int | None  # tasks of one key at once, over all workers
    rate_per_key: float | None  # seconds between two starts of tasks of one key, at least
    time_limit: float | None  # seconds, then the child process is killed
    soft_time_limit: float | None  # seconds, then SoftTimeLimitExceeded is raised in the task
    expires: float | None  # seconds after it was due; an older task becomes a dead letter
    max_retries: int  # runs after the first, before a task has failed
    drain: str  # what a stopping worker does with running tasks, one of schema.DRAINS
    drain_timeout: float  # seconds that "requeue" gives them first
    max_deliveries: int  # deliveries without an acknowledgement, before a message is set aside
    unknown_wait: float | None  # seconds for which a task that no worker knows waits for one
    lease: float  # seconds without a sign of life, after which a worker's messages are taken back
    dead_cap: int  # dead letters to keep; the oldest of tasks that ran are dropped for it
    dead_size: int  # bytes of their messages and reports to keep; likewise
    dead_age: float  # seconds to keep those of tasks that ran
    results: bool  # whether return values are stored, so that `.get()` works
    max_tasks_per_child: int | None  # tasks, then a fresh child process
    max_memory_per_child: int | None  # bytes resident, then a fresh child process
    nice: int  # 0 to 19; a CPU-bound flood in a niced lane leaves the others their latency
    memory_max: int | None  # bytes of a worker with its children; under systemd, in containers

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
    schedule: tuple[Entry, ...] = field(default=())

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


_TOP_KEYS = ("default_lane", "lanes", "routes", "schedule")
ENTRY_NAME = re.compile(r"[A-Za-z][\w.-]{0,99}")
_LANE_KEYS = ("profile", *(key.name for key in KEYS))
_ENTRY_KEYS = tuple(key.name for key in ENTRY_KEYS)
_PREFORK_ONLY = ("time_limit", "soft_time_limit", "max_tasks_per_child", "max_memory_per_child")
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
        entries = [
            self.entry(name, value, lanes)
            for name, value in self.table("schedule", document.get("schedule", {})).items()
        ]
        if self.problems or default is None:
            return None
        return Lanes(
            by_name={name: lane for name, lane in lanes.items() if lane},
            default=default,
            routes=tuple((pattern, lane) for pattern, lane in routes if lane),
            schedule=tuple(entry for entry in entries if entry),
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
        self.known_only(where, given, _LANE_KEYS)
        written = {key.name: key.default_in(profile) for key in KEYS}
        written |= {"queue": f"{name}_tasks"} | given
        values = self.parsed(where, KEYS, written)
        if len(self.problems) > before:
            return None
        self.across_keys(where, given, written["time_limit"], values)
        if len(self.problems) > before:
            return None
        return Lane(name=name, **values)

    def known_only(self, where: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
        for name in given:
            if name not in known:
                self.unknown(f"{where}.{name}", name, known)

    def parsed(
        self, where: str, keys: tuple[Key, ...], written: Mapping[str, object]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key in keys:
            raw = written[key.name]
            try:
                values[key.name] = None if raw is None else key.parse(raw)
            except ValueError as error:
                self.complain(f"{where}.{key.name}", raw, str(error))
        return values

    def entry(self, name: str, value: object, lanes: dict[str, Lane | None]) -> Entry | None:
        before = len(self.problems)
        where = f"schedule.{name}"
        if not ENTRY_NAME.fullmatch(name):
            rule = 'expected a name of letters, digits, "_", "-" and ".", such as "nightly_report"'
            self.complain("schedule", name, rule)
        given = self.table(where, value)
        self.known_only(where, given, _ENTRY_KEYS)
        written = {key.name: key.default for key in ENTRY_KEYS} | given
        values = self.parsed(where, ENTRY_KEYS, written)
        self.across_entry(where, given, lanes)
        if len(self.problems) > before:
            return None
        options = {key: values.pop(key) for key in ("lane", "expires", "key")}
        options = {key: each for key, each in options.items() if each is not None}
        return Entry(name=name, **values, options=options)

    def across_entry(
        self, where: str, given: dict[str, Any], lanes: dict[str, Lane | None]
    ) -> None:
        if "task" not in given:
            self.complain(f"{where}.task", None, "expected a task's name")
        if "cron" not in given and "every" not in given:
            self.complain(f"{where}.cron", None, 'expected cron = "0 3 * * *" or every = "10m"')
        if "every" in given:
            for key in ("cron", "timezone"):
                if key in given:
                    rule = "does not go with every; remove one of them"
                    self.complain(f"{where}.{key}", given[key], rule)
        if isinstance(given.get("lane"), str):
            self.reference(f"{where}.lane", given["lane"], lanes)

    def across_keys(
        self, where: str, given: dict[str, Any], time_limit: object, values: dict[str, Any]
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
        self.one_at_a_time(where, given, values)
        hard, soft = values["time_limit"], values["soft_time_limit"]
        if hard and soft and soft >= hard:
            rule = f"must be less than time_limit, which is {_shown(time_limit)}"
            self.complain(f"{where}.soft_time_limit", given["soft_time_limit"], rule)
        if hard and "soft_time_limit" not in given:
            values["soft_time_limit"] = hard * _SOFT_SHARE

    def one_at_a_time(self, where: str, given: dict[str, Any], values: dict[str, Any]) -> None:
        limit = next((each for each in ("max_running_per_key", "rate_per_key") if values[each]), "")
        if not limit:
            return
        if given.get("prefetch", 1) != 1:
            rule = (
                f"expected 1 with {limit}: what a worker holds ready would count as running, and "
                "start later than it was counted"
            )
            self.complain(f"{where}.prefetch", given["prefetch"], rule)
        values["prefetch"] = 1

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
