"""Processes: started in a session of their own, measured by it in Linux's /proc, ended with it."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 600.0  # seconds that anything may take before it counts as stuck; rq is slow
STOPPING = 5.0  # seconds that a worker is given to stop, when nothing more is measured


class StuckError(Exception):
    """Raised when a process ended, or what was waited for did not come."""


class Session:
    """All processes of one that was started."""

    def __init__(self, command: list[str], env: Mapping[str, str], folder: Path) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until(self, condition: Callable[[], object], what: str, *, every: float = 0.01) -> None:
        """Wait for it; `every` is in seconds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                said = self.log.read_text(errors="replace")[-2000:]
                raise StuckError(f"{what}: not within {PATIENCE:.0f} s; the worker said:\n{said}")
            time.sleep(every)

    def pids(self) -> list[int]:
        """Of those that run."""
        return [pid for pid, fields in _processes() if int(fields[3]) == self.process.pid]

    def cpu(self) -> float:
        """Seconds of processor time of all so far, but for those that have ended."""
        own = [fields for _, fields in _processes() if int(fields[3]) == self.process.pid]
        ticks = sum(int(fields[11]) + int(fields[12]) for fields in own)
        return ticks / os.sysconf("SC_CLK_TCK")

    def pss(self) -> float:
        """MiB of memory of all, what they share counted once."""
        kib = 0
        for pid in self.pids():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            except OSError:
                continue  # it has ended
            kib += sum(int(line.split()[1]) for line in text.splitlines() if line[:4] == "Pss:")
        return kib / 1024

    def stop(self) -> None:
        """Ask it to; end what is left then."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            pass
        finally:
            while left := self.pids():
                for pid in left:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                self.process.poll()
                time.sleep(0.01)
            self.process.wait()


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Each process that runs, and its fields in `stat` from its state on."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if fields[0] not in "ZX":
            yield int(path.parent.name), fields


@contextmanager
def running(command: list[str], env: Mapping[str, str], folder: Path) -> Iterator[Session]:
    """A process and those that it starts, for as long as the block."""
    folder.mkdir(exist_ok=True)
    session = Session(command, env, folder)
    try:
        yield session
    finally:
        session.stop()
