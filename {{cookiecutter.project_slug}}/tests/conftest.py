"""Fixtures for all tests; the processes behind them are in harness.py."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state
from harness import running_broker

from {{ cookiecutter.package_name }}.lanes.bind import bind

Write = Callable[[str], Path]


# No test sees, or reaches, what the environment names; this comes before any app reads it.
for name in (
    "BROKER_URL",
    "RESULT_URL",
    "SENTINEL_MASTER",
    "SENTINEL_USERNAME",
    "SENTINEL_PASSWORD",
    "LANES_FILE",
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
):
    os.environ.pop(name, None)


@pytest.fixture
def broker() -> Iterator[Any]:
    """A Valkey of the test's own: `.url` to connect to, `.redis` to look inside."""
    with running_broker() as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """One for all tests of a module."""
    with running_broker() as server:
        yield server


@pytest.fixture
def redis(server: Any) -> Any:
    """A client of the module's server, which is empty."""
    server.redis.flushall()
    return server.redis


@pytest.fixture
def lanes_file(tmp_path: Path) -> Write:
    """Writes a lanes.toml of the test's own."""

    def write(text: str) -> Path:
        path = tmp_path / "lanes.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def bound(lanes_file: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Celery]:
    """Makes an app, apart from all others, bound to a lanes.toml of the test's own."""

    def make(lanes: str) -> Celery:
        monkeypatch.setenv("LANES_FILE", str(lanes_file(lanes)))
        return bind(Celery("test", set_as_current=False))

    # Tasks are shared between the apps of a process. Those of the project, and of other tests, name
    # lanes that this app need not have: it gets Celery's own alone.
    own = {task for task in _state._on_app_finalizers if task.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", own)
    return make
