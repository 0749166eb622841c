"""`make bench`, with few tasks: every arm runs, every figure is told, nothing is left running."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import eventually
from support import ROOT, run, succeed

# They share what is measured once; `--dist loadfile` gives them one process.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BENCH = (sys.executable, ROOT / "benchmarks/bench.py")
FEW = ("--sends=50", "--drained=200", "--starts=20", "--bulk=200", "--waiting=2000", "--rounds=2")
ROWS = [
    "median (min\N{EN DASH}max)",
    "---",
    "delivery",
    "sent one at a time, /s",
    "CPU of a send, µs",
    "sent many at once, /s",
    "run, tasks/s",
    "CPU of a task's run, ms",
    "send to start, p50, ms",
    "send to start, p99, ms",
    "the same under a flood, p50, ms",
    "the same under a flood, p99, ms",
    "p99 under a flood, of that when idle",
    "memory of an idle worker, MiB",
    "CPU of a task's run, 1,000 waiting, ms",
    "the same, 2,000 waiting, ms",
    "many waiting by few",
]


@dataclass(frozen=True)
class Measured:
    """What a run printed and wrote."""

    printed: str
    json: Path

    def tables(self) -> list[list[list[str]]]:
        """The cells of each."""
        found = []
        for block in self.printed.split("\n\n"):
            if block.startswith("|"):
                rows = block.strip().splitlines()
                found.append([[cell.strip() for cell in row.split("|")[1:-1]] for row in rows])
        return found


@pytest.fixture(scope="module")
def measured(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Every figure, of two arms."""
    folder = tmp_path_factory.mktemp("bench")
    file = folder / "bench.json"
    arms = "--arms=stock,ours"
    return Measured(succeed(*BENCH, *FEW, arms, "--json", file, cwd=folder, env=env), file)


def test_the_table_has_every_figure_of_each_arm(measured: Measured) -> None:
    figures, ratios = measured.tables()
    assert [row[0] for row in figures] == ROWS
    assert figures[0][1:] == ["ours", "Celery 5.7.0, as installed"]
    assert figures[2][1:] == ["at least once", "at most once"]
    numbers = [row for row in figures[3:] if "waiting" not in row[0]]
    assert all("(" in cell for row in numbers for cell in row[1:] if row[0] != ROWS[5]), numbers
    assert [row[0] for row in ratios[2:]] == [
        row for row in ROWS[3:] if "waiting" not in row and not row.startswith("p99")
    ]
    assert all(len(row) == 2 for row in ratios)


def test_every_figure_of_every_round_is_in_the_json(measured: Measured) -> None:
    told: dict[str, Any] = json.loads(measured.json.read_text())
    assert told["rounds"] == 2
    assert list(told["arms"]) == ["ours", "stock"]
    assert len(told["figures"]) == len(ROWS) - 3
    for name, of_arms in told["figures"].items():
        only_ours = name.startswith(("bulk", "head"))
        assert sorted(of_arms) == (["ours"] if only_ours else ["ours", "stock"]), name
        assert all(len(values) == 2 and min(values) > 0 for values in of_arms.values()), name


def test_the_same_figures_are_drawn_and_put_into_a_page_without_measuring(
    measured: Measured, env: dict[str, str], tmp_path: Path
) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    told = ("--from-json", measured.json, "--plot", "bench.png", "--page", page)
    for _ in range(2):
        assert succeed(*BENCH, *told, cwd=tmp_path, env=env) == measured.printed
        assert page.read_text() == (
            f"before\n<!-- bench -->\n{measured.printed}<!-- /bench -->\nafter\n"
        )
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arm", ["stock-late", "dramatiq", "dramatiq-threads", "rq", "huey"])
def test_each_other_arm_sends_and_runs(arm: str, env: dict[str, str], tmp_path: Path) -> None:
    asked = ("--rounds=1", "--sends=50", "--drained=1000", "--only=enqueue,drain", "--arms", arm)
    printed = succeed(*BENCH, *asked, cwd=tmp_path, env=env)
    (figures,) = Measured(printed, tmp_path).tables()
    assert [row[0] for row in figures[3:]] == [ROWS[place] for place in (3, 4, 6, 7)]
    assert all(float(row[1].replace(",", "")) > 0 for row in figures[3:])


def test_an_unknown_arm_is_refused_with_those_that_there_are(
    env: dict[str, str], tmp_path: Path
) -> None:
    result = run(*BENCH, "--arms=ours,celery", cwd=tmp_path, env=env)
    assert result.returncode == 2
    known = "ours, stock-late, stock, dramatiq, dramatiq-threads, rq, huey"
    assert f"--arms: 'celery' (there are: {known})" in result.stderr


def started_in(folder: Path) -> Iterator[str]:
    """Processes whose temporary files are there: the bench gives its own to what it starts."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={folder}\0".encode() in path.read_bytes():
                yield (path.parent / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it has ended


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, as the bench itself does")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_running(
    number: signal.Signals, env: dict[str, str], tmp_path: Path
) -> None:
    asked = ("--only=drain", "--arms=ours", "--drained=100000")
    process = subprocess.Popen(
        [*BENCH, *asked],
        cwd=tmp_path,
        env=env | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        eventually(
            lambda: sum("celery" in line for line in started_in(tmp_path)) > 1, "a worker works"
        )
        os.killpg(process.pid, number)  # as a terminal does
        assert process.wait(60) == {signal.SIGINT: 130, signal.SIGTERM: 1}[number]
        assert list(started_in(tmp_path)) == []
    finally:
        process.kill()
        process.wait()
