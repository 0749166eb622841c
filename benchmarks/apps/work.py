"""What the tasks of every arm do, and where they tell of it."""

import os
import time

import redis

WAITED = "bench:waited"  # a list of how long each task waited, in seconds

client = redis.Redis.from_url(os.environ["BROKER_URL"])


def record(sent_at: float) -> None:
    """Tell how long a task waited that was sent at `sent_at`, by the clock that processes share."""
    client.rpush(WAITED, time.monotonic() - sent_at)


def spin(seconds: float) -> None:
    """Take this much of a processor's time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
