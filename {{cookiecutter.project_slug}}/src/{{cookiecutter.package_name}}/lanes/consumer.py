"""What happens to a message before it is a task, and when the task has failed for good.

Nothing that arrives in a queue may end the worker, stall it, take a slot for ever, or vanish: what
is no task becomes a dead letter with its bytes intact, and the worker goes on. On stock Celery 11
of 32 malformed messages end the worker, most of them again and again (5.7.0).
"""

import logging
import numbers
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

import celery.worker.consumer
import celery.worker.request
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]
from billiard.exceptions import WorkerLostError
from celery.exceptions import (
    CPendingDeprecationWarning,
    Ignore,
    InvalidTaskError,
    NotRegistered,
    Reject,
    Retry,
    TaskRevokedError,
    TimeLimitExceeded,
)
from celery.signals import task_rejected, task_unknown
from celery.states import REVOKED
from celery.utils.time import maybe_iso8601
from celery.worker import state

from . import logs
from .counting import Tally
from .redis.store import instant, key_in
from .results import store_failure
from .routing import SENT_AT

_SAID = 60.0  # seconds until the same is logged again
_REFUSED = 1.0  # seconds until a broker that answers, and refuses, is asked again

logger = logging.getLogger(__name__)


#: Seconds until a message comes again that this worker could not handle; the second time it is
#: twice as long, and so on. The fault may be one of all messages: then none is used up in a moment.
AGAIN = 5.0
_FOREVER = 1e9  # seconds, 30 years; a message may ask for more than a timer can count


def problem(message: Any) -> str | None:
    """Why `message` (a kombu message) is not a task that Celery can be given; None when it is one.

    Checks what Celery takes for granted: it indexes, unpacks and compares these without looking.
    """
    return message.malformed or _problem_of_envelope(message) or _problem_of_body(message)


def _problem_of_envelope(message: Any) -> str | None:
    for part in ("headers", "properties", "delivery_info"):
        if not isinstance(getattr(message, part), Mapping):
            return f"{part}: {type(getattr(message, part)).__name__} (expected an object)"
    headers = message.headers
    for key in ("task", "id"):
        if not isinstance(headers.get(key), str) or not headers[key]:
            return f"headers.{key}: {headers.get(key)!r:.100} (expected a text)"
    for key, check in _HEADERS.items():
        value = headers.get(key)
        if value is not None and not check(value):
            return f"headers.{key}: {value!r:.100} (not what Celery sends)"
    return None


def _problem_of_body(message: Any) -> str | None:
    try:
        body = message.payload
    except Exception as error:  # noqa: BLE001 - a decoder may raise anything
        return f"body: {type(error).__name__}: {error}"
    if not isinstance(body, list | tuple) or len(body) != 3:
        return "body: expected a list of three: arguments, keyword arguments, options"
    args, kwargs, options = body
    if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
        return "body: expected a list of arguments and an object of keyword arguments"
    if options is not None and not isinstance(options, Mapping):
        return f"body: options are {type(options).__name__} (expected an object)"
    return None


def _is_time(value: object) -> bool:
    at = instant(value)
    try:
        # Celery converts it, which overflows at either end of the calendar.
        return at is not None and bool(datetime.fromtimestamp(at, UTC).astimezone())
    except (ValueError, OverflowError):
        return False


def _time_of(text: Any) -> Any:
    """As Celery reads a time; in the form that its senders write, ten times as fast."""
    is_usual = isinstance(text, str) and text.endswith("+00:00")
    return datetime.fromisoformat(text) if is_usual else maybe_iso8601(text)


