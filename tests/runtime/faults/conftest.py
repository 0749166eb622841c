"""Options and fixtures of the fault suite.

- `pytest tests/faults`: ours, in sizes for every day;
- `pytest tests/faults --rounds 6`: six times as much of the heavy ones;
- `pytest tests/faults --stock -rxX`: stock Celery, where XFAIL is a fault reproduced, and XPASS a
  fault that stock does not have, so that the test proves nothing new.

What stock did when it was last run (Celery 5.7.0) is in each test's `stock` marker.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import _state
from support import Fleet, Server


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--stock", action="store_true", help="Run the faults against stock Celery.")
    group.addoption("--rounds", type=int, default=1, help="How much of the heavy ones, 1 to 20.")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ours_only(why): stock Celery has nothing to compare with.")
    config.addinivalue_line("markers", "stock(what): what stock Celery did here, when it was run.")


def _option(config: pytest.Config, name: str, default: Any) -> Any:
    # A plain `pytest` finds this file too late to read its options from the command line.
    return config.getoption(name, default)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _option(config, "--stock", default=False):
        return
    for item in items:
        if marker := item.get_closest_marker("ours_only"):
            item.add_marker(pytest.mark.skip(reason=marker.args[0]))
        elif marker := item.get_closest_marker("stock"):
            item.add_marker(pytest.mark.xfail(reason=marker.args[0], strict=False))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure shows the workers' logs."""
    report = yield
    if report.when == "call" and (report.failed or hasattr(report, "wasxfail")):
        for fleet in item.stash.get(_FLEETS, []):
            report.sections.append((f"workers in {fleet.folder}", fleet.logs))
    return report


_FLEETS: pytest.StashKey[list[Fleet]] = pytest.StashKey()

MakeFleet = Callable[..., Fleet]


@pytest.fixture(autouse=True)
def _celerys_own_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are shared between the apps of a process, and other tests' name other lanes."""
    own = {task for task in _state._on_app_finalizers if task.__module__ == "celery.app.builtins"}
    monkeypatch.setattr(_state, "_on_app_finalizers", own)


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """How much of a heavy test, from --rounds."""
    return int(_option(request.config, "--rounds", 1))


@pytest.fixture
def stock(request: pytest.FixtureRequest) -> bool:
    """Whether stock Celery is tried."""
    return bool(_option(request.config, "--stock", default=False))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A broker that keeps its data over a restart."""
    server = Server(tmp_path / "server").start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def make_fleet(
    server: Server, stock: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[MakeFleet]:
    """Makes a `Fleet` of the server; its keywords are those of the lane."""
    fleets = request.node.stash.setdefault(_FLEETS, [])

    def make(broker: Server = server, **lane: object) -> Fleet:
        fleets.append(Fleet(tmp_path / f"fleet-{len(fleets)}", broker, stock=stock, **lane))
        return fleets[-1]

    try:
        yield make
    finally:
        for fleet in fleets:
            fleet.close()
