{% from 'lanes.jinja' import lanes with context -%}
"""What each lane of lanes.toml promises, seen with a real broker and a real worker of each."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest

from {{ cookiecutter.package_name }} import tasks
from {{ cookiecutter.package_name }}.__main__ import PROJECT
from {{ cookiecutter.package_name }}.lanes import config
from {{ cookiecutter.package_name }}.lanes.config import Lane
from {{ cookiecutter.package_name }}.lanes.prove.tasks import STARTS, probe, sleep
from {{ cookiecutter.package_name }}.lanes.status import purge, store_of
from {{ cookiecutter.package_name }}.lanes.testing import Process, wait_until

#: Yours to extend: for each lane, one of your tasks that may run here, and its arguments. In a lane
#: that is not listed, a task that does nothing stands in for it.
PROBES: dict[str, tuple[Any, tuple[Any, ...]]] = {
{%- for name, profile in lanes %}
    "{{ name }}": (tasks.{{ name }}_task, ({{ '0.01' if profile == 'slow' else '100' }},)),
{%- endfor %}
}
FLOOD = 30  # seconds that each of the other lanes has work for
AT_ONCE = 5  # seconds in which a task starts that waits for nothing, on a busy machine
LANES = list(config.load())
DEPLOY = Path(__file__).parent.parent / "deploy"

every_lane = pytest.mark.parametrize("lane", LANES, ids=[lane.name for lane in LANES])


@pytest.fixture(scope="module")
def workers(lanes_worker: Any) -> Iterator[dict[str, Process]]:
    with ExitStack() as stack:
        yield {lane.name: stack.enter_context(lanes_worker(lane.name)) for lane in LANES}


@pytest.fixture
def worker(workers: dict[str, Process], lane: Lane) -> Process:
    """The lane's worker; the others run beside it."""
    if workers[lane.name].process.poll() is not None:
        workers[lane.name].restart()
    return workers[lane.name]


def outcome(worker: Process, task_id: str) -> str:
    """How the task ended, in the words of the worker's log."""
    ended = re.compile(rf"\[{task_id}\] (succeeded|raised.*)")
    return str(wait_until(lambda: ended.search(worker.log), f"it to end:\n{worker.log}")[1])


def runs(lane: Lane, app: Any) -> bool:
    """Whether the lane's worker says that it runs something."""
    node = f"{lane.name}-1@{gethostname()}"
    return any((app.control.inspect([node], limit=1, timeout=AT_ONCE).active() or {}).values())


@every_lane
def test_its_worker_comes_up_as_declared(lane: Lane, worker: Process, lanes_app: Any) -> None:
    assert worker.process.poll() is None
    node = f"{lane.name}-1@{gethostname()}"
    asked = lanes_app.control.inspect([node], limit=1, timeout=AT_ONCE)
    queues, stats = asked.active_queues()[node], asked.stats()[node]
    assert [queue["name"] for queue in queues] == [lane.queue]
    assert lane.pool.rstrip("s") in stats["pool"]["implementation"]
    assert stats["prefetch_count"] == lane.prefetch * lane.concurrency
    if lane.pool == "prefork":
        assert stats["pool"]["max-concurrency"] == lane.concurrency
        assert stats["pool"]["timeouts"] == [lane.soft_time_limit or 0, lane.time_limit or 0]


@every_lane
def test_a_task_goes_through(lane: Lane, worker: Process) -> None:
    task, arguments = PROBES.get(lane.name, (sleep, (0,)))
    sent = task.apply_async(arguments, lane=lane.name)
    assert outcome(worker, sent.id) == "succeeded"


@every_lane
def test_a_flood_in_the_other_lanes_does_not_delay_it(
    lane: Lane, worker: Process, lanes_broker: Any
) -> None:
    redis, others = lanes_broker.redis, [other for other in LANES if other != lane]
    redis.delete(STARTS)
    try:
        for other in others:
            flood = [(0.25,)] * (4 * FLOOD * other.concurrency)
            sleep.send_many(flood, lane=other.name)
        probe.apply_async((0, time.monotonic()), lane=lane.name)
        wait_until(lambda: redis.llen(STARTS), f"the task to start:\n{worker.log}")
        assert all(store_of(redis, other).counts().waiting for other in others)
        [_, waited] = json.loads(redis.lpop(STARTS))  # seconds
        assert waited < AT_ONCE
    finally:
        for other in others:
            purge(redis, other, "waiting", lambda _count: None)


@pytest.mark.parametrize(
    "lane", [pytest.param(lane, id=lane.name) for lane in LANES if lane.max_deliveries > 1]
)
def test_what_a_killed_worker_ran_runs_again(lane: Lane, worker: Process) -> None:
    sent = sleep.apply_async((2,), lane=lane.name)
    worker.await_log(f"[{sent.id}] received")
    worker.kill()
    assert f"[{sent.id}] succeeded" not in worker.log
    worker.restart()
    assert outcome(worker, sent.id) == "succeeded"


@every_lane
def test_a_stop_lets_what_runs_finish_or_hands_it_back(
    lane: Lane, worker: Process, lanes_app: Any, lanes_broker: Any
) -> None:
    sent = sleep.apply_async((2,), lane=lane.name)
    ended = f"[{sent.id}] succeeded"
    worker.await_log(f"[{sent.id}] received")
    if lane.pool != "solo":  # that one says nothing while it runs a task
        # What a worker has received, and not heard the start of, it hands back in any case.
        wait_until(lambda: runs(lane, lanes_app) or ended in worker.log, "it to start")
    assert worker.end() == 0, worker.log
    handed_back = store_of(lanes_broker.redis, lane).counts().waiting
    assert (ended in worker.log) + handed_back == 1
    assert not handed_back or lane.drain == "requeue"


@every_lane
def test_its_units_start_it_and_systemd_has_nothing_to_say_against_them(
    lane: Lane, tmp_path: Path
) -> None:
    start = re.compile(
        rf"^(?:ExecStart=\S+ |command=\S+ | +command: \[)(?=worker\b\W+{lane.name}\b)", re.MULTILINE
    )
    files = [file for file in DEPLOY.glob("*/*") if start.search(file.read_text(encoding="utf-8"))]
    assert len(files) == len(PROJECT.process_managers)
    tool = shutil.which("systemd-analyze")
    for unit in (file for file in files if file.suffix == ".service" and tool):
        # Of a program that is here.
        text = start.sub("ExecStart=/bin/true ", unit.read_text(encoding="utf-8"))
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
        command = [str(tool), "verify", "--man=no", str(tmp_path / unit.name)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
