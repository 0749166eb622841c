"""Tell systemd that a worker is ready, what it does, and that it is not stuck.

systemd sets NOTIFY_SOCKET for units of Type=notify. The last of the three can be seen elsewhere
too, by a file: see pulse.py.
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from celery.signals import worker_ready, worker_shutting_down
from celery.worker import state

from . import pulse
from .config import Lane
from .redis.store import Keys, Store

_STATUS = 10.0  # seconds between two status lines


class Notifier:
    """A worker's side of the conversation with systemd."""

    def __init__(
        self, app: Any, lane: Lane, beat: pulse.Pulse, *, address: str, watchdog: float
    ) -> None:
        """`watchdog` is WatchdogSec in seconds: a worker silent for longer is restarted."""
        self.app, self.lane, self.pulse, self.watchdog = app, lane, beat, watchdog
        self.interval = min(pulse.LOOK, watchdog / 4)  # seconds between two pings
        self.ready = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # A leading @ stands for the null byte of an abstract address.
        self._socket.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)  # a systemd that is behind holds nobody up

    def start(self) -> None:
        """Tell systemd from now on."""
        worker_ready.connect(self._on_ready, weak=False)
        worker_shutting_down.connect(self._on_stopping, weak=False)
        for target in (self.keep_alive, self.keep_posted):
            threading.Thread(target=target, name=f"notify-{target.__name__}", daemon=True).start()

    def _on_ready(self, **_: Any) -> None:
        # Sent by Celery when the consumer consumes for the first time.
        self.ready = True
        self.send("READY=1", f"STATUS={self.lane.name}: consuming")

    def _on_stopping(self, **_: Any) -> None:
        self.send("STOPPING=1", f"STATUS={self.lane.name}: stopping")

    def send(self, *assignments: str) -> None:
        """Send one message; a systemd that does not listen is not our task's trouble."""
        try:
            self._socket.send("\n".join(assignments).encode())
        except OSError:
            return

    def keep_alive(self) -> None:
        """Thread: the watchdog's ping, and before the worker is ready, more time to start.

        One look that finds no tick costs one ping and no more: systemd waits for `watchdog`
        seconds without any, so a busy loop that ticks now and then goes on.
        """
        while True:
            if not self.ready:
                # The broker may be away for as long as it likes; the worker waits for it.
                self.send(f"EXTEND_TIMEOUT_USEC={int(self.watchdog * 1e6)}")
            elif not self.pulse.is_stuck(time.monotonic()):
                self.send("WATCHDOG=1")
            time.sleep(self.interval)

    def keep_posted(self) -> None:
        """Thread: what the worker does, in words. It may hang on the broker; the ping may not."""
        store = Store(self.app.server.client, Keys.of(self.lane))
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
    """Have this worker process say that it is well, to those that the environment names.

    Raises:
        SettingsError: when the file that it is said with cannot be written.
    """
    address, file = os.environ.get("NOTIFY_SOCKET"), os.environ.get(pulse.VARIABLE)
    if not (address or file):
        return
    beat = pulse.install(app)
    if file:
        pulse.show(beat, Path(file))
    if address:
        watchdog = int(os.environ.get("WATCHDOG_USEC", "30000000")) / 1e6
        Notifier(app, lane, beat, address=address, watchdog=watchdog).start()
