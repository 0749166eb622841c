"""Who has ended for sure: what this kernel says of one of its own processes, and nothing else."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from acme_tasks.lanes.redis import identity

NOW = 1_800_000_000.0  # seconds since 1970, by the server's clock


@pytest.fixture
def living() -> Iterator[int]:
    """The process id of another process, which runs."""
    command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate()


@pytest.fixture(scope="module")
def ended() -> int:
    """The process id of one that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def note(**known: Any) -> str:
    """This process's, but for `known`."""
    return json.dumps(json.loads(identity.note(NOW, stopping=False)) | known)


def test_one_that_has_ended_is_gone(ended: int) -> None:
    assert identity.is_gone(note(pid=ended), NOW)
    assert not identity.is_alive_here(note(pid=ended), NOW)


def test_one_that_runs_is_not(living: int) -> None:
    assert not identity.is_gone(note(pid=living), NOW)
    assert identity.is_alive_here(note(pid=living), NOW)


def test_one_that_may_not_be_signalled_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not identity.is_gone(note(pid=os.getppid()), NOW)
    assert identity.is_alive_here(note(pid=os.getppid()), NOW)


def test_one_whose_process_id_is_ours_now_is_gone() -> None:
    """In a container, a worker that was started again has the number of the one before."""
    assert identity.is_gone(note(pid=os.getpid()), NOW)
    assert not identity.is_alive_here(note(pid=os.getpid()), NOW)


def test_seconds_later_it_is_the_same_boot(ended: int) -> None:
    assert identity.is_gone(note(pid=ended), NOW + 1)


ELSEWHERE = {
    "another boot, or another host": {"boot": 1_600_000_000.0},
    "a boot that was minutes later": {
        "boot": json.loads(identity.note(NOW, stopping=False))["boot"] + 300
    },
    "another container's namespace": {"in": "1 another"},
    "a kernel that names no namespace": {"in": ""},
}


@pytest.mark.parametrize("known", ELSEWHERE.values(), ids=ELSEWHERE)
def test_one_elsewhere_is_neither_gone_nor_here(
    ended: int, living: int, known: dict[str, Any]
) -> None:
    for pid in (ended, living, os.getpid()):
        assert not identity.is_gone(note(pid=pid, **known), NOW)
        assert not identity.is_alive_here(note(pid=pid, **known), NOW)


def test_the_time_of_boot_is_by_the_servers_clock() -> None:
    """Two hosts' own clocks may agree on it by chance, or one's be set."""
    booted = [json.loads(identity.note(now, stopping=False))["boot"] for now in (NOW, NOW + 100)]
    assert booted[1] - booted[0] == pytest.approx(100, abs=30)
    assert booted[0] == pytest.approx(NOW - time.monotonic(), abs=30 * 86400)  # it may have slept


GARBAGE = {
    "nothing": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "an empty object": "{}",
    "half of it": '{"pid": 1}',
    "no number": note(pid="x"),
    "null for a number": note(pid=None),
    "a list for a number": note(boot=[]),
    "no time of boot": note(boot=float("nan")),
    "a number that no process has": note(pid=10**30),
    "a number without an end": note(pid=float("inf")),
    "the number of a group of processes": note(pid=-1),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_one_whose_note_cannot_be_read_is_neither_gone_nor_here(garbage: str) -> None:
    assert not identity.is_gone(garbage, NOW)
    assert not identity.is_alive_here(garbage, NOW)


def test_two_owners_of_a_node_differ_and_know_its_name() -> None:
    first, second = (identity.new_owner("quick-1@a#b") for _ in range(2))
    assert first != second
    assert identity.node_of(first) == identity.node_of(second) == "quick-1@a#b"
    assert identity.node_of("of-an-earlier-release@host") == "of-an-earlier-release@host"
