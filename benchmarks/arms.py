"""What is measured: this template's lanes, and what people run beside or instead of them.

Each is run as its documentation says, with the delivery that it promises; its tasks are in `apps/`.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

BIN = Path(sys.executable).parent
APPS = Path(__file__).parent / "apps"

Command = Callable[[str, int, Mapping[str, str]], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to send and to run the same tasks.

    Attributes:
        name: how an option calls it.
        label: how the table calls it, with a place for its version.
        distribution: whose version that is; None for what is baked here.
        delivery: what it promises of a task whose worker dies.
        module: its tasks, in `apps/`.
        queues: the Redis lists in which "quick" and "slow" tasks wait.
        command: the worker of "quick" or "slow" with so many processes, in that environment.
    """

    name: str
    label: str
    distribution: str | None
    delivery: str
    module: str
    queues: Mapping[str, str]
    command: Command

    @property
    def title(self) -> str:
        """Its label, with the version that is installed."""
        return self.label.format(self.distribution and version(self.distribution))


def _ours(lane: str, processes: int, env: Mapping[str, str]) -> list[str]:
    """The command that the project itself gives, for `processes` in both lanes."""
    project = Path(env["BENCH_PROJECT"])
    generated = (project / "src/acme_tasks/lanes.toml").read_text(encoding="utf-8")
    lanes = project / f"lanes-{processes}.toml"
    text = re.sub(r"(?m)^concurrency = \d+", f"concurrency = {processes}", generated)
    lanes.write_text(text, encoding="utf-8")
    program = [sys.executable, "-m", "acme_tasks", "worker", lane, "--print"]
    own = dict(env) | {"LANES_FILE": str(lanes)}
    printed = subprocess.run(program, env=own, check=True, capture_output=True, text=True).stdout
    return ["env", f"LANES_FILE={lanes}", *shlex.split(printed), "--include=ours"]


def _stock_late(lane: str, processes: int, _env: Mapping[str, str]) -> list[str]:
    celery = [sys.executable, "-m", "celery", "--quiet", "-A", "stock_late", "worker"]
    own = [f"--hostname={lane}@%h", f"--queues={lane}_tasks", f"--concurrency={processes}"]
    return [*celery, *own, "--loglevel=INFO"]


def _stock(lane: str, processes: int, _env: Mapping[str, str]) -> list[str]:
    celery = [sys.executable, "-m", "celery", "-A", "stock", "worker", f"--hostname={lane}@%h"]
    queues = ["--queues=slow"] if lane == "slow" else []
    return [*celery, *queues, f"--concurrency={processes}"]


def _dramatiq(lane: str, processes: int, _env: Mapping[str, str]) -> list[str]:
    own = ["--processes", str(processes), "--threads", "1", "--queues", lane]
    return [str(BIN / "dramatiq"), "of_dramatiq", *own]


def _dramatiq_threads(lane: str, _processes: int, _env: Mapping[str, str]) -> list[str]:
    # A process for each processor, of 8 threads.
    return [str(BIN / "dramatiq"), "of_dramatiq", "--queues", lane]


def _rq(lane: str, processes: int, env: Mapping[str, str]) -> list[str]:
    # SimpleWorker forks for no job; what rq runs by default does, and is many times as slow.
    own = ["--num-workers", str(processes), "--worker-class", "rq.worker.SimpleWorker"]
    return [str(BIN / "rq"), "worker-pool", lane, *own, "--url", env["BROKER_URL"]]


def _huey(lane: str, processes: int, _env: Mapping[str, str]) -> list[str]:
    own = ["--worker-type", "process", "--workers", str(processes)]
    return [str(BIN / "huey_consumer"), f"of_huey.{lane}", *own]


_LANES = {"quick": "quick_tasks", "slow": "slow_tasks"}
_OF_DRAMATIQ = {"quick": "dramatiq:quick", "slow": "dramatiq:slow"}

ARMS = (
    Arm(
        name="ours",
        label="ours",
        distribution=None,
        delivery="at least once",
        module="ours",
        queues=_LANES,
        command=_ours,
    ),
    Arm(
        name="stock-late",
        label="Celery {}, late acks",
        distribution="celery",
        delivery="at least once is meant",
        module="stock_late",
        queues=_LANES,
        command=_stock_late,
    ),
    Arm(
        name="stock",
        label="Celery {}, as installed",
        distribution="celery",
        delivery="at most once",
        module="stock",
        queues={"quick": "celery", "slow": "slow"},
        command=_stock,
    ),
    Arm(
        name="dramatiq",
        label="dramatiq {}, a thread each",
        distribution="dramatiq",
        delivery="at least once",
        module="of_dramatiq",
        queues=_OF_DRAMATIQ,
        command=_dramatiq,
    ),
    Arm(
        name="dramatiq-threads",
        label="dramatiq {}, as installed",
        distribution="dramatiq",
        delivery="at least once",
        module="of_dramatiq",
        queues=_OF_DRAMATIQ,
        command=_dramatiq_threads,
    ),
    Arm(
        name="rq",
        label="rq {}",
        distribution="rq",
        delivery="at most once",  # a job whose worker died goes to FailedJobRegistry
        module="of_rq",
        queues={"quick": "rq:queue:quick", "slow": "rq:queue:slow"},
        command=_rq,
    ),
    Arm(
        name="huey",
        label="huey {}",
        distribution="huey",
        delivery="at most once",  # BRPOP, then it runs
        module="of_huey",
        queues={"quick": "huey.redis.quick", "slow": "huey.redis.slow"},
        command=_huey,
    ),
)
