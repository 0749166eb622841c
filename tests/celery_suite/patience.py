"""pytest plugin for Celery's tests, on stock too: on a busy machine, and in an order of ours."""

import gc
from time import sleep
from typing import Any

import pytest
from celery import result
from celery.contrib.testing.manager import ManagerMixin


def _wait_until_idle(manager: Any) -> None:
    """As Celery's, at the end of each test; that waits a second longer, for further workers."""
    control = manager.app.control
    while control.purge():
        pass
    while any((control.inspect(limit=1).active() or {}).values()):
        sleep(0.1)


@pytest.fixture(scope="session")
def celery_worker_parameters() -> dict[str, float]:
    """Celery gives its worker 10 s to start and to stop, and a busy machine needs more."""
    return {"ping_task_timeout": 60, "shutdown_timeout": 60}


@pytest.fixture(autouse=True)
def _nothing_of_earlier_tests(request: pytest.FixtureRequest) -> None:
    # A test that makes a worker, and does not run it, leaves this forbidden.
    result._set_task_join_will_block(False)  # type: ignore[attr-defined]  # noqa: SLF001
    if "redis" in request.node.nodeid:  # these expect that no channel is subscribed
        gc.collect()


ManagerMixin.wait_until_idle = _wait_until_idle  # type: ignore[assignment, method-assign]
