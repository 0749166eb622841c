"""What a stopping worker does with its running tasks: finish them, or hand them back in time."""

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import billiard
import billiard.pool
import billiard.popen_fork
from celery.signals import worker_shutting_down

from .config import Lane
from .timeouts import AGAIN

#: Seconds that a child waits at its end for the worker to have read its results; billiard's 30 s
#: hold up a stop. A stopping worker drops tasks whose start it has not heard of, and so does not
#: count the results of those that run nevertheless (asynpool.py, `flush`): they run once more.
_FAREWELL = 3
#: Seconds within which a second SIGTERM is the first one's: whoever signals all that runs signals a
#: supervisor, too, which hands it on.
_ONE = 0.25
#: With what a worker ends its children, since they leave SIGTERM to it; Celery itself does so where
#: it is told by REMAP_SIGTERM, but then the worker, too, drops what it runs at a SIGTERM.
_ENDING = signal.SIGQUIT
#: Seconds that children have to end once they are told to; those that hang are killed. A supervisor
#: would wait for the worker as long as for its drain and 30 s, and kill it, and all it holds waits.
_LAST = 5.0


def install(lane: Lane) -> None:
    """Make this worker process drain as its lane says.

    Celery's warm shutdown, on SIGTERM, fetches nothing more and waits for running tasks, without
    end; its cold one, on SIGQUIT, ends them and leaves their messages to be delivered again. We go
    from the first to the second after `drain_timeout`, or at a second SIGTERM. Celery's own bounded
    form, worker_soft_shutdown_timeout, stops its event loop and sleeps for all of the time, even
    when the tasks have ended.
    """
    # Monotonic seconds. A plain number: an Event's lock would deadlock when a second signal
    # interrupts the handler.
    stopped = 0.0
    tries_a_second = 1 / billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = round(_FAREWELL * tries_a_second)

    def stopping(*, how: str, **_: Any) -> None:
        nonlocal stopped
        if how != "Warm":
            return
        now = time.monotonic()
        if stopped and now - stopped < _ONE:
            return
        again, stopped = bool(stopped), now
        if again and lane.pool == "prefork":
            _cold_shutdown()
        elif again:
            # Apart from what this signal interrupts: with solo, the running task itself.
            threading.Thread(target=_end).start()
        elif lane.drain == "requeue":
            timer = threading.Timer(lane.drain_timeout, _cold_shutdown)
            timer.daemon = True  # does not hold up a worker whose tasks have ended before
            timer.start()

    worker_shutting_down.connect(stopping, weak=False)
    _stop_on_hangup()
    if lane.pool == "prefork":
        _keep_children()


def hurry() -> None:
    """Stop this worker, and hand back what runs."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(AGAIN)
    os.kill(os.getpid(), signal.SIGTERM)


def _keep_children() -> None:
    """Have children leave it to the worker what a SIGTERM or SIGHUP means.

    Both reach them, too, from whoever signals a process group or all that runs: a shell, the init
    of a container, a platform that restarts. They would end at once, amid their tasks, and the
    worker, which drains, would count those as delivered. What a task starts ends by them as ever.
    """
    pool: Any = billiard.pool
    popen: Any = billiard.popen_fork
    reset, kill = pool.reset_signals, os.kill

    def reset_signals(*args: Any, **options: Any) -> None:
        """Called in each child as it begins; a program that it starts gets the usual handlers."""
        reset(*args, **options)
        child = os.getpid()

        def leave_it(number: int, _frame: Any) -> None:
            if os.getpid() != child:  # a fork of the child's own, which has its handlers
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)

        for each in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, leave_it)

    def end(pid: int, number: int) -> None:
        kill(pid, _ENDING if number == signal.SIGTERM else number)

    pool.reset_signals, pool._kill = reset_signals, end  # noqa: SLF001 - see contract.py
    pool.TERM_SIGNAL = popen.TERM_SIGNAL = _ENDING


def _stop_on_hangup() -> None:
    """Have a SIGHUP stop the worker as a SIGTERM does, unless it is ignored, as `nohup` has it.

    In a terminal that is closed, the worker would die of it at once. Elsewhere Celery drops the
    lane's drain and starts itself anew, by a command line that `python -m celery` cannot run.
    """
    from celery.apps import worker  # of no use to a sender
    from celery.worker import state

    def stop(*_: Any) -> None:
        if state.should_stop is None and state.should_terminate is None:
            os.kill(os.getpid(), signal.SIGTERM)

    def install_handler(*_: Any) -> None:
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, stop)

    install_handler()
    apps: Any = worker
    apps.install_worker_restart_handler = apps.install_HUP_not_supported_handler = install_handler


def _cold_shutdown() -> None:
    killer = threading.Timer(_LAST, _kill_children)
    killer.daemon = True  # does not hold up a worker whose children have ended
    killer.start()
    os.kill(os.getpid(), signal.SIGQUIT)


def _kill_children() -> None:
    for child in billiard.active_children():
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)


def _end() -> None:
    """Hand back all, and end what runs with the process: Celery can end neither thread nor solo."""
    from .redis.transport import hand_back_all  # of no use to a sender

    hand_back_all()
    os._exit(0)
