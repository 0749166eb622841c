"""What is to run and when: the entries of lanes.toml, and those of Celery's `beat_schedule`.

keeper.py has each worker keep them.
"""

import warnings
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import celery.schedules
from celery.exceptions import AlwaysEagerIgnored
from kombu.serialization import dumps

from .errors import ConfigError, RoutingError
from .timetable import Entry, zone

_WEEK, _EVERY = "day_of_week", "run_every"  # unknown to celery-types, as those are
_CRON = ("minute", "hour", "day_of_month", "month_of_year")
_KINDS = "expected crontab, timedelta or a number"
_LONGEST = 100  # characters of a name in a task's id


def entries(app: Any) -> list[Entry]:
    """Those of lanes.toml, then those that Celery's own ways have added.

    Raises:
        ConfigError: when one of Celery's cannot be kept, or is called as one of lanes.toml.
    """
    found = {entry.name: entry for entry in app.lanes.schedule}
    problems = []
    for name, given in (app.conf.beat_schedule or {}).items():
        if name in found:
            problems.append(f"beat_schedule: {name!r} is in lanes.toml, too: remove one of them")
            continue
        try:
            found[name] = _of_celery(app, name, given)
        except (ValueError, TypeError, KeyError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            problems.append(f"beat_schedule: {name!r}: {what}")
    if problems:
        raise ConfigError(problems)
    return list(found.values())


def check_tasks(app: Any, declared: list[Entry]) -> None:
    """See that each entry's task is there and takes its arguments, now that tasks are known.

    Raises:
        ConfigError: with each that is not so.
    """
    problems = []
    for entry in declared:
        where = f"schedule.{entry.name}"
        task = app.tasks.get(entry.task)
        if task is None:
            known = ", ".join(sorted(each for each in app.tasks if not each.startswith("celery.")))
            problems.append(f"{where}.task: {entry.task!r} (no task is called so; known: {known})")
            continue
        try:
            if task.typing:
                task.__header__(*entry.args, **entry.kwargs)
        except TypeError as error:
            named = (f"{key}={value!r}" for key, value in entry.kwargs.items())
            given = ", ".join([*map(repr, entry.args), *named])
            problems.append(f"{where}.args: {given or 'nothing'} ({entry.task}: {error})")
        try:
            app.amqp.router.route(entry.options, entry.task, entry.args, entry.kwargs, task)
        except RoutingError as error:
            problems.append(f"{where}: {error}")
    if problems:
        raise ConfigError(problems)


def _of_celery(app: Any, name: str, given: Mapping[str, Any]) -> Entry:
    """An entry of `beat_schedule`, or of `add_periodic_task`.

    Raises:
        ValueError: when it cannot be kept.
    """
    said: dict[str, Any] = {
        "name": name,
        "task": given["task"],
        "args": tuple(given.get("args") or ()),
        "kwargs": dict(given.get("kwargs") or {}),
        "options": dict(given.get("options") or {}),
    }
    if said["options"].get("replace"):
        raise ValueError("replace is not kept: each run has an id of its own; say unique alone")
    try:
        dumps((said["args"], said["kwargs"]), "json")
    except Exception as error:  # noqa: BLE001 - of whatever is in it
        raise ValueError(f"its arguments cannot be sent: {error}") from None
    return Entry(**said, **_when(app, given["schedule"]))


def _when(app: Any, when: Any) -> dict[str, Any]:
    """What an entry says of one of Celery's schedules."""
    if isinstance(when, int | float):
        when = timedelta(seconds=when)
    if isinstance(when, celery.schedules.solar):
        raise ValueError(f"solar schedules are not kept ({_KINDS})")  # noqa: TRY004 - what it says
    if type(when) is celery.schedules.crontab:
        fields = [_field(getattr(when, field), field) for field in _CRON]
        week: set[int] = getattr(when, _WEEK)
        days = None if len(week) == 7 else frozenset(week)
        name = str(app.timezone)
        try:
            zone(name)
        except ValueError as error:
            raise ValueError(f"timezone {name}: {error}") from None
        return {"cron": " ".join([*fields, "*"]), "days": days, "timezone": name}
    if type(when) is celery.schedules.schedule:
        when = getattr(when, _EVERY)
    if not isinstance(when, timedelta):
        raise ValueError(f"{type(when).__name__} is not kept ({_KINDS})")  # noqa: TRY004 - likewise
    if when.total_seconds() < 1:
        raise ValueError(f"every {when.total_seconds():g} s (expected a second or more)")
    return {"every": when.total_seconds()}


def _field(values: set[int], name: str) -> str:
    """A field of cron for one of Celery's, which are sets of numbers."""
    first, count = {"minute": (0, 60), "hour": (0, 24), "day_of_month": (1, 31)}.get(name, (1, 12))
    if values >= set(range(first, first + count)):
        return "*"
    return ",".join(map(str, sorted(values)))


def id_of(entry: Entry, instant: float) -> str:
    """The id of the task that runs at an instant, in seconds since 1970: made of both."""
    precision = "milliseconds" if instant % 1 else "seconds"
    due = datetime.fromtimestamp(instant, UTC).isoformat(timespec=precision)
    return f"{entry.name[:_LONGEST]}@{due.replace('+00:00', 'Z')}"


def send(app: Any, entry: Entry, id_: str, **options: Any) -> Any:
    """Send an entry's task, in eager mode too, which is for tests; returns its result."""
    options = {**entry.options, "task_id": id_, **options}
    task = app.tasks[entry.task]  # `check_tasks` has seen it
    if not app.conf.task_always_eager:
        return task.apply_async(entry.args, entry.kwargs, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlwaysEagerIgnored)
        return app.send_task(entry.task, entry.args, entry.kwargs, task_type=task, **options)


def written(app: Any, producer: Any, entry: Entry, id_: str) -> list[tuple[Any, ...]]:
    """The commands that would send a task, its message first: Celery's own way, up to Redis."""
    batch = producer.channel.create_publish_batch = _Written(producer.channel)
    with producer.batch():
        send(app, entry, id_, producer=producer)
    return batch.commands


class _Written:
    """A batch of kombu's that tells nobody what it is given."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.commands: list[tuple[Any, ...]] = []

    def __call__(self, max_size: int) -> "_Written":  # noqa: ARG002 - kombu's name
        """The one batch of its channel, of any size."""
        return self

    def publish(self, message: Any, **options: Any) -> Any:
        """Have the channel say how it would send a message."""
        return self.channel.basic_publish(message, _publish_batch=self, **options)

    def add(self, name: str, *arguments: Any) -> None:
        """One of the channel's commands."""
        if name == "evalsha":  # of a message with a key: sha1, number of keys, keys, arguments
            name, arguments = "send", arguments[2:]
        if name == "zadd":
            key, due = arguments
            arguments = (key, *(part for message, at in due.items() for part in (at, message)))
        self.commands.append((name, *arguments))

    def flush(self) -> None:
        """Nothing."""

    discard = close = flush
