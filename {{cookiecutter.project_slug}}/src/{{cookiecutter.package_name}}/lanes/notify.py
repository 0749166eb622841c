"""Tell systemd that a worker is ready, what it does, and that it is not stuck.

Nothing happens outside systemd, which sets NOTIFY_SOCKET for units of Type=notify.
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import os
import socket
import threading
import time
from typing import Any

from celery import bootsteps
from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state

from .config import Lane
from .redis.store import Keys, Store
from .timeouts import REPLY

_TICK = 0.5  # seconds between two ticks of the worker's event loop
_LOOK = 1.0  # seconds between two looks at them, each followed by a ping when there was one
_STATUS = 10.0  # seconds between two status lines


class Notifier:
    """A worker's side of the conversation with systemd."""

    def __init__(self, app: Any, lane: Lane, address: str, watchdog: float) -> None:
        """`watchdog` is WatchdogSec in seconds: a worker silent for longer is restarted."""
        self.app, self.lane, self.watchdog = app, lane, watchdog
        self.interval = min(_LOOK, watchdog / 4)  # seconds between two pings
        self.ready = False
        self.ticked: float | None = None  # monotonic seconds; None: no tick is expected
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # A leading @ stands for the null byte of an abstract address.
        self._socket.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)  # a systemd that is behind holds nobody up

    def send(self, *assignments: str) -> None:
        """Send one message; a systemd that does not listen is not our task's trouble."""
        try:
            self._socket.send("\n".join(assignments).encode())
        except OSError:
            return

    def is_stuck(self, now: float) -> bool:
        """Whether the event loop should have ticked since the last look and has not.

        It may stand still for one reply of a broker that is slow, or away: each of its waits ends
        by then, and what comes after it is a tick, or the end of the consumer.

        One look that finds no tick costs one ping and no more: systemd waits for `watchdog`
        seconds without any, so a busy loop that ticks now and then goes on.

        While the consumer is down (a broker outage, a shutdown) no tick is expected: the loop is
        silent for as long as the outage, and a healthy worker would be ended for it.
        """
        ticked = self.ticked
        return ticked is not None and now - ticked > self.interval + REPLY

    def keep_alive(self) -> None:
        """Thread: the watchdog's ping, and before the worker is ready, more time to start."""
        while True:
            if not self.ready:
                # The broker may be away for as long as it likes; the worker waits for it.
                self.send(f"EXTEND_TIMEOUT_USEC={int(self.watchdog * 1e6)}")
            elif not self.is_stuck(time.monotonic()):
                self.send("WATCHDOG=1")
            time.sleep(self.interval)

    def keep_posted(self) -> None:
        """Thread: what the worker does, in words. It may hang on the broker; the ping may not."""
        store = Store(self.app.server.client, Keys(self.lane.name, self.lane.queue))
        while True:
            self.send(f"STATUS={self._status(store)}")
            time.sleep(_STATUS)

    def _status(self, store: Store) -> str:
        running = f"{self.lane.name}: {len(state.active_requests)} running"
        try:
            waiting = store.counts().waiting
        except Exception:  # noqa: BLE001 - whatever it is, the broker does not answer
            return f"{running}, the broker does not answer"
        return f"{running}, {waiting} waiting"


def install(app: Any, lane: Lane) -> None:
    """Notify systemd of this worker process, when systemd wants to know."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    watchdog = int(os.environ.get("WATCHDOG_USEC", "30000000")) / 1e6
    notifier = Notifier(app, lane, address, watchdog)

    def on_ready(**_: Any) -> None:
        # Sent by Celery when the consumer consumes for the first time.
        notifier.ready = True
        notifier.send("READY=1", f"STATUS={lane.name}: consuming")

    def on_stopping(**_: Any) -> None:
        notifier.send("STOPPING=1", f"STATUS={lane.name}: stopping")

    worker_ready.connect(on_ready, weak=False)
    worker_shutting_down.connect(on_stopping, weak=False)
    app.steps["consumer"].add(_ticking(notifier))
    for target in (notifier.keep_alive, notifier.keep_posted):
        threading.Thread(target=target, name=f"notify-{target.__name__}", daemon=True).start()


def _ticking(notifier: Notifier) -> type:
    class Ticking(bootsteps.StartStopStep):
        """Have the event loop tick for as long as the consumer is up."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, c: Any) -> None:
            # The threads and solo pools have no event loop, and solo's stands still in a task.
            if c.hub is not None and c.controller.use_eventloop:
                self._tick()
                self._timer = c.timer.call_repeatedly(_TICK, self._tick)

        def stop(self, c: Any) -> None:  # noqa: ARG002 - Celery's signature
            notifier.ticked = None
            if timer := getattr(self, "_timer", None):
                timer.cancel()

        def _tick(self) -> None:
            notifier.ticked = time.monotonic()

    return Ticking
