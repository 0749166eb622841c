"""What a stopping worker does with its running tasks: finish them, or hand them back in time."""

import os
import signal
import threading
from typing import Any

import billiard.pool
from celery.signals import worker_shutting_down

from .config import Lane

#: Seconds that a child waits at its end for the worker to have read its results; billiard's 30 s
#: hold up a stop. A stopping worker drops tasks whose start it has not heard of, and so does not
#: count the results of those that run nevertheless (asynpool.py, `flush`): they run once more.
_FAREWELL = 3


def install(lane: Lane) -> None:
    """Make this worker process drain as its lane says.

    Celery's warm shutdown, on SIGTERM, fetches nothing more and waits for running tasks, without
    end; its cold one, on SIGQUIT, ends them and leaves their messages to be delivered again. We go
    from the first to the second after `drain_timeout`, or at a second SIGTERM. Celery's own bounded
    form, worker_soft_shutdown_timeout, stops its event loop and sleeps for all of the time, even
    when the tasks have ended.
    """
    stopped = False  # a lock, such as an Event has, would meet itself in a second signal's handler
    tries_a_second = 1 / billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = round(_FAREWELL * tries_a_second)

    def stopping(*, how: str, **_: Any) -> None:
        nonlocal stopped
        if how != "Warm":
            return
        again, stopped = stopped, True
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


def _cold_shutdown() -> None:
    os.kill(os.getpid(), signal.SIGQUIT)


def _end() -> None:
    """Hand back all, and end what runs with the process: Celery can end neither thread nor solo."""
    from .redis.transport import hand_back_all  # of no use to a sender

    hand_back_all()
    os._exit(0)
