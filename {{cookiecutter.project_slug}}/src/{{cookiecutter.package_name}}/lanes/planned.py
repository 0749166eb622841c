"""What an operator looks at of the schedule: what ran last, what is next, what is late."""

from dataclasses import dataclass
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from .errors import NotFoundError
from .redis.schedule import Run, Schedule, State
from .schedule import check_tasks, entries, send
from .status import broker
from .timetable import Entry


@dataclass(frozen=True, slots=True)
class EntryStatus:
    """One entry at one moment; times are seconds since 1970, by the server's clock."""

    name: str
    task: str
    when: str
    next: float | None  # None: never
    overdue: float  # seconds since `next`, which nobody has sent; 0: it is to come
    last: float | None  # when the last that was sent was due; None: none was
    id: str | None  # of its task
    state: str | None  # of its result, as Celery calls it; None: unknown, or none is kept
    late_by: float | None  # seconds by which it was sent late
    late: int  # runs that were sent late by more than a second
    missed: int  # instants that were not sent
    paused: bool
    kept: bool  # workers have this entry, as it is here


@dataclass(frozen=True, slots=True)
class Planned:
    """The schedule at one moment."""

    entries: list[EntryStatus]
    keepers: int  # workers that keep a schedule
    ours: int  # of those, the ones that keep this one


def read(app: Any) -> Planned:
    """The state of every entry.

    Raises:
        BrokerError: when the broker does not answer, or refuses.
        ConfigError: when an entry of Celery's cannot be kept.
    """
    declared = entries(app)
    with broker(app) as redis:
        schedule = schedule_of(redis, declared)
        states = schedule.states()
        now = app.server.clock.now()
        keepers, ours = schedule.keepers(now)
    results = _States(app)
    found = []
    for entry in declared:
        state = states[entry.name]
        following = next_of(entry, state, now)
        run = state.run
        found.append(
            EntryStatus(
                name=entry.name,
                task=entry.task,
                when=entry.when(),
                next=following,
                overdue=max(0.0, now - following) if following is not None else 0.0,
                last=run.due if run else None,
                id=run.id if run else None,
                state=results.of(run.id) if run else None,
                late_by=run.late_by if run else None,
                late=run.late if run else 0,
                missed=run.missed if run else 0,
                paused=state.paused,
                kept=state.last is not None,
            )
        )
    return Planned(found, keepers, ours)


def next_of(entry: Entry, state: State, now: float) -> float | None:
    """When an entry is due next, in seconds since 1970, as `now` is; it may be past."""
    return entry.following(now if state.paused or state.last is None else state.last)


def run(app: Any, name: str) -> str:
    """Send an entry's task now, whatever is due; returns the task's id.

    Raises:
        NotFoundError: when there is no such entry.
        ConfigError: when its task is not there, or does not take its arguments.
        BrokerError: when the broker does not answer, or refuses.
    """
    entry = _named(app, name)
    check_tasks(app, [entry])
    with broker(app) as redis:
        now = app.server.clock.now()
        id_ = str(send(app, entry, f"{name}@{now:.3f}").id)
        before = schedule_of(redis, [entry]).states()[name].run
        late, missed = (before.late, before.missed) if before else (0, 0)
        schedule_of(redis, [entry]).note_run(name, Run(id_, now, 0.0, late, missed))
    return id_


def pause(app: Any, name: str, *, paused: bool) -> None:
    """Have an entry's instants pass by, or be sent again.

    Raises:
        NotFoundError: when there is no such entry.
        BrokerError: when the broker does not answer, or refuses.
    """
    entry = _named(app, name)
    with broker(app) as redis:
        schedule_of(redis, [entry]).pause(name, paused=paused)


def _named(app: Any, name: str) -> Entry:
    declared = {entry.name: entry for entry in entries(app)}
    if name not in declared:
        there = ", ".join(declared) or "none"
        raise NotFoundError(f"no entry of the schedule is called {name!r} (entries: {there})")
    return declared[name]


def schedule_of(redis: Any, declared: list[Entry]) -> Schedule:
    """These entries, as Redis has them."""
    return Schedule(redis, {entry.name: entry.definition for entry in declared})


class _States:
    """States of results, for as long as their server answers."""

    def __init__(self, app: Any) -> None:
        self._app, self._asks = app, app.results is not None

    def of(self, id_: str) -> str | None:
        if not self._asks:
            return None
        try:
            return str(self._app.AsyncResult(id_).state)
        except (RedisError, OSError, OperationalError):
            self._asks = False
            return None
