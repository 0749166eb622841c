"""Stock Celery, set as its book says for tasks that must not be lost."""

import os

from celery import Celery

app = Celery("project", include=[f"{__package__}.tasks"])
app.conf.update(
    broker_url=os.environ["BROKER_URL"],
    result_backend=os.environ["RESULT_URL"],
    broker_transport_options={"visibility_timeout": float(os.environ["LEASE"])},
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_proc_alive_timeout=30,
)
