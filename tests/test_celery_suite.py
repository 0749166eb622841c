"""What `make test-celery` makes of its runs; the runs themselves are its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from celery_suite import differences
from celery_suite.report import report
from celery_suite.runs import RUNS, Run

LISTED = """
[[difference]]
runs = ["celery/worker"]
reason = "It is meant."
error = "AssertionError: assert 1"
tests = ["test_it"]

[[left_out]]
reason = "It needs a database."
tests = ["test_database.py"]
"""


def run(name: str, folder: Path, outcome: str, why: str = "") -> Run:
    """A run of one test, of which this came."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    record = folder / name.replace("/", "-")
    events: list[dict[str, object]] = [{"collected": ["test_it"]}]
    for when in ("setup", "call", "teardown"):
        came, because = (outcome, why) if when == "call" else ("passed", "")
        events.append({"test": "test_it", "when": when, "outcome": came, "why": because})
    record.write_text("".join(json.dumps(event) + "\n" for event in events))
    made = Run(name, process, record, folder / "log")
    made.read()
    return made


@pytest.mark.parametrize(
    ("outcome", "why", "wrong"),
    [
        pytest.param("xfailed", "AssertionError: assert 1 == 2", "", id="fails as listed"),
        pytest.param(
            "failed",
            "[XPASS(strict)] It is meant.",
            "test_it is listed, and passes: take it out of listed.toml",
            id="passes",
        ),
        pytest.param(
            "xfailed",
            "KeyError: 'a'",
            "test_it is listed, and fails in another way: KeyError: 'a'",
            id="fails in another way",
        ),
        pytest.param(
            "skipped", "no", "test_it is listed, and fails in another way: no", id="is skipped"
        ),
    ],
)
def test_what_is_listed_must_fail_as_it_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: str,
    why: str,
    wrong: str,
) -> None:
    listed = tmp_path / "listed.toml"
    listed.write_text(LISTED)
    for module in ("celery_suite.differences", "celery_suite.report"):
        monkeypatch.setattr(f"{module}.FILE", listed)
    runs = [run("celery/stock", tmp_path, "passed"), run("celery/worker", tmp_path, outcome, why)]
    assert report(runs, all_tests=True) is not bool(wrong)
    said = capsys.readouterr().out
    assert "celery/worker 1: It is meant." in said
    assert "left out, on stock too, 1: It needs a database." in said
    assert [line for line in said.splitlines() if line.startswith("WRONG")] == (
        [f"WRONG: celery/worker: {wrong}"] if wrong else []
    )


def test_what_passes_on_stock_must_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stock = run("kombu/stock", tmp_path, "passed")
    lane = run("kombu/lane", tmp_path, "failed", "TimeoutError")
    assert not report([stock, lane], all_tests=False)
    wrong = "WRONG: kombu/lane: test_it passes on stock, and here it is failed: TimeoutError"
    assert wrong in capsys.readouterr().out


def test_each_difference_is_of_a_run_and_has_a_reason() -> None:
    entries = [entry for name in RUNS for entry in differences.load(name)]
    assert {place for entry in entries for place in entry.runs} < set(RUNS)
    assert all(entry.reason.endswith(".") and entry.error for entry in entries)
    assert all(reason.endswith(".") for reason in differences.left_out().values())
