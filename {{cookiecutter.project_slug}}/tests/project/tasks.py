"""What the runtime's tests run. No task names a lane: each test's lanes.toml has its routes."""

import os
import signal
import time
from pathlib import Path

from billiard.exceptions import SoftTimeLimitExceeded
from celery import current_task

from .celery import app


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
