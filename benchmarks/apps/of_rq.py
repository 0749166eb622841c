"""The tasks in rq. A job is a hash beside its queue; without a result it goes when it has run."""

import os
from functools import partial

from redis import Redis
from rq import Queue
from work import record, spin

connection = Redis.from_url(os.environ["BROKER_URL"])
quick, slow = Queue("quick", connection=connection), Queue("slow", connection=connection)


def nothing(number: int) -> None:
    """Be run."""


def waited(sent_at: float) -> None:
    """Tell how long it waited."""
    record(sent_at)


def burn(seconds: float) -> None:
    """Keep a processor busy."""
    spin(seconds)


SEND = {
    "nothing": partial(quick.enqueue, nothing, result_ttl=0),
    "waited": partial(quick.enqueue, waited, result_ttl=0),
    "burn": partial(slow.enqueue, burn, result_ttl=0),
}


def send_many(count: int) -> None:
    """Send `nothing` this often, in batches: a pipeline holds its commands in memory."""
    for first in range(0, count, 1000):
        numbers = range(first, min(first + 1000, count))
        quick.enqueue_many(
            [Queue.prepare_data(nothing, (number,), result_ttl=0) for number in numbers]
        )