def _is_limits(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(limit is None or _is_number(limit) for limit in value)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_stamps(value: object) -> bool:
    """Celery looks each stamp up among the revoked, when the task has its slot already."""
    if not isinstance(value, Mapping):
        return False
    lists = (stamp if isinstance(stamp, list) else [stamp] for stamp in value.values())
    return not any(isinstance(stamp, list | Mapping) for stamps in lists for stamp in stamps)


_HEADERS = {
    "eta": _is_time,
    "expires": _is_time,
    "timelimit": _is_limits,
    "retries": _is_number,
    "stamped_headers": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "stamps": _is_stamps,
    "argsrepr": _is_text,
    "kwargsrepr": _is_text,
    "shadow": _is_text,
    "root_id": _is_text,
    "parent_id": _is_text,
    "group": _is_text,
    "origin": _is_text,
}


class Consumer(celery.worker.consumer.Consumer):
    """Celery's consumer behind the firewall."""

    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]
    app: Any
    pool: Any
    event_dispatcher: Any
    controller: Any

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's handler of a message, for messages that it can handle."""
        handle = super().create_task_handler(*args, **kwargs)
        self.app.worker_limits = (self.controller.time_limit, self.controller.soft_time_limit)
        self.app.worker_zone = self.app.conf.timezone  # looked up for each message, it takes long

        def guarded(message: Any) -> None:
            with logs.about(message.headers):
                pass_on(message)

        def pass_on(message: Any) -> None:
            wrong = problem(message)
            if wrong is not None:
                self._refuse(message, "malformed", wrong, InvalidTaskError(wrong))
                return
            try:
                handle(message)
            except KeyError as error:  # which kombu counts as the loss of a connection
                self._give_back(message, error)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001 - nothing known gets here
                self._give_back(message, error)

        return guarded

    def _give_back(self, message: Any, error: Exception) -> None:
        """A fault of the worker itself: the message goes back, and is set aside in the end."""
        logger.error("this worker could not handle a message", exc_info=error)
        channel, why = message.channel, f"{type(error).__name__}: {error}"
        if channel.lane and channel.leases.give_back(message.delivery_tag, AGAIN):
            channel.qos.free_slot(message.delivery_tag)
        else:
            self._refuse(message, "worker", why, WorkerLostError(why))

    def _refuse(self, message: Any, reason: str, error: str, exc: Exception) -> None:
        """Set a message aside for good that never became a task of this worker.

        Whoever waits for its result is told first, with its chord, its chain and its errbacks, so
        that a kill in between repeats that; then monitors, by Celery's events and signals.

        Args:
            reason: one of deadletters.REASONS.
            error: what is wrong with it, for the dead letter.
            exc: the same, for the result.
        """
        if _awaits_room(message):
            return
        headers = message.headers if isinstance(message.headers, Mapping) else {}
        id_, name = headers.get("id"), headers.get("task")
        is_named = bool(id_ and name) and _is_text(id_) and _is_text(name)
        if is_named:
            store_failure(self.app.backend, headers, _options(message), exc)
        set_aside(message, reason, error)
        if is_named and self.event_dispatcher:
            try:
                shown = f"{type(exc).__name__}({', '.join(map(repr, exc.args))})"[:1024]
                self.event_dispatcher.send("task-failed", uuid=id_, exception=shown)
            except Exception as failure:  # noqa: BLE001 - monitors do without
                logger.warning("no event could be sent: %s", failure)
        if reason == "unknown":
            task_unknown.send(sender=self, message=message, exc=exc, name=name, id=id_)
        else:
            task_rejected.send(sender=self, message=message, exc=exc)

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """The one connection that holds leases; any other, here or in a task, has none."""
        connection = self.app.connection_for_read(
            heartbeat=heartbeat, transport_options=self.app.lease_options
        )
        return self.ensure_connected(connection)

    def ensure_connected(self, conn: Any) -> Any:
        """As Celery's, which says each second what redis-py says, and not what to do."""
        told = ""

        def tell(error: Exception, _interval: float) -> None:
            nonlocal told
            why = self.app.server.explain(error)
            if why != told:
                logger.error("%s; trying until it answers", why)
            told = why

        pauses = {"interval_start": 0.2, "interval_step": 0.2, "interval_max": 1.0}  # seconds
        conn.ensure_connection(tell, callback=state.maybe_shutdown, **pauses)
        self.first_connection_attempt = False
        return conn

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Without Celery's warning that what runs will be run again: leases outlive this."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CPendingDeprecationWarning)
            super().on_connection_error_after_connected(exc)
        if isinstance(exc, self.channel_errors):
            logger.warning("the broker refuses: %s", self.app.server.explain(exc))
            time.sleep(_REFUSED)

    def on_close(self) -> None:
        """Called when the worker stops or its connection is lost."""
        hear = getattr(getattr(self.pool, "_pool", None), "hear", None)  # of our pool.py's
        if hear is not None:
            hear()
        super().on_close()

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """A task that this worker does not know, such as one of a newer release.

        It waits for workers that do: in a rolling deploy, each release meets the other's tasks.
        """
        name, channel = message.headers["task"], message.channel
        most = self.app.lanes.get(channel.lane).unknown_wait if channel.lane else None
        if most is not None:
            wait = channel.leases.await_release(message.delivery_tag, most)
            if wait is not None:
                channel.qos.free_slot(message.delivery_tag)
                self._say_unknown(name, most)
                return
        self._refuse(message, "unknown", f"no task is called {name!r}", NotRegistered(name))

    @cached_property
    def _said_unknown(self) -> dict[str, float]:
        """By task, monotonic seconds until it is said again."""
        return {}

    def _say_unknown(self, name: str, most: float) -> None:
        """Once a minute for each name: there may be thousands."""
        now = time.monotonic()
        if now < self._said_unknown.get(name, 0.0):
            return
        self._said_unknown[name] = now + _SAID
        logger.warning(
            "no task is called %.100r here: its messages wait, for %g s at the most, for workers "
            "that know it",
            name,
            most,
        )

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Celery could not make a request of it."""
        self._refuse(message, "malformed", f"{type(exc).__name__}: {exc}", exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Of an unknown content type or encoding, or broken."""
        why = f"{type(exc).__name__}: {exc}"
        self._refuse(message, "malformed", why, InvalidTaskError(why))


