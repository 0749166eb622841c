"""The runs: each is one suite in one mode, by a pytest of its own, side by side with the others."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .differences import left_out

HERE = Path(__file__).resolve().parent
SOURCES = Path("build/celery_suite")  # as the Makefile has it: each suite in a folder of its name
LOGS = SOURCES / "logs"

#: "<suite>/<mode>". in-process: Celery's worker for tests, in a thread; worker: a lane's process;
#: transport: ours, without a lane; lane: ours, each connection a worker's.
RUNS = (
    *("celery/stock", "celery/in-process", "celery/worker"),
    *("kombu/stock", "kombu/transport", "kombu/lane"),
)
FILES = {
    "celery": ["t/integration"],
    "kombu": ["t/integration/test_redis.py", "t/integration/test_redis_brpop_qos.py"],
}
#: pytest's plugins, on stock and on ours; those for ours alone.
PLUGINS = {
    "celery": ["celery.contrib.pytest", "celery_suite.plugin", "celery_suite.patience"],
    "kombu": ["celery_suite.plugin"],
}
OUR_PLUGINS = {"celery": ["celery_suite.apps"], "kombu": ["celery_suite.connections"]}
#: Of each run, each with a server of its own. The tests wait for most of their time.
PROCESSES = {"celery": 4, "kombu": 2}


@dataclass(slots=True)
class Run:
    """One run: its pytest, and what that has written down."""

    name: str
    process: subprocess.Popen[bytes]
    record: Path  # by plugin.py, a line of JSON for each event
    log: Path
    collected: set[str] = field(default_factory=set)
    not_collected: dict[str, str] = field(default_factory=dict)  # files, and why
    outcomes: dict[str, str] = field(default_factory=dict)  # by test
    why: dict[str, str] = field(default_factory=dict)  # likewise, one line
    again: dict[str, str] = field(default_factory=dict)  # what was repeated, and why
    finished: set[str] = field(default_factory=set)

    @property
    def suite(self) -> str:
        """Whose tests they are."""
        return self.name.partition("/")[0]

    def read(self) -> None:
        """Read the record anew."""
        self.outcomes.clear()
        for line in self.record.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if "collected" in event:
                self.collected |= set(event["collected"])
            elif "not_collected" in event:
                self.not_collected[event["not_collected"]] = event["why"]
            else:
                self._take(event)

    def _take(self, event: dict[str, str]) -> None:
        test, outcome = event["test"], event["outcome"]
        if event["when"] == "teardown":
            self.finished.add(test)
        if outcome == "rerun":
            self.again[test] = event["why"]
            self.outcomes.pop(test, None)
        elif self.outcomes.get(test, "passed") == "passed":
            # Set-up, call and tear-down each have one, and so have subtests: the worst counts.
            self.outcomes[test], self.why[test] = outcome, event["why"]


def start(name: str, bake: Path, *, processes: int | None, only: str | None) -> Run:
    """Begin a run.

    Args:
        name: of `RUNS`.
        bake: the generated project.
        processes: how many; None: as many as are useful.
        only: which tests, in the language of pytest's `-k`.
    """
    suite, _, mode = name.partition("/")
    plugins = PLUGINS[suite] + ([] if mode == "stock" else OUR_PLUGINS[suite])
    LOGS.mkdir(parents=True, exist_ok=True)
    record, log = (LOGS / f"{name.replace('/', '-')}.{end}" for end in ("jsonl", "log"))
    record.write_text("")
    path = [HERE.parent, bake / "src", SOURCES / suite]
    # Celery, pytest and the project read variables of whoever runs this.
    theirs = ("BROKER_", "CELERY_", "LANES_", "PYTEST_", "RESULT_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(theirs)}
    environment = inherited | {
        "CELERY_SUITE_RUN": name,
        "CELERY_SUITE_RECORD": str(record.resolve()),
        "WORKER_LOGLEVEL": "INFO",  # of Celery's worker for tests, which read its log
        # By its variable, which pytest-xdist's processes read before any conftest.py.
        "PYTEST_PLUGINS": ",".join(plugins),
        "PYTHONPATH": os.pathsep.join(str(folder.resolve()) for folder in path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        *(sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "--rootdir", "."),
        *("-n", str(processes or PROCESSES[suite]), "--dist", "load", "--maxschedchunk", "1"),
        *(f"--deselect={test}" if "::" in test else f"--ignore={test}" for test in left_out()),
        *(("-k", only) if only else ()),
        *FILES[suite],
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=SOURCES / suite,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that all that it starts can be ended with it
        )
    return Run(name, process, record, log)


def wait(runs: list[Run], limit: float) -> None:
    """Show how far they are until all have ended; those that have not in `limit` seconds, end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    until = monotonic() + limit
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        bars = {run.name: progress.add_task(run.name, total=None) for run in runs}
        running = list(runs)
        while running:
            sleep(1)
            for run in list(running):
                if run.process.poll() is not None or monotonic() > until:
                    running.remove(run)
                    end(run)
                run.read()
                total = len(run.collected) or None
                progress.update(bars[run.name], total=total, completed=len(run.finished))
                if run not in running:
                    progress.stop_task(bars[run.name])


def end(run: Run) -> None:
    """End what is left of it: servers and workers of a process that was killed, too."""
    try:
        os.killpg(run.process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    run.process.wait()
