"""What the runtime's tests run. No task names a lane: each test's lanes.toml has its routes."""

import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import current_task
from celery.utils.log import get_task_logger

from .celery import app

task_logger = get_task_logger(__name__)


def note(path: str, text: str = "run") -> None:
    """Append a line, which is one write and so never mixed with another's."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


@app.task(name="echo")
def echo(value: str) -> str:
    return value


def where() -> str:
    """The lane whose worker runs this: nodes are called lane-1@host."""
    return str(current_task.request.hostname).partition("-")[0]


for name in ("where", "slow.where", "somewhere"):
    app.task(where, name=name)


@app.task(name="hold")
def hold(seconds: float, path: str) -> str:
    """Keep a slot busy; `path` says when it began."""
    note(path)
    time.sleep(seconds)
    return "held"


@app.task(name="hold_until")
def hold_until(go: str, path: str) -> str:
    """Keep a slot busy until there is a file `go`."""
    note(path)
    while not Path(go).exists():
        time.sleep(0.02)
    return "held"


@app.task(name="stubborn")
def stubborn(path: str) -> None:
    """Go on after the soft limit."""
    note(path)
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        note(path, "soft limit")
        time.sleep(60)


@app.task(name="fail", autoretry_for=(ValueError,), retry_kwargs={"countdown": 0})
def fail(path: str) -> None:
    note(path, where())
    raise ValueError("always")


@app.task(name="die", default_retry_delay=0)
def die(path: str) -> None:
    """End as a child does that the kernel's OOM killer chose."""
    note(path)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="light.note")
def light_note(path: str) -> str:
    note(path)
    return "nobody keeps this"


@app.task(name="move", bind=True)
def move(self: Any, how: str, lane: str, countdown: float) -> None:
    """Go on in another lane, in one of Celery's ways."""
    if how == "retry":
        raise self.retry(lane=lane, countdown=countdown)
    if how == "replace":
        self.replace(move.s(how, lane, countdown).set(lane=lane, countdown=countdown))
    elif how == "signature":
        again = self.signature_from_request(countdown=countdown)
        del again.options["queue"]
        again.apply_async(lane=lane)
    else:  # with the headers of this run, as those do who pass a trace on
        move.apply_async(
            (how, lane, countdown), lane=lane, countdown=countdown, headers=self.request.headers
        )


@app.task(name="chatty")
def chatty() -> None:
    """Say something in every way there is."""
    print("printed", "in", "parts")
    print("two\nlines")
    print("odd: \udc80 \x85 \u2028 \x00 é", file=sys.stderr)
    warnings.warn("careful", stacklevel=1)
    task_logger.info("by the task's\n%s", "logger")
    logging.getLogger("plain").error("%d does not fit", "text")


@app.task(name="loud")
def loud(size: int, lines: int) -> None:
    """Say much, in long lines."""
    for number in range(lines):
        task_logger.info("%d %s", number, "x" * size)
