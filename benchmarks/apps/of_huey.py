"""The tasks in huey. It has no queues within an app, so that each is an app of its own."""

import os

from huey import RedisHuey
from work import record, spin

# `blocking` is its default: consumers wait in BRPOP, they do not poll.
quick = RedisHuey("quick", url=os.environ["BROKER_URL"], results=False)
slow = RedisHuey("slow", url=os.environ["BROKER_URL"], results=False)


@quick.task()
def nothing(number: int) -> None:
    """Be run."""


@quick.task()
def waited(sent_at: float) -> None:
    """Tell how long it waited."""
    record(sent_at)


@slow.task()
def burn(seconds: float) -> None:
    """Keep a processor busy."""
    spin(seconds)


SEND = {"nothing": nothing, "waited": waited, "burn": burn}
