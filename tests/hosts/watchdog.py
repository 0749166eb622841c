"""systemd's end of a worker's notifications: when which came."""

import itertools
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class Watchdog:
    """A socket for NOTIFY_SOCKET, listened to for the length of a `with` block."""

    def __init__(self, path: Path) -> None:
        """`path` is where the socket will be."""
        self.path = path
        self.pings: list[float] = []  # of WATCHDOG=1; seconds, monotonic
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._listen, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Listen."""
        self._socket.bind(str(self.path))
        self._socket.settimeout(0.5)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self._socket.close()
        self._thread.join()

    def _listen(self) -> None:
        while True:
            try:
                said = self._socket.recv(4096)
            except TimeoutError:
                continue
            except OSError:  # closed
                return
            if b"WATCHDOG=1" in said.split(b"\n"):
                self.pings.append(time.monotonic())

    def longest_silence(self, since: float, until: float) -> float:
        """Seconds without a ping, at most, in the time between."""
        marks = [since, *(ping for ping in self.pings if since < ping < until), until]
        return max(later - earlier for earlier, later in itertools.pairwise(marks))
