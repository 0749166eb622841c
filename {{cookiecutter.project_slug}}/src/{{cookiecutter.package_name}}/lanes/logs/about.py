"""Which task a line is about: what its worker is busy with, or what the line itself says."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from celery import current_task

from ..routing import DUE

STARTED = "lane_started"  # of a run: when it began, in monotonic seconds
#: Celery's loggers that say how a run went.
_OUTCOMES = ("celery.app.trace", "celery.worker.request")

#: The message that the main process is busy with, by its headers.
_subject: ContextVar[Mapping[str, Any] | None] = ContextVar("subject", default=None)


@contextmanager
def about(headers: Any) -> Iterator[None]:
    """What is logged within is about the task whose message has these headers."""
    token = _subject.set(headers if isinstance(headers, Mapping) else None)
    try:
        yield
    finally:
        _subject.reset(token)


def subject() -> Mapping[str, Any]:
    """The headers of the message that this process is busy with, if it is with any."""
    return _subject.get() or {}


def about_waiting(message: bytes) -> Any:
    """Likewise, of a message as it is in Redis; about nothing, if it cannot be read."""
    headers = None
    with suppress(Exception):
        headers = json.loads(message)["headers"]
    return about(headers)


def about_run(request: Any) -> Any:
    """Likewise, about a run of a task, by Celery's request in the main process."""
    given = request.request_dict
    if request.time_start:
        given = given | {STARTED: time.monotonic() - (time.time() - request.time_start)}
    return about(given)


def of_task(record: logging.LogRecord) -> dict[str, Any]:
    """What is known of the task that a line is about."""
    given: Mapping[str, Any]
    if current_task and current_task.request.id:
        given = {**vars(current_task.request), "task": current_task.name}
    elif (subject := _subject.get()) is not None:
        given = subject
    else:
        data = getattr(record, "data", None)  # where Celery says what a line is about
        if not isinstance(data, Mapping) or not data.get("name"):
            return {}
        given = {**data, "task": data["name"]}
    known: dict[str, Any] = {
        key: text for key in ("task", "id") if isinstance(text := given.get(key), str)
    }
    if isinstance(retries := given.get("retries"), int):
        known["attempt"] = retries + 1
    if record.name in _OUTCOMES and STARTED in given:
        if DUE in given:
            known["wait"] = round(max(0.0, given[STARTED] - given[DUE]), 3)
        known["run"] = round(time.monotonic() - given[STARTED], 3)
    return known
