"""Stock Celery by the book: two queues, late acks, what a lost worker held is to run again."""

import os

from celery import Celery
from kombu import Queue
from work import record, spin

app = Celery("stock_late", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_queues=[Queue("quick_tasks"), Queue("slow_tasks")],
    task_default_queue="quick_tasks",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=4,
)


@app.task(ignore_result=True)
def nothing(number: int) -> None:
    """Be run."""


@app.task(ignore_result=True)
def waited(sent_at: float) -> None:
    """Tell how long it waited."""
    record(sent_at)


@app.task(ignore_result=True, queue="slow_tasks")
def burn(seconds: float) -> None:
    """Keep a processor busy."""
    spin(seconds)


SEND = {"nothing": nothing.delay, "waited": waited.delay, "burn": burn.delay}
