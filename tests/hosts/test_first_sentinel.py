"""Sentinels that BROKER_URL names and that are not there, before the one that is."""

import signal
import time
from pathlib import Path

import pytest
from processes import Process, free_port

from .cast import NOISE, Cast, Here, Project
from .scenes import needs_redis

pytestmark = [pytest.mark.slow, needs_redis]

LONGEST = 60.0  # seconds until it is given up; never a claim
MORE = 3.0  # seconds that a worker may take longer for it, until it is ready


def test_a_worker_starts_nearly_as_fast_when_sentinels_are_down(
    tmp_path: Path, project: Project
) -> None:
    """Four workers start side by side; only the Sentinels of their URLs differ.

    Seen before: all up 9.0 s, the first down 30.8 s, two down 55.6 s; the first mute, not within
    120 s.
    """
    with Cast(tmp_path / "scene", project) as cast:
        watched = cast.watched([Here("server")], [Here(f"sentinel{n}") for n in range(3)])
        up, other, mute = watched.sentinels
        mute.process.process.send_signal(signal.SIGSTOP)  # it accepts, and says nothing
        down, also_down = (f"sentinel://127.0.0.1:{free_port()}/0" for _ in range(2))
        urls = {
            "all up": (up.url, other.url),
            "the first down": (down, up.url),
            "two of three down": (down, also_down, up.url),
            "the first mute": (mute.url, up.url),
        }
        began = time.monotonic()
        workers = {
            name: cast.worker(Here(name.replace(" ", "-")), ";".join(url), instance=number)
            for number, (name, url) in enumerate(urls.items(), 1)
        }
        took: dict[str, float] = {}

        def all_ready() -> bool:
            for name, worker in workers.items():
                if name not in took and _is_ready(worker):
                    took[name] = time.monotonic() - began
            return len(took) == len(workers)

        until = began + LONGEST
        while not all_ready() and time.monotonic() < until:
            time.sleep(0.05)
        shown = {name: round(seconds, 1) for name, seconds in took.items()}
        print("ready after", shown)
        assert "all up" in took, workers["all up"].log
        for name in urls:
            more = took.get(name, LONGEST) - took["all up"]
            assert more <= MORE + NOISE, f"{name}: {more:.1f} s more; ready after {shown}"


def _is_ready(worker: Process) -> bool:
    assert worker.process.poll() is None, worker.log
    return " ready." in worker.log
