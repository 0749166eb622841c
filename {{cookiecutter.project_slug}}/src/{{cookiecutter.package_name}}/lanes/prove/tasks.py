"""The experiment's tasks: shared tasks, so that they run on the owner's own app and settings."""

import functools
import json
import random
import time
from typing import Any

from celery import shared_task

from .. import settings
from ..redis.connect import Server

STARTS = "prove:starts"  # Redis list of [number of the probe, seconds it waited]
AGAIN = "prove:again"  # Redis key


@functools.cache
def _client() -> Any:
    return Server(settings.load().broker).client


@shared_task(name="prove.probe", ignore_result=True)
def probe(number: int, sent_at: float) -> None:
    """Report how long the task waited: `sent_at` is the monotonic clock before the send."""
    # The clock is the same for all processes of a machine.
    waited = time.monotonic() - sent_at
    _client().rpush(STARTS, json.dumps([number, waited]))


@shared_task(name="prove.sleep", ignore_result=True)
def sleep(seconds: float) -> None:
    """Work that waits for something else."""
    time.sleep(seconds)


@shared_task(name="prove.work", ignore_result=True, bind=True)
def work(self: Any, mean: float, key: str) -> None:
    """Work that waits for something else: half of `mean` seconds to half as much more.

    While there is AGAIN, it sends its next when it ends, so that its slot is kept busy.
    """
    time.sleep(mean * random.uniform(0.5, 1.5))  # noqa: S311 - so that slots are not in step
    if _client().exists(AGAIN):
        self.apply_async((mean, key), queue=self.request.delivery_info["routing_key"], key=key)


@shared_task(name="prove.burn", ignore_result=True)
def burn(seconds: float) -> None:
    """Work that takes the processor, `seconds` of its time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
