"""The tasks in dramatiq, on its broker for Redis, with the middleware that it installs."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from work import record, spin

broker = RedisBroker(url=os.environ["BROKER_URL"])  # type: ignore[no-untyped-call]
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="quick")
def nothing(number: int) -> None:
    """Be run."""


@dramatiq.actor(queue_name="quick")
def waited(sent_at: float) -> None:
    """Tell how long it waited."""
    record(sent_at)


@dramatiq.actor(queue_name="slow")
def burn(seconds: float) -> None:
    """Keep a processor busy."""
    spin(seconds)


SEND = {"nothing": nothing.send, "waited": waited.send, "burn": burn.send}
