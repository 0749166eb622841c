"""The control arm: Celery as it comes, one queue for everything."""

from celery import Celery

from .. import settings

app = Celery("control", broker=settings.load().broker_url, set_as_current=False)
