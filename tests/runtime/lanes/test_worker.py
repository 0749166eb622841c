import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from acme_tasks.lanes import config, worker
from acme_tasks.lanes.worker import PACKAGE, command

LANES = """
default_lane = "quick"

[lanes.quick]
[lanes.slow]
queue = "night"
max_tasks_per_child = 100
max_memory_per_child = "512M"
nice = 15
[lanes.light]
pool = "threads"
concurrency = 8
[lanes.single]
pool = "solo"
[lanes.endless]
time_limit = false
"""
CELERY = [sys.executable, "-m", "celery", "--quiet", "-A", PACKAGE, "worker"]


@pytest.fixture
def lanes(lanes_file: Callable[[str], Path]) -> config.Lanes:
    return config.load(lanes_file(LANES))


def flags(lanes: config.Lanes, name: str) -> dict[str, str]:
    return dict(word.split("=") for word in command(lanes.get(name)) if "=" in word)


def test_a_lanes_limits_are_its_workers_flags(lanes: config.Lanes) -> None:
    assert command(lanes.get("quick")) == [
        *CELERY,
        "--hostname=quick-1@%h",
        "--queues=quick_tasks",
        "--pool=prefork",
        "--concurrency=4",
        "--prefetch-multiplier=4",
        "--time-limit=30",
        "--soft-time-limit=27",
        "--without-mingle",
        "--without-gossip",
    ]


def test_a_lane_may_give_way_and_renew_its_processes(
    lanes: config.Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.os, "getpriority", lambda *_: 0)
    assert command(lanes.get("slow")) == [
        *("nice", "-n", "15"),
        *CELERY,
        "--hostname=slow-1@%h",
        "--queues=night",
        "--pool=prefork",
        "--concurrency=2",
        "--prefetch-multiplier=1",
        "--time-limit=3600",
        "--soft-time-limit=3240",
        "--max-tasks-per-child=100",
        f"--max-memory-per-child={512 * 1024}",
        "--without-mingle",
        "--without-gossip",
    ]


@pytest.mark.parametrize(
    ("already", "added"), [(0, ["nice", "-n", "15"]), (5, ["nice", "-n", "10"]), (15, []), (19, [])]
)
def test_a_lane_that_gives_way_already_is_asked_for_no_more(
    lanes: config.Lanes, monkeypatch: pytest.MonkeyPatch, already: int, added: list[str]
) -> None:
    monkeypatch.setattr(worker.os, "getpriority", lambda *_: already)  # as systemd has set it
    words = command(lanes.get("slow"))
    assert words[: words.index(sys.executable)] == added


@pytest.mark.parametrize(
    ("name", "pool", "concurrency"), [("light", "threads", "8"), ("single", "solo", "1")]
)
def test_a_pool_without_processes_is_given_no_limits(
    lanes: config.Lanes, name: str, pool: str, concurrency: str
) -> None:
    given = flags(lanes, name)
    assert (given["--pool"], given["--concurrency"]) == (pool, concurrency)
    assert not [flag for flag in given if "limit" in flag or "child" in flag]


def test_a_lane_without_a_time_limit_has_no_flag_for_it(lanes: config.Lanes) -> None:
    assert not [flag for flag in flags(lanes, "endless") if "limit" in flag]


def test_each_worker_of_a_lane_has_a_node_name_of_its_own(lanes: config.Lanes) -> None:
    names = [command(lanes.get("quick"), instance=number)[7] for number in (1, 2)]
    assert names == ["--hostname=quick-1@%h", "--hostname=quick-2@%h"]


def test_another_app_can_be_named(lanes: config.Lanes) -> None:
    assert command(lanes.get("quick"), app="other.app")[:6] == [*CELERY[:5], "other.app"]


def test_run_becomes_that_command(lanes: config.Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(worker.os, "execvp", lambda file, words: became.append((file, words)))
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    worker.run(lanes.get("quick"), instance=2)
    words = command(lanes.get("quick"), instance=2)
    assert became == [(words[0], words)]
