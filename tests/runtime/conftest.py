"""Fixtures for the runtime's tests; the processes behind them are in harness.py."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state
from harness import running_broker
from kombu import pools

from acme_tasks.lanes.bind import bind
from acme_tasks.lanes.testing import forget_environment

Write = Callable[[str], Path]
POOLS: tuple[dict[Any, Any], ...] = (pools.producers, pools.connections)


forget_environment()  # before any app reads it


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
def bound(lanes_file: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Celery]]:
    """Makes an app, apart from all others, bound to a lanes.toml of the test's own."""
    others = {id(pool) for group in POOLS for pool in group.values()}

    made: list[Any] = []

    def make(lanes: str) -> Celery:
        monkeypatch.setenv("LANES_FILE", str(lanes_file(lanes)))
        made.append(bind(Celery("test", set_as_current=False)))
        return made[-1]

    # Tasks are shared between the apps of a process. Those of the project, and of other tests, name
    # lanes that this app need not have: it gets Celery's own alone.
    own = {task for task in _state._on_app_finalizers if task.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", own)
    yield make
    # kombu keeps them for as long as the process lives, three descriptors each.
    for group in POOLS:
        for key, pool in list(group.items()):
            if id(pool) not in others:
                dict.pop(group, key).force_close_all()
    for app in made:
        for connection in app.server._kept:
            connection.disconnect()
        app.server.client.connection_pool.disconnect()
