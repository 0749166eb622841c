"""Send the tasks of one arm, in a process of its own: what one installs must not slow another.

`python send.py MODULE HOW COUNT [NUMBER]` prints what it took, as JSON.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

WARM = 100  # sends before those that count: a connection, a script, what is made once


def one_at_a_time(arm: Any, count: int) -> dict[str, float]:
    """How many sends a second, and microseconds of this process's processor time for each."""
    send: Callable[[int], object] = arm.SEND["nothing"]
    for number in range(WARM):
        send(number)
    began, used = time.perf_counter(), time.process_time()
    for number in range(count):
        send(number)
    took, used = time.perf_counter() - began, time.process_time() - used
    return {"rate": count / took, "cpu": 1e6 * used / count}


def many(arm: Any, count: int) -> dict[str, float]:
    """How many sends a second by the arm's own way to send many; none, when it has none."""
    if not hasattr(arm, "send_many"):
        return {}
    arm.send_many(WARM)
    began = time.perf_counter()
    arm.send_many(count)
    return {"rate": count / (time.perf_counter() - began)}


def fill(arm: Any, count: int) -> dict[str, float]:
    """Queue tasks, in no measured time."""
    if hasattr(arm, "send_many"):
        arm.send_many(count)
    else:
        for number in range(count):
            arm.SEND["nothing"](number)
    return {}


def pace(arm: Any, count: int, rate: float) -> dict[str, float]:
    """Send at `rate` a second tasks that tell how long they waited, from before their send."""
    send, began = arm.SEND["waited"], time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.monotonic()))
        send(time.monotonic())
    return {}


def burn(arm: Any, count: int, seconds: float) -> dict[str, float]:
    """Queue tasks that take `seconds` of a processor's time each."""
    for _ in range(count):
        arm.SEND["burn"](seconds)
    return {}


WAYS = {each.__name__: each for each in (one_at_a_time, many, fill, pace, burn)}


def main(module: str, way: str, *numbers: str) -> None:
    """Do it, and tell."""
    count, *rest = numbers
    took = WAYS[way](importlib.import_module(module), int(count), *map(float, rest))
    print(json.dumps(took))


if __name__ == "__main__":
    main(*sys.argv[1:])
