"""Where results are kept; when it is away, a result is lost, and never the task or its sending."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import redis
from billiard.exceptions import WorkerLostError
from celery import current_app, states
from celery.app.task import Context
from celery.backends.base import Backend as BaseBackend
from celery.backends.redis import RedisBackend
from redis.exceptions import ResponseError

from .protocol import body_of, upgraded
from .timeouts import RESULTS_AWAY, RESULTS_PATIENCE

logger = logging.getLogger(__name__)


class Backend(RedisBackend):
    """Celery's Redis backend, on connections of ours, of which no task waits for long."""

    app: Any
    connection_errors: tuple[type[Exception], ...]
    result_consumer: Any
    #: For whoever waits for a result: Celery's, with an end.
    retry_policy: Any = BaseBackend.retry_policy | {"timeout": RESULTS_PATIENCE}
    _pending_results: Any  # Celery's, unknown to celery-types
    _away_until = 0.0  # monotonic seconds, until which it is not tried again

    def __init__(self, *args: Any, **options: Any) -> None:
        """The URL is the app's `results`, and not Celery's."""
        options["url"] = None
        super().__init__(*args, **options)
        self.url = self.app.results.endpoint.shown

    def _create_client(self, **params: Any) -> Any:  # noqa: ARG002 - Celery's signature
        return redis.Redis(connection_pool=self.app.results.pool())

    def set(self, key: str, value: Any, **options: Any) -> Any:
        """Once: Celery goes on for 20 s, and the task's slot waits."""
        return super().set(key, value, **({"max_retries": 0} | options))

    def as_uri(self, include_password: bool = False) -> str:
        """Without secrets, whoever asks."""
        del include_password
        return str(self.url)

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """Away, or there and refusing, for want of memory or disk."""
        return (*self.connection_errors, ResponseError)

    def _give_up(self, what: str, task_id: str, error: Exception | None) -> None:
        """Log that something is lost; the next ones do not wait for a backend that is away."""
        if isinstance(error, self.connection_errors):
            self._away_until = time.monotonic() + RESULTS_AWAY
        why = self.app.results.explain(error) if error else "it was away a moment ago"
        logger.error("%s: %s: %s", what, task_id, why)

    def _is_away(self) -> bool:
        return time.monotonic() < self._away_until

    def on_task_call(self, producer: Any, task_id: str) -> Any:  # noqa: ARG002
        """Nothing; Celery subscribes to the result here, and again when somebody waits for it.

        When the backend is away, a sender would be held up for 19 s, and then not send.
        """
        return {}

    def remove_pending_result(self, result: Any) -> Any:
        """As Celery's, and nothing where nobody has waited for any: a tenth of a send."""
        if self.result_consumer.subscribed_to or any(self._pending_results):
            return super().remove_pending_result(result)
        return result

    def _wait_for_pending(self, result: Any, *, on_interval: Any = None, **options: Any) -> Any:
        """As Celery's, and looks once more: for what came just before the subscription.

        Celery looks when it has subscribed, but on another connection, which may be faster.
        """
        look_at: float | None = time.monotonic() + 1

        def look() -> None:
            nonlocal look_at
            if on_interval:
                on_interval()
            if look_at is not None and time.monotonic() >= look_at:
                look_at = None
                with contextlib.suppress(*self.connection_errors):
                    self.result_consumer.on_wait_for_pending(result)

        return super()._wait_for_pending(result, on_interval=look, **options)  # type: ignore[misc]

    def on_chord_part_return(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """As Celery's, which raises here: the worker would take it for the loss of its broker."""
        error: Exception | None = None
        if not self._is_away():
            try:
                return super().on_chord_part_return(request, *arguments, **options)
            except self._failures as failure:
                error = failure
        self._give_up("a chord will not end, the backend failed", request.id, error)
        return None

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **options: Any,
    ) -> Any:
        """As Celery's, which raises here: the task that has ended well would count as failed."""
        error: Exception | None = None
        if not self._is_away():
            try:
                return super().store_result(task_id, result, state, traceback, request, **options)
            except self._failures as failure:
                error = failure
        self._give_up("a result is lost, the backend failed", task_id, error)
        return result


def store_lost(message: bytes, error: str) -> None:
    """Store the failure of a task whose workers all died, and tell its chord and its errbacks.

    Args:
        message: as it was in the queue.
        error: what became of it.
    """
    try:
        payload = upgraded(json.loads(message))
        _, _, options = body_of(payload)
    except Exception:  # nobody waits for what is not a task, and the worker goes on
        logger.exception("no failure could be stored for a message that was set aside")
    else:
        backend = current_app.backend
        store_failure(backend, payload["headers"], options, WorkerLostError(error))


def store_failure(
    backend: Any,
    headers: Mapping[str, Any],
    options: Any,
    error: Exception,
    *,
    state: str = states.FAILURE,
) -> None:
    """Store that a task has failed which no worker runs, and tell its chord, chain and errbacks.

    Args:
        backend: where to.
        headers: the message's.
        options: the third part of its body: chord, chain and errbacks, if they could be read.
        error: what whoever waits for the result is told.
        state: what the result's is.
    """
    try:
        # Celery looks into delivery_info for errbacks that take the id alone.
        request = Context({**headers, **(options or {}), "delivery_info": {}})
        backend.mark_as_failure(
            headers["id"],
            error,
            request=request,
            store_result=not headers.get("ignore_result"),
            state=state,
        )
    except Exception:  # the message is set aside all the same, and the worker goes on
        logger.exception("no failure could be stored for a message that was set aside")
