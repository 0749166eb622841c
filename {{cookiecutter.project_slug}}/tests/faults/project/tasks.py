"""Tasks that a fault can meet. Each records its start and its end in the ledger."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

from celery.exceptions import Reject

from .celery import app


def note(what: str, name: object) -> None:
    """One write, and so never mixed with another's; the file outlives any process."""
    if not re.fullmatch(r"[\w-]+", str(name), re.ASCII):
        name = "odd"  # from a message that was changed at random
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND)
    os.write(file, f"{what} {name} {time.time()}\n".encode())
    os.close(file)


def mended(name: str) -> bool:
    """Whether a test has made a file that ends the fault of this task."""
    return Path(f"{os.environ['LEDGER']}.{name}").exists()


def answer(name: str, value: object) -> None:
    """For the test to read, from a file that is there when it is whole."""
    path = Path(f"{os.environ['LEDGER']}.{name}-answer")
    path.with_suffix(".part").write_text(json.dumps(value), encoding="utf-8")
    path.with_suffix(".part").rename(path)


@app.task(name="tick")
def tick(name: str, seconds: float = 0.0) -> str:
    note("start", name)
    if seconds:
        time.sleep(seconds)
    note("end", name)
    return name


@app.task(name="kill_child")
def kill_child(name: str) -> None:
    """As the kernel's OOM killer does it."""
    note("start", name)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="kill_worker")
def kill_worker(name: str) -> None:
    """Takes the main process and all its children along."""
    note("start", name)
    os.killpg(os.getpgid(0), signal.SIGKILL)


@app.task(name="kill_once")
def kill_once(name: str) -> None:
    """Kills its child the first times, until there is a file of its name."""
    note("start", name)
    if not mended(name):
        os.kill(os.getpid(), signal.SIGKILL)
    note("end", name)


@app.task(name="fail", max_retries=0)
def fail(name: str) -> None:
    """Fails until there is a file of its name."""
    note("start", name)
    if not mended(name):
        raise ValueError(f"{name} fails")
    note("end", name)


@app.task(name="retry_once", bind=True)
def retry_once(self, name: str, countdown: float) -> None:
    note("start", name)
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    note("end", name)


@app.task(name="fail_late", max_retries=0)
def fail_late(name: str, seconds: float) -> None:
    note("start", name)
    time.sleep(seconds)
    raise ValueError(f"{name} fails")


@app.task(name="exhaust")
def exhaust(name: str) -> None:
    """As when there is no memory for what it builds."""
    note("start", name)
    raise MemoryError(f"{name} is too big")


@app.task(name="leave")
def leave(name: str) -> None:
    """As a script does that was made a task."""
    note("start", name)
    sys.exit(f"{name} is done")


@app.task(name="reject")
def reject(name: str) -> None:
    note("start", name)
    raise Reject(f"{name} is refused", requeue=False)


@app.task(name="hold")
def hold(name: str) -> None:
    """Runs until there is a file of its name."""
    note("start", name)
    while not mended(name):
        time.sleep(0.05)
    note("end", name)


@app.task(name="ask_workers")
def ask_workers(name: str) -> None:
    """Which workers answer, asked by one of their own tasks."""
    note("start", name)
    answer(name, app.control.inspect(timeout=4).ping())
    note("end", name)


@app.task(name="use_mailbox")
def use_mailbox(name: str) -> None:
    """Puts to a queue that is no lane's, and gets from it, on a connection of each kind."""
    note("start", name)
    got = []
    for connect in (app.connection_for_read, app.connection_or_acquire):
        with connect() as connection, connection.SimpleQueue("other") as mailbox:
            mailbox.put({"from": connect.__name__})
            try:
                letter = mailbox.get(timeout=30)
            except mailbox.Empty:
                got.append(None)
            else:
                letter.ack()
                got.append(letter.payload)
    answer(name, got)
    note("end", name)
