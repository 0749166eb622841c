from celery import Celery

from .lanes.bind import bind

app = bind(Celery("project", include=[f"{__package__}.tasks"]))
