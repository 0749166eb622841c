"""What a worker says: at which level, and with LOG_FORMAT=json as one JSON object a line.

Text stays as Celery writes it. Of JSON, every line must be an object, since a program reads them:
so what is printed, warned of and raised past the log goes the same way.
"""

import logging
import time
from typing import Any

import click
from celery.signals import after_setup_logger, after_setup_task_logger, task_prerun, task_received
from click.core import ParameterSource

from ..redis.store import instant
from ..routing import DUE, SENT_AT
from ..settings import Log
from .about import STARTED, about, about_run, about_waiting, subject
from .lines import begin, line, name_lane, say, to_json, warn

__all__ = [
    "about",
    "about_run",
    "about_waiting",
    "begin",
    "celery_command",
    "install",
    "line",
    "say",
    "serve",
    "subject",
    "warn",
]

_BILLIARDS = "multiprocessing"  # has handlers of its own


def celery_command() -> str | None:
    """Which command of Celery's this is, such as "worker": it imports the app at its start."""
    context = click.get_current_context(silent=True)
    root = context and context.find_root()
    return root.invoked_subcommand if root and root.command.name == "celery" else None


def install(log: Log) -> None:
    """Have Celery log as `log` says, in a process in which it sets logging up."""

    def set_up(*, logger: Any, **_: Any) -> None:
        if _level_was_left_out():
            logger.setLevel(log.level)
        if log.format == "json":
            to_json(logger)
            to_json(logging.getLogger(_BILLIARDS))

    for signal in (after_setup_logger, after_setup_task_logger):
        signal.connect(set_up, weak=False, dispatch_uid=__name__)


def _level_was_left_out() -> bool:
    """Whether this is a command of Celery's without `--loglevel`, which outranks LOG_LEVEL."""
    context = click.get_current_context(silent=True)
    return (
        context is not None and context.get_parameter_source("loglevel") is ParameterSource.DEFAULT
    )


def serve(app: Any, lane: str) -> None:
    """Have each line of this worker, in JSON, name its lane and the task that it is about."""
    begin(app.worker_log)
    if app.worker_log.format != "json":
        return
    name_lane(lane)
    app.conf.worker_redirect_stdouts = False  # they are ours

    def note_due(*, request: Any, **_: Any) -> None:
        """For the child that runs it, which asks no server what time it is."""
        given = request.request_dict
        sent = given.get(SENT_AT)
        if isinstance(sent, int | float):
            due = max(sent, instant(given.get("eta")) or sent)
            given[DUE] = time.monotonic() - (app.server.clock.now() - due)

    def note_start(*, task: Any, **_: Any) -> None:
        setattr(task.request, STARTED, time.monotonic())

    task_received.connect(note_due, weak=False, dispatch_uid=__name__)
    task_prerun.connect(note_start, weak=False, dispatch_uid=__name__)
