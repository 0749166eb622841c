"""pytest plugin for Celery's tests: their apps bound to a lane, their worker a lane's own."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import celery.contrib.pytest
import celery.contrib.testing.app
import pytest
from acme_tasks.lanes.bind import bind
from acme_tasks.lanes.redis import fetch
from acme_tasks.lanes.worker import command
from celery import result
from celery.utils.nodenames import anon_nodename

from . import connections

LANES = Path(__file__).with_name("lanes.toml")
READY = 60  # seconds; a lane's worker starts in two or three

_TestApp = celery.contrib.testing.app.TestApp


def _environment() -> dict[str, str]:
    """What the project reads. Not for the tests' own: Celery's commands read BROKER_URL, too."""
    url = os.environ["TEST_BROKER"]
    return {"BROKER_URL": url, "RESULT_URL": os.environ["TEST_BACKEND"], "LANES_FILE": str(LANES)}


def _bound_app(*args: Any, **options: Any) -> Any:
    app = _TestApp(*args, **options)
    with patch.dict(os.environ, _environment()):
        return bind(app)


@pytest.fixture(scope="session")
def _worker_process(
    celery_session_app: Any, celery_includes: set[str], celery_class_tasks: list[Any]
) -> Iterator[subprocess.Popen[bytes]]:
    """Instead of Celery's worker in a thread: a process, by the command line of its lane."""
    app = celery_session_app
    for module in celery_includes:
        app.loader.import_task_module(module)
    for task in celery_class_tasks:
        app.register_task(task)
    words = command(app.lanes.default, app="celery_suite.worker")
    # The tests look for a node of this name.
    words = [f"--hostname={anon_nodename()}" if "--hostname" in word else word for word in words]
    log = f"{os.environ['CELERY_SUITE_RECORD']}.{os.environ['PYTEST_XDIST_WORKER']}.worker.log"
    with Path(log).open("wb") as file:
        process = subprocess.Popen(
            words, env=os.environ | _environment(), stdout=file, stderr=subprocess.STDOUT
        )
    try:
        with result.allow_join_result():
            assert app.send_task("celery.ping").get(timeout=READY) == "pong", log
        yield process
    finally:
        process.terminate()
        assert process.wait(READY) == 0, log


@pytest.fixture(autouse=True)
def _leased_connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file connects by itself, and not by the app; it goes silent in a wait of a minute."""
    if request.path.name == "test_connection_recovery.py":
        monkeypatch.setattr(request.module, "Connection", connections.Connection)
        monkeypatch.setattr(fetch, "FETCH", request.module.POLLING_INTERVAL)


_bound_app.__test__ = False  # type: ignore[attr-defined]
celery.contrib.testing.app.TestApp = _bound_app
if os.environ["CELERY_SUITE_RUN"] == "celery/worker":
    celery.contrib.pytest.celery_session_worker = _worker_process
