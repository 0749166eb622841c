"""The control arm: Celery as it comes, one queue for everything."""

import os

from celery import Celery

app = Celery("control", broker=os.environ.get("BROKER_URL"), set_as_current=False)
