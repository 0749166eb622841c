"""Tasks that a fault can meet. Each records its start and its end in the ledger."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from celery.exceptions import Reject
from celery.signals import task_rejected, task_unknown

from .celery import app


def note(what: str, name: object, *more: object) -> None:
    """One write, and so never mixed with another's; the file outlives any process."""
    if not re.fullmatch(r"[\w-]+", str(name), re.ASCII):
        name = "odd"  # from a message that was changed at random
    file = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND)
    os.write(file, " ".join(map(str, (what, name, time.time(), *more))).encode() + b"\n")
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


@app.task(name="tick_of")
def tick_of(name: str, seconds: float) -> None:
    """Notes which worker it is one of, by its process group."""
    note("start", name, os.getpgid(0))
    time.sleep(seconds)
    note("end", name, os.getpgid(0))


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


@app.task(name="fail_at_length", max_retries=0)
def fail_at_length(name: str, length: int) -> None:
    note("start", name)
    raise ValueError("x" * length)


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


@app.task(name="reject_again")
def reject_again(name: str) -> None:
    """Asks to be run again until there is a file of its name."""
    note("start", name)
    if not mended(name):
        raise Reject(f"{name} is not ready", requeue=True)
    note("end", name)


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


@app.task(name="gather")
def gather(answers: list[str]) -> list[str]:
    """The end of a chord."""
    return sorted(answers)


@app.task(name="tick_briefly", time_limit=1)
def tick_briefly(name: str, seconds: float) -> None:
    """A limit of its own."""
    tick(name, seconds)


@app.task(name="tell")
def tell(task_id: str) -> None:
    """An errback that is sent as a task, with the id alone."""
    note("told", task_id)


@app.task(name="tell_all")
def tell_all(request: Any, error: Exception, traceback: Any) -> None:  # noqa: ARG001 - Celery's
    """An errback that is called at once, with all there is."""
    note("told_all", request.id)


def broken(*_: Any) -> Any:
    """A strategy of Celery's, by which a worker makes a request of a message: with a fault."""

    def handle(message: Any, *_: Any) -> None:
        note("start", message.headers["id"])
        raise KeyError("no such part")

    return handle


@app.task(name="unhandled", Strategy=f"{__name__}:broken")
def unhandled() -> None: ...


@task_unknown.connect
def on_unknown(id: str, **_: Any) -> None:  # noqa: A002 - Celery's name
    note("task_unknown", id)


@task_rejected.connect
def on_rejected(message: Any, **_: Any) -> None:
    note("task_rejected", message.headers["id"])


@app.task(name="redelivery", bind=True)
def redelivery(self, name: str, how: str) -> None:
    """Notes whether it is one. Until there is a file of its name, it asks for one, or waits."""
    note("start", name)
    note(f"redelivered={self.request.delivery_info['redelivered']}", name)
    if how == "reject" and not mended(name):
        raise Reject(f"{name} is not ready", requeue=True)
    while not mended(name):
        time.sleep(0.05)
    note("end", name)


class EndsTheWorker(app.Task):
    """Takes the worker along once its result is stored, until there is a file of its name."""

    def on_success(self, retval: str, *_: Any) -> None:
        if not mended(retval):
            os.killpg(os.getpgid(0), signal.SIGKILL)


@app.task(name="succeed_and_kill_worker", base=EndsTheWorker)
def succeed_and_kill_worker(name: str) -> str:
    note("start", name)
    return name


@app.task(name="hang")
def hang(name: str, how: str) -> None:
    """As a library does it that handles no signal, or a process that is not scheduled any more."""
    asking = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
    for each in asking:
        signal.signal(each, signal.SIG_IGN)
    note("start", name)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        time.sleep(1)


@app.task(name="end_own_processes")
def end_own_processes(name: str) -> None:
    """How a program ends that the task starts, and a fork of its own, when it tells them to."""
    note("start", name)
    program = subprocess.Popen(["sleep", "600"])  # noqa: S607
    program.terminate()
    begun, begins = os.pipe()
    fork = os.fork()
    if fork == 0:
        os.write(begins, b"!")
        for _ in range(6000):
            time.sleep(0.1)  # a signal that comes just before a sleep is seen after it
        os._exit(0)
    os.read(begun, 1)
    os.kill(fork, signal.SIGTERM)
    answer(name, [program.wait(60), os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])])
    note("end", name)


@app.task(name="own_pid")
def own_pid(name: str) -> None:
    answer(name, os.getpid())
    note("end", name)


@app.task(name="lost_then_retried", retry_on_worker_lost=True, default_retry_delay=1, max_retries=5)
def lost_then_retried(name: str) -> str:
    """Kills its child until there is a file of its name; Celery sends it again, as a retry."""
    note("start", name)
    if not mended(name):
        os.kill(os.getpid(), signal.SIGKILL)
    note("end", name)
    return name


@app.task(name="lost_for_good", retry_on_worker_lost=True, default_retry_delay=0, max_retries=1)
def lost_for_good(name: str) -> None:
    note("start", name)
    os.kill(os.getpid(), signal.SIGKILL)
