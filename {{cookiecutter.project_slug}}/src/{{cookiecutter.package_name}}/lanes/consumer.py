"""What happens to a message before it is a task, and when the task has failed for good.

Nothing that arrives in a queue may end the worker, stall it, take a slot for ever, or vanish: what
is no task becomes a dead letter with its bytes intact, and the worker goes on. On stock Celery 11
of 32 malformed messages end the worker, most of them again and again (5.7.0).
"""

import logging
import numbers
import select
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import celery.worker.consumer
import celery.worker.request
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback  # type: ignore[attr-defined]
from celery.exceptions import (
    CPendingDeprecationWarning,
    Ignore,
    NotRegistered,
    Reject,
    Retry,
    TimeLimitExceeded,
)
from celery.worker import state
from kombu.asynchronous import get_event_loop

from .redis.store import instant

_HEARING = 2.0  # seconds, at most, to hear from children that were just given a task
_REFUSED = 1.0  # seconds until a broker that answers, and refuses, is asked again

logger = logging.getLogger(__name__)


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
        if headers.get(key) is not None and not check(headers[key]):
            return f"headers.{key}: {headers[key]!r:.100} (not what Celery sends)"
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

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Any:
        """Celery's handler of a message, for messages that it can handle."""
        handle = super().create_task_handler(*args, **kwargs)

        def guarded(message: Any) -> None:
            wrong = problem(message)
            if wrong is not None:
                set_aside(message, "malformed", wrong)
                return
            try:
                handle(message)
            except self.connection_errors:
                raise
            except Exception as error:
                # Nothing known gets here; what does is one message's fault, and not the lane's.
                logger.exception("a message could not be handled")
                set_aside(message, "malformed", f"{type(error).__name__}: {error}")

        return guarded

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
            logger.warning("the broker refuses: %s", exc)
            time.sleep(_REFUSED)

    def on_close(self) -> None:
        """Called when the worker stops or its connection is lost."""
        _hear_children(self.pool)
        super().on_close()

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """A task that this worker does not know, such as one of a newer release."""
        name = message.headers["task"]
        set_aside(message, "unknown", f"no task is called {name!r}")
        self.app.backend.mark_as_failure(message.headers["id"], NotRegistered(name))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002
        """Celery could not make a request of it."""
        set_aside(message, "malformed", f"{type(exc).__name__}: {exc}")

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Of an unknown content type or encoding, or broken."""
        set_aside(message, "malformed", f"{type(exc).__name__}: {exc}")


def _hear_children(pool: Any) -> None:
    """Read what prefork's children have begun and ended, but is still in their pipes.

    A worker that stops, or lost its connection, forgets the tasks that no child was heard to begin
    and hands them back. Those that a child has begun all the same would run twice, and that child
    would take 30 s to end, since it waits for its result to be read.
    """
    children: Any = getattr(pool, "_pool", None)
    hub: Any = get_event_loop()
    if hub is None or not hasattr(children, "handle_result_event"):
        return  # another pool
    pipes = children._fileno_to_outq  # noqa: SLF001 - neither billiard nor Celery says it otherwise
    until = time.monotonic() + _HEARING
    while time.monotonic() < until and any(
        job._write_to and not job._accepted  # noqa: SLF001
        for job in list(children._cache.values())  # noqa: SLF001
    ):
        for pipe in select.select(list(pipes), [], [], 0.05)[0]:
            read, arguments = hub.readers.get(pipe, (children.handle_result_event, (pipe,)))
            if isinstance(read, Iterator):  # a message of which a part was read
                next(read, None)
            else:
                read(*arguments)


class Request(celery.worker.request.Request):
    """Celery's request, which sets a failed or expired task aside where it would acknowledge it."""

    _failure: tuple[str, str, str | None] | None = None  # reason, error, traceback

    def __init_subclass__(cls) -> None:
        """Called for the class that Celery makes of this one for each task.

        Its `on_success` cannot unpack what ended a thread, such as `sys.exit()`, and the slot would
        be taken for ever.
        """
        super().__init_subclass__()
        on_success = cls.on_success

        def on_end(self: Request, outcome: Any, **options: Any) -> Any:
            if isinstance(outcome, ExceptionInfo):
                return self.on_failure(outcome)
            return on_success(self, outcome, **options)

        cls.on_success = on_end  # type: ignore[assignment, method-assign]

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
        state.revoked.add(self.id)
        return True

    def acknowledge(self) -> None:
        """Acknowledge; a failure for good is set aside in the same step."""
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
        elif not isinstance(error, Ignore | Retry):
            self._failure = ("failed", f"{type(error).__name__}: {error}", exc_info.traceback)
        if isinstance(error, MemoryError):
            # Celery raises it here: it would end the worker, or take a thread's slot for ever.
            exc_info.exception = RuntimeError(f"MemoryError: {error}")
        super().on_failure(exc_info, *args, **kwargs)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Called for both limits; the soft one is the task's to handle."""
        if not soft:
            self._failure = ("failed", f"time limit of {timeout:g} s exceeded", None)
        super().on_timeout(soft, timeout)

    def _announce_revoked(
        self, reason: str, terminated: bool, signum: str | None, expired: bool
    ) -> None:
        if expired:
            self._failure = ("expired", f"expired at {self.expires}", None)
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]

    def _success_was_stored(self) -> Any:
        stored = super()._success_was_stored()  # type: ignore[misc]
        if stored:  # the child was lost after the task had succeeded
            self._failure = None
        return stored


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
    }
    message.channel.leases.set_aside(message.delivery_tag, report)
    message.channel.qos.free_slot(message.delivery_tag)
