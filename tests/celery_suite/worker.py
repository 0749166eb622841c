"""The app of the lane's worker process: what the tests' own app is, for `celery -A`."""

from typing import Any

from acme_tasks.lanes.bind import bind
from celery.contrib.testing.app import TestApp

#: As t/integration/conftest.py has it.
CONFIG = {"result_extended": True, "include": ["t.integration.tasks"]}


def _register_class_based_tasks(sender: Any, **_: Any) -> None:
    """What the fixture `celery_class_tasks` registers with Celery's worker for tests."""
    from t.integration.tasks import ClassBasedAutoRetryTask  # noqa: PLC0415 - uses the current app

    sender.register_task(ClassBasedAutoRetryTask)


app = bind(TestApp(config=CONFIG, enable_logging=True))
app.set_default()
app.on_after_finalize.connect(_register_class_based_tasks)
