"""Send tasks at a rate until SIGTERM, as an application would, and write down what became of each.

`sending.py PREFIX RATE LANE OUT SECONDS...`: tasks that take so many seconds, in turn. Each send is
two lines of OUT, `begin NAME TIME` and `done NAME TIME OUTCOME`, so that one that hangs is seen.
With COUNTDOWN in the environment, each tenth is to run so many seconds later.
"""

import importlib
import itertools
import os
import signal
import sys
import time
from pathlib import Path


def _main(prefix: str, rate: float, lane: str, out: Path, durations: list[float]) -> None:
    tasks = importlib.import_module(os.environ["PACKAGE"] + ".tasks")
    task = getattr(tasks, f"hosts_{lane}")
    later = {"countdown": float(os.environ["COUNTDOWN"])} if "COUNTDOWN" in os.environ else {}
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    due = time.monotonic()
    with out.open("a", buffering=1) as file:
        for number, seconds in zip(itertools.count(), itertools.cycle(durations)):
            if stopping:
                return
            name = f"{prefix}-{number}"
            file.write(f"begin {name} {time.monotonic():.3f}\n")
            try:
                task.apply_async((name, seconds), **(later if number % 10 == 0 else {}))
            except Exception as error:  # noqa: BLE001 - whatever a sender may get
                outcome = type(error).__name__
            else:
                outcome = "ok"
            file.write(f"done {name} {time.monotonic():.3f} {outcome}\n")
            due = max(due + 1 / rate, time.monotonic() - 1)  # what could not be sent stays unsent
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    _prefix, _rate, _lane, _out, *_seconds = sys.argv[1:]
    _main(_prefix, float(_rate), _lane, Path(_out), [float(each) for each in _seconds])
