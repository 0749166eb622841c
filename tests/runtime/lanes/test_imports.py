"""What a process imports of the runtime, and of Celery: no more than it uses."""

from collections.abc import Iterator
from typing import Any

import pytest
from harness import Project, running_broker

from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"
[lanes.quick]
concurrency = 1
"""
#: What only commands use.
COMMANDS = {
    *("cli", "prove", "doctor", "advise", "capacity", "deploy", "planned", "metrics", "status"),
    *("deadletters", "broker", "workers", "envfile", "testing", "typed"),
}
#: What only workers use.
WORKERS = {
    *("consumer", "contract", "counting", "drain", "keeper", "notify", "parent", "pulse"),
    *("redis.fetch", "redis.leases", "redis.schedule", "redis.transport", "remote", "serving"),
    *("sharing", "descriptors", "excerpt", "schedule", "beat"),
}
CELERYS = {"celery.apps.worker", "celery.worker.consumer", "billiard.pool", "kombu.asynchronous"}


@pytest.fixture(scope="module")
def broker() -> Iterator[Any]:
    with running_broker() as server:
        yield server


@pytest.fixture
def project(broker: Any, tmp_path: Any) -> Project:
    return Project(tmp_path, LANES, broker.url)


def _among(modules: str, names: set[str]) -> set[str]:
    """Which of these parts of the runtime are among the modules that a process printed."""
    prefix = f"{PACKAGE}.lanes."
    loaded = {each.removeprefix(prefix) for each in modules.split() if each.startswith(prefix)}
    return loaded & names


SAYS = "import sys; print(*sys.modules)"


def test_a_sender_imports_nothing_that_workers_and_commands_use(project: Project) -> None:
    sender = project.python("-c", f"from {PACKAGE}.tasks import echo; echo.delay('x'); {SAYS}")
    assert _among(sender.stdout, {"task", "direct"}) == {"task", "direct"}, sender.stderr
    assert _among(sender.stdout, COMMANDS | WORKERS) == set()
    assert CELERYS & set(sender.stdout.split()) == set()


def test_a_worker_imports_nothing_that_commands_use_and_all_before_its_first_child(
    project: Project,
) -> None:
    """What children import each has for itself. Of billiard, more comes as the worker forks."""
    (project.folder / "spy.py").write_text(
        "import sys\n"
        "from celery import shared_task\n"
        "from celery.signals import worker_before_create_process\n"
        "before = set()\n"
        "@worker_before_create_process.connect\n"
        "def note(**_): before.update(sys.modules)\n"
        "@shared_task\n"
        "def modules(): return [sorted(before), sorted(set(sys.modules) - before)]\n",
        encoding="utf-8",
    )
    tasks = project.folder / PACKAGE / "tasks.py"
    tasks.write_text(f"{tasks.read_text(encoding='utf-8')}\nimport spy\n", encoding="utf-8")
    send = "from spy import modules; print(*map(' '.join, modules.delay().get(30)), sep='|')"
    with project.workers("quick"):
        told = project.python("-c", f"import {PACKAGE}.tasks; {send}")
    before, since = told.stdout.strip("\n").split("|")
    assert _among(before, WORKERS - {"beat"}) == WORKERS - {"beat"}
    assert _among(before, COMMANDS) == set()
    assert "rich" not in before.split()
    assert {each for each in since.split() if not each.startswith("billiard.")} <= {"mmap"}