def _options(message: Any) -> Any:
    """The third part of the body, as far as a message that may be malformed has one."""
    try:
        options = message.payload[2]
    except Exception:  # noqa: BLE001 - a decoder may raise anything
        return None
    return options if isinstance(options, Mapping) else None


def shortest(*given: Any) -> tuple[float | None, float | None]:
    """The shortest hard limit and the shortest soft one of some pairs, in seconds; 0 is none."""
    hard, soft = (
        min((each for each in limits if each and 0 < each < _FOREVER), default=None)
        for limits in zip(*given, strict=True)
    )
    return hard, soft


class Request(celery.worker.request.Request):
    """Celery's request, which sets a failed or expired task aside where it would acknowledge it."""

    _failure: tuple[str, str, str | None] | None = None  # reason, error, traceback
    _is_revoked = False  # before it ran, or while it did
    _began: float | None = None  # monotonic seconds; None: it does not run, or that was counted

    def __init__(self, message: Any, **options: Any) -> None:
        """With the shortest time limits of call, task and worker, which has its lane's.

        Celery takes the call's, else the task's, else the worker's.
        """
        super().__init__(message, maybe_iso8601=_time_of, **options)
        app: Any = self.app
        own = (self.task.time_limit, self.task.soft_time_limit)
        self.time_limits = shortest(self.time_limits or (None, None), own, app.worker_limits)

    @property
    def tzlocal(self) -> Any:
        """As Celery's, which asks the settings for each message; it is for times without a zone."""
        app: Any = self.app
        return super().tzlocal if app.worker_zone is False else app.worker_zone

    def __init_subclass__(cls) -> None:
        """Called for the class that Celery makes of this one for each task.

        Its `on_success` cannot unpack what ended a thread, such as `sys.exit()`, and the slot would
        be taken for ever.
        """
        super().__init_subclass__()
        on_success: Any = cls.on_success

        def on_end(self: Request, outcome: Any, **options: Any) -> Any:
            if isinstance(outcome, ExceptionInfo):
                return self.on_failure(outcome)
            failed, _, seconds = outcome
            self._count_run(seconds)
            ended = on_success(self, outcome, **options)
            if not failed:
                self._count_end("succeeded")
            return ended

        cls.on_success = on_end  # type: ignore[assignment, method-assign]

    @property
    def _tally(self) -> Tally | None:
        channel = self.message.channel
        return channel.leases.tally if channel.lane else None  # Celery's worker for tests has none

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Called when a child, or a thread, begins to run the task; in monotonic seconds."""
        super().on_accepted(pid, time_accepted)
        if (tally := self._tally) is None:
            return
        self._began = time_accepted
        again = bool((self.message.delivery_info or {}).get("redelivered"))
        tally.started(self.name, self._wait(time_accepted), again=again)

    def _wait(self, until: float) -> float | None:
        """Seconds since it was sent, or due; None: its sender was a Celery that does not say."""
        sent = self.message.headers.get(SENT_AT)
        if not _is_number(sent):
            return None
        eta = self.message.headers.get("eta")
        due = max(sent, instant(eta) or sent) if eta else sent
        return float(self.message.channel.server.clock.at(until) - due)

    def _count_run(self, seconds: float | None = None) -> None:
        """Once for each start; where its child did not say how long it took, up to now."""
        began, self._began = self._began, None
        if began is not None and (tally := self._tally):
            tally.ran(self.name, time.monotonic() - began if seconds is None else seconds)

    def _count_end(self, outcome: str) -> None:
        if tally := self._tally:
            tally.ended(self.name, outcome)

    @property
    def eta(self) -> datetime | None:
        """None: the lane's server gave it out because it is due, by the only clock that counts.

        Celery would compare it with this host's, and keep the task until then.
        """
        return None if self.message.channel.lane else super().eta

    def maybe_expire(self) -> Literal[True] | None:
        """As Celery's, by the broker's clock: whether the task has waited for too long."""
        if self.message.channel.lane is None:
            return super().maybe_expire()
        if not self.expires:
            return None
        expires = self.expires if self.expires.tzinfo else self.expires.replace(tzinfo=UTC)
        if self.message.channel.server.clock.now() <= expires.timestamp():
            return None
        # Celery's notes its id, too: this worker would then drop it when `dead retry` brings it.
        return True

    def acknowledge(self) -> None:
        """Acknowledge; a failure for good is set aside in the same step."""
        if self._is_revoked and self.message.channel.lane and not self.acknowledged:
            # Celery's way does not say so, and a lock for a time would stay.
            self.message.channel.qos.ack(self.message.delivery_tag, revoked=True)
            self.acknowledged = True
            return
        if self._failure is None or self.acknowledged:
            super().acknowledge()
            return
        reason, error, traceback = self._failure
        set_aside(self.message, reason, error, traceback)
        self.acknowledged = True

    def reject(self, requeue: bool = False) -> None:
        """Reject; without a requeue the message would be gone, so it is set aside likewise."""
        if not requeue and self._failure is not None:
            self.acknowledge()
        else:
            super().reject(requeue)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> None:
        """Called by Celery in the main process for each failure, before it acknowledges."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):  # by its type: a Retry has an `exc`, too
            error = error.exc
        if isinstance(error, TimeLimitExceeded):  # comes before on_timeout
            self._failure = ("failed", f"time limit of {error.args[0]:g} s exceeded", None)
        elif isinstance(error, Reject):  # its own, or of a retry that could not be sent
            reason: Any = error.reason  # type: ignore[attr-defined]  # unknown to celery-types
            self._failure = ("failed", f"rejected: {reason!r}", exc_info.traceback)
        elif isinstance(error, Ignore | Retry):
            self._count_end("retried" if isinstance(error, Retry) else "ignored")
        else:
            self._failure = ("failed", f"{type(error).__name__}: {error}", exc_info.traceback)
        if isinstance(error, MemoryError):
            # Celery raises it here: it would end the worker, or take a thread's slot for ever.
            exc_info.exception = RuntimeError(f"MemoryError: {error}")
        self._count_run()
        with logs.about_run(self):
            super().on_failure(exc_info, *args, **kwargs)
        if self._failure and not (self.task.acks_late or self._already_revoked):
            self._count_end("failed")  # without a dead letter: it was acknowledged before

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Called for both limits; the soft one is the task's to handle."""
        if not soft:
            self._failure = ("failed", f"time limit of {timeout:g} s exceeded", None)
        with logs.about_run(self):
            super().on_timeout(soft, timeout)

    def _announce_revoked(
        self, reason: str, terminated: bool, signum: str | None, expired: bool
    ) -> None:
        if expired and _awaits_room(self.message):
            state.task_ready(self)
            self.acknowledged = self._already_revoked = True
            return
        if expired:
            self._failure = ("expired", f"expired at {self.expires}", None)
            context: Any = self._context  # type: ignore[attr-defined]
            if context.chain or context.errbacks:
                # Celery tells a chord alone of it, and would here too, a second time.
                own = {"chord": None, "ignore_result": not self.store_errors}
                store_failure(
                    self.task.backend,
                    vars(context) | own,
                    None,
                    TaskRevokedError(reason),
                    state=REVOKED,
                )
        self._is_revoked = not expired
        if not (expired or self._already_revoked):
            self._count_end("revoked")
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]

    def _retry_worker_lost(self, exc: Any, exc_info: Any) -> Any:
        """It runs once more, and so has not failed yet; what is acknowledged is this run."""
        failure, self._failure = self._failure, None
        retried = super()._retry_worker_lost(exc, exc_info)  # type: ignore[misc]
        if retried:
            self._count_end("retried")
        else:
            self._failure = failure
        return retried

    def _success_was_stored(self) -> Any:
        stored = super()._success_was_stored()  # type: ignore[misc]
        if stored:  # the child was lost after the task had succeeded
            self._failure = None
            self._count_end("succeeded")
        return stored


def _awaits_room(message: Any) -> bool:
    """Whether there is no room for the dead letter of this message: then it comes again later."""
    channel = message.channel
    if channel.lane is None or not channel.leases.await_room(message.delivery_tag):
        return False
    channel.qos.free_slot(message.delivery_tag)
    return True


def set_aside(message: Any, reason: str, error: str, traceback: str | None = None) -> None:
    """Make a dead letter of a message that this worker holds."""
    if message.channel.lane is None:  # Celery's worker for tests: it has no lane to keep it in
        message.ack()
        return
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    report = {
        "reason": reason,
        "error": error,
        "traceback": traceback,
        "task": headers.get("task") if _is_text(headers.get("task")) else None,
        "task_id": headers.get("id") if _is_text(headers.get("id")) else None,
        "key": key_in(headers),
    }
    message.channel.leases.set_aside(message.delivery_tag, report)
    message.channel.qos.free_slot(message.delivery_tag)
