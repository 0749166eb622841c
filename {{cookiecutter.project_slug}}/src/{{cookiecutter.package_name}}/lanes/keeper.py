"""A worker's part in keeping the schedule, in a thread of its own.

There is no process for it, and none that leads: a worker that finds an instant due claims it. See
redis/schedule.py.
"""

import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

from celery.signals import (
    celeryd_after_setup,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from redis.exceptions import RedisError

from . import logs
from .config import Lane
from .errors import ConfigError
from .redis.identity import new_owner
from .redis.schedule import GONE, Claim, Schedule
from .schedule import check_tasks, entries, id_of, written
from .timetable import Entry

_SAY = GONE / 3  # seconds between two times that a worker says that it is there
_AWAY = 1.0  # seconds between two tries while the broker is away
_AGAIN = 10.0  # seconds until an entry is tried again whose task could not be sent
_SPREAD = 0.1  # seconds over which workers claim one instant, so that most find that it is done
_AT_ONCE = 20  # entries that are looked up together; meanwhile others may claim them

logger = logging.getLogger(__name__)


class Keeper:
    """What this worker knows of the schedule, and does for it."""

    def __init__(self, app: Any, declared: list[Entry], *, owner: str) -> None:
        """`owner` is what no other process has."""
        self.app, self.owner = app, owner
        self.entries = {entry.name: entry for entry in declared}
        definitions = {entry.name: entry.definition for entry in declared}
        self.schedule = Schedule(app.server.client, definitions)
        self._next: dict[str, float] = {}  # by entry: seconds since 1970
        self._said_at = float("-inf")  # monotonic seconds
        self._stopping = False  # a plain bool: it is set in a signal's handler
        self._ending = threading.Event()
        self._producer: Any = None

    def start(self, **_: Any) -> None:
        """Keep the schedule from now on, in a thread: what a sender's signals do may take long."""
        threading.Thread(target=self._keep, name="schedule", daemon=True).start()

    def stop(self, **_: Any) -> None:
        """The process stops, which may take as long as what it runs.

        Until it has ended it keeps what it can; but it does not count for which schedule is kept.
        """
        self._stopping = True

    def end(self, **_: Any) -> None:
        """The process ends."""
        self._ending.set()
        try:
            self.schedule.leave(self.owner)
        except (RedisError, OSError):
            return  # it is gone once it has said nothing for a while

    def _keep(self) -> None:
        wait, said = 0.0, ""
        while not self._ending.wait(wait):
            try:
                wait, said = self.look(), ""
            except (RedisError, OSError) as error:
                why, wait = self.app.server.explain(error), _AWAY
                if why != said:
                    logger.warning("the schedule waits: %s", why)
                said = why
            except Exception:
                logger.exception("the schedule could not be looked at; tried again in %d s", _AGAIN)
                wait = _AGAIN

    def look(self) -> float:
        """Claim what is due; returns the seconds until the next look makes sense.

        Raises:
            RedisError: when the broker is away.
        """
        if time.monotonic() - self._said_at >= _SAY:
            self._say()
        now = self.app.server.clock.now()
        due = [name for name, at in self._next.items() if at <= now]
        random.shuffle(due)  # workers share what is due at one time
        for start in range(0, len(due), _AT_ONCE):
            part = due[start : start + _AT_ONCE]
            lasts = self.schedule.lasts(part)
            claims = [each for name in part for each in self._claims(name, lasts.get(name), now)]
            answers = self.schedule.claim([claim for claim, _ in claims])
            for (claim, more), answer in zip(claims, answers, strict=True):
                self._heed(claim, more, answer, now)
        wait = self._said_at + _SAY - time.monotonic()
        if self._next:
            until = min(self._next.values()) - self.app.server.clock.now()
            wait = min(wait, until + random.uniform(0, _SPREAD))  # noqa: S311 - no secret
        return max(0.0, wait)

    def _say(self) -> None:
        """Say that this worker has this schedule, and hear whether it is the one that is kept."""
        if self._stopping:
            self.schedule.leave(self.owner)
            self._said_at = time.monotonic()
            return
        now, is_ours = self.schedule.keep(self.owner)
        self.app.server.clock.learn(now)
        if not is_ours:
            self._next = {}
        elif unplanned := [name for name in self.entries if name not in self._next]:
            for name, last in self.schedule.lasts(unplanned).items():
                self._plan(self.entries[name], last)
        self._said_at = time.monotonic()

    def _plan(self, entry: Entry, after: float) -> None:
        following = entry.following(after)
        if following is not None:
            self._next[entry.name] = following

    def _claims(
        self, name: str, last: float | None, now: float
    ) -> Iterator[tuple[Claim, list[tuple[Any, ...]]]]:
        """What of an entry is due, each with commands that follow when it was sent.

        Args:
            last: its last instant; None: another schedule is kept by now, or nobody knows of any.
        """
        if last is None:
            self._next.pop(name)
            self._said_at = float("-inf")
            return
        entry, sender = self.entries[name], self._sender()
        due = entry.due(last, now)
        for instant in due:
            id_ = id_of(entry, instant)
            try:
                command, *more = written(self.app, sender, entry, id_)
            except Exception:  # what tasks and receivers of signals raise is theirs
                text = "schedule.%s: its task could not be sent; tried again in %d s"
                logger.exception(text, name, _AGAIN)
                self._next[name] = now + _AGAIN
                return
            # Before the one that was waited for there is none; to count takes a while.
            missed = 0 if instant == self._next[name] else entry.count(last, instant)
            yield Claim(name, last, instant, id_, missed, command), more
            last = instant
        if not due:
            self._plan(entry, max(last, now))

    def _heed(self, claim: Claim, more: list[tuple[Any, ...]], answer: str, now: float) -> None:
        """What follows from the answer to a claim."""
        if answer == "early":  # what this process knows of the server's clock was wrong
            self._said_at = float("-inf")
        elif answer == "sent":
            for name, *arguments in more:  # events, to whoever listens
                self.app.server.client.execute_command(name, *arguments)
        if answer in ("sent", "paused"):
            self._plan(self.entries[claim.name], max(claim.instant, now))

    def _sender(self) -> Any:
        """A producer of its own, whose channel sends nothing itself."""
        if self._producer is None:
            connection = self.app.connection_for_write()
            self._producer = self.app.amqp.Producer(connection.channel())
        return self._producer


def install(app: Any, lane: Lane) -> None:
    """Have this worker process keep the schedule, once its tasks are known."""

    def begin(*, instance: Any, **_: Any) -> None:
        try:
            declared = entries(app)
            check_tasks(app, declared)
        except ConfigError as error:
            for problem in error.problems:
                logs.say(problem, lane.name, level=logging.ERROR)
            raise SystemExit(error.exit_code) from None
        keeper = Keeper(app, declared, owner=new_owner(instance.hostname))
        worker_ready.connect(keeper.start, weak=False)
        worker_shutting_down.connect(keeper.stop, weak=False)
        worker_shutdown.connect(keeper.end, weak=False)

    celeryd_after_setup.connect(begin, weak=False)
