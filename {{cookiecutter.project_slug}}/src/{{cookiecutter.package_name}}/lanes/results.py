"""Where results are kept; when it is away, a result is lost, and never the task or its sending."""

import contextlib
import json
import logging
import time
from base64 import b64decode
from typing import Any

from billiard.exceptions import WorkerLostError
from celery import current_app
from celery.app.task import Context
from celery.backends.redis import RedisBackend, SentinelBackend
from kombu.serialization import loads
from redis.exceptions import ResponseError

logger = logging.getLogger(__name__)


class _Losing:
    """Mixin that logs what could not be stored, and is not needed for sending."""

    connection_errors: tuple[type[Exception], ...]
    result_consumer: Any

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """Away, or there and refusing, for want of memory or disk."""
        return (*self.connection_errors, ResponseError)

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:  # noqa: ARG002
        """Nothing; Celery subscribes to the result here, and again when somebody waits for it.

        When the backend is away, a sender would be held up for 19 s, and then not send.
        """
        return {}

    def _wait_for_pending(self, result: Any, on_interval: Any = None, **options: Any) -> Any:
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
        try:
            return super().on_chord_part_return(request, *arguments, **options)  # type: ignore[misc]
        except self._failures as error:
            logger.error("a chord will not end, the backend failed: %s: %s", request.id, error)  # noqa: TRY400 - one line
            return None

    def store_result(self, task_id: str, result: Any, state: str, **options: Any) -> Any:
        """As Celery's, which raises here: the task that has ended well would count as failed."""
        try:
            return super().store_result(task_id, result, state, **options)  # type: ignore[misc]
        except self._failures as error:
            logger.error("the result of %s is lost, the backend failed: %s", task_id, error)  # noqa: TRY400 - one line
            return result


def store_lost(message: bytes, error: str) -> None:
    """Store the failure of a task whose workers all died, and tell its chord and its errbacks.

    Args:
        message: as it was in the queue.
        error: what became of it.
    """
    try:
        payload = json.loads(message)
        headers, body = payload["headers"], payload["body"]
        if payload["properties"].get("body_encoding") == "base64":
            body = b64decode(body)
        _, _, options = loads(
            body, payload["content-type"], payload["content-encoding"], accept={"application/json"}
        )
        current_app.backend.mark_as_failure(
            headers["id"],
            WorkerLostError(error),
            request=Context(headers | (options or {})),
            store_result=not headers.get("ignore_result"),
        )
    except Exception:  # nobody waits for what is not a task, and the worker goes on
        logger.exception("no failure could be stored for a message that was set aside")


class Backend(_Losing, RedisBackend):  # type: ignore[misc]
    """For redis://, rediss:// and redis+socket://."""


class SentinelResults(_Losing, SentinelBackend):  # type: ignore[misc]
    """For sentinel://."""
