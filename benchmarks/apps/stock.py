"""Stock Celery as it installs, with one more queue."""

import os

from celery import Celery
from work import record, spin

app = Celery("stock", broker=os.environ["BROKER_URL"])


@app.task(ignore_result=True)
def nothing(number: int) -> None:
    """Be run."""


@app.task(ignore_result=True)
def waited(sent_at: float) -> None:
    """Tell how long it waited."""
    record(sent_at)


@app.task(ignore_result=True, queue="slow")
def burn(seconds: float) -> None:
    """Keep a processor busy."""
    spin(seconds)


SEND = {"nothing": nothing.delay, "waited": waited.delay, "burn": burn.delay}
