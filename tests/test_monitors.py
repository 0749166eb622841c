"""Flower, as its users start it, on a project's broker: it sees workers, tasks and queues."""

import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from processes import PATIENCE, broker, eventually, fleet, free_port
from support import succeed

pytestmark = pytest.mark.slow

# How it is started, and whether workers send events because Flower tells them to or because the
# project's settings say so.
WAYS = {
    "by the project": (("-A", "acme_tasks"), "--enable-events=false"),
    "by the broker's URL": (("--broker={url}",), "--enable-events=true"),
}


@dataclass(frozen=True, slots=True)
class Watched:
    """Workers of both lanes, and Flower."""

    port: int
    sender: Celery
    project: Path
    env: dict[str, str]

    def ask(self, path: str) -> dict[str, Any]:
        """What Flower's API answers."""
        url = f"http://127.0.0.1:{self.port}/api/{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as got:
            return dict(json.load(got))

    def pause(self, lane: str) -> None:
        """Have the lane fetch nothing more."""
        succeed(sys.executable, "-m", "acme_tasks", "pause", lane, cwd=self.project, env=self.env)

    def send(self) -> None:
        """One task for each lane."""
        for lane in ("quick", "slow"):
            self.sender.send_task(f"acme_tasks.tasks.{lane}_task", (0,), queue=f"{lane}_tasks")


@pytest.fixture(params=list(WAYS.values()), ids=list(WAYS))
def watched(
    request: pytest.FixtureRequest,
    baked: Callable[[str], Path],
    env: dict[str, str],
    tmp_path: Path,
) -> Iterator[Watched]:
    celery, events = request.param
    project = shutil.copytree(baked("default"), tmp_path / "acme-tasks")
    if "false" in events:
        _switch_events_on(project)
    port = free_port()
    with broker() as (url, _), Celery(broker=url, set_as_current=False) as sender:
        own = env | {
            "BROKER_URL": url,
            "PYTHONPATH": str(project / "src"),
            "PYTHONUNBUFFERED": "1",
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        with fleet(tmp_path, own) as start:
            workers = [
                start(lane, sys.executable, "-m", "acme_tasks", "worker", lane)
                for lane in ("quick", "slow")
            ]
            words = [word.format(url=url) for word in celery]
            flower = ("-m", "celery", *words, "flower", f"--port={port}", events)
            start("flower", sys.executable, *flower).await_log("Connected to redis://")
            for worker in workers:
                worker.await_log(" ready.")
            yield Watched(port, sender, project, own)


def _switch_events_on(project: Path) -> None:
    """With the line that the documentation gives for it."""
    (line,) = re.findall(r"`(app\.conf\S+\(.*?\))`", (project / "docs/delivery.md").read_text())
    module = project / "src/acme_tasks/celery.py"
    module.write_text(f"{module.read_text()}\n{line}\n")


def test_flower_sees_the_workers_the_tasks_and_how_many_wait(watched: Watched) -> None:
    def consumed() -> dict[str, list[str]]:
        return {
            name.partition("@")[0]: [queue["name"] for queue in worker.get("active_queues", ())]
            for name, worker in watched.ask("workers?refresh=1").items()
        }

    lanes = {"quick-1": ["quick_tasks"], "slow-1": ["slow_tasks"]}
    eventually(lambda: consumed() == lanes, "both lanes' workers")

    def succeeded() -> set[tuple[str, str]]:
        watched.send()  # again each time: the first ones may come before events are on
        return {
            (task["name"], task["worker"].partition("@")[0])
            for task in watched.ask("tasks").values()
            if task["state"] == "SUCCESS"
        }

    tasks = {("acme_tasks.tasks.quick_task", "quick-1"), ("acme_tasks.tasks.slow_task", "slow-1")}
    eventually(
        lambda: tasks <= succeeded(), "a task of each lane"
    )  # of the first, parts are unseen

    def waiting() -> dict[str, int]:
        return {
            queue["name"]: queue["messages"]
            for queue in watched.ask("queues/length")["active_queues"]
        }

    eventually(lambda: waiting() == {"quick_tasks": 0, "slow_tasks": 0}, "all to have run")
    watched.pause("slow")
    for _ in range(3):
        watched.send()
    eventually(lambda: waiting() == {"quick_tasks": 0, "slow_tasks": 3}, "three in slow to wait")
