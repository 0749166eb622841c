"""Whether a worker's event loop turns, and a file that is touched for as long as it does.

LANES_HEARTBEAT_FILE names the file. A container's health check looks at its age, which takes a
shell a millisecond where a command of ours takes seconds, and asks nothing of the broker.
"""

import threading
import time
from pathlib import Path
from typing import Any

from celery import bootsteps

from .errors import SettingsError
from .timeouts import REPLY

VARIABLE = "LANES_HEARTBEAT_FILE"
LOOK = 1.0  # seconds between two looks at the ticks

_TICK = 0.5  # seconds between two ticks of the worker's event loop


class Pulse:
    """When a worker's event loop ticked last."""

    def __init__(self) -> None:
        self.ticked: float | None = None  # monotonic seconds; None: no tick is expected

    def is_stuck(self, now: float) -> bool:
        """Whether the event loop should have ticked since the last look and has not.

        It may stand still for one reply of a broker that is slow, or away: each of its waits ends
        by then, and what comes after it is a tick, or the end of the consumer.

        While the consumer is down (a broker outage, a shutdown) no tick is expected: the loop is
        silent for as long as the outage, and a healthy worker would be ended for it.
        """
        ticked = self.ticked
        return ticked is not None and now - ticked > LOOK + REPLY


def install(app: Any) -> Pulse:
    """Have the event loop of this worker process tick."""
    pulse = Pulse()
    app.steps["consumer"].add(_ticking(pulse))
    return pulse


def show(pulse: Pulse, file: Path) -> None:
    """Touch `file` each second from now on, but for those in which the loop is stuck.

    Raises:
        SettingsError: when it cannot be written.
    """
    try:
        file.touch()
    except OSError as error:
        raise SettingsError(
            f"{VARIABLE}: {file}: {error.strerror} (name a file where the worker may write, such "
            "as /tmp/heartbeat)"
        ) from None
    threading.Thread(target=_keep, args=(pulse, file), name="heartbeat", daemon=True).start()


def _keep(pulse: Pulse, file: Path) -> None:
    while True:
        time.sleep(LOOK)
        if not pulse.is_stuck(time.monotonic()):
            try:
                file.touch()
            except OSError:
                continue  # its age says so


def _ticking(pulse: Pulse) -> type:
    class Ticking(bootsteps.StartStopStep):
        """Have the event loop tick for as long as the consumer is up."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, parent: Any) -> None:
            # The threads and solo pools have no event loop, and solo's stands still in a task.
            if parent.hub is not None and parent.controller.use_eventloop:
                self._tick()
                self._timer = parent.timer.call_repeatedly(_TICK, self._tick)

        def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
            pulse.ticked = None
            if timer := getattr(self, "_timer", None):
                timer.cancel()

        def _tick(self) -> None:
            pulse.ticked = time.monotonic()

    return Ticking
