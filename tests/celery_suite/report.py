"""What came of the runs: a table, the differences with their reasons, and what is wrong."""

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from .differences import FILE, Difference, differences, left_out, load
from .runs import Run

#: The table's columns, by what became of a test.
HEADINGS = {
    "passed": "passed",
    "again": "passed when repeated",
    "failed": "failed",
    "stock": "failed, on stock too",
    "skipped": "skipped by its authors",
    "differs": "differs as listed",
}


def report(runs: Sequence[Run], *, all_tests: bool) -> bool:
    """Print it; whether nothing is wrong. Without `all_tests`, those not chosen are not missed."""
    stocks = {run.suite: run for run in runs if run.name.endswith("/stock")}
    table = Table("suite", "mode")
    for heading in HEADINGS.values():
        table.add_column(heading, justify="right")
    wrong: list[str] = []
    for run in runs:
        stock = stocks[run.suite]
        listed = differences(run.name, run.collected)
        count = Counter(_kind(run, test, stock, listed) for test in run.outcomes)
        table.add_row(*run.name.split("/"), *(str(count[kind]) for kind in HEADINGS))
        problems = [*_wrong(run, stock, listed), *(_missing(run) if all_tests else ())]
        wrong += [f"WRONG: {run.name}: {problem}" for problem in problems]
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)
    print("\nWhat differs, and why:", *_reasons(runs), sep="\n  ")
    for line in (*_noted(runs), *wrong):
        print(line)
    return not wrong


def _kind(run: Run, test: str, stock: Run, listed: Mapping[str, Difference]) -> str:
    """In which of the table's columns a test is counted."""
    outcome = run.outcomes[test]
    if outcome == "passed":
        return "again" if test in run.again else "passed"
    if outcome == "failed":
        return "stock" if run is not stock and stock.outcomes.get(test) == "failed" else "failed"
    # Those that must fail for their authors count as skipped.
    return "differs" if test in listed else "skipped"


def _reasons(runs: Sequence[Run]) -> Iterator[str]:
    """Each entry of the list once, with the number of its tests in each run."""
    places: dict[str, list[str]] = {}
    for run in runs:
        for entry in load(run.name):
            if tests := entry.of(run.collected):
                places.setdefault(entry.reason, []).append(f"{run.name} {len(tests)}")
    for reason, counts in places.items():
        yield f"{', '.join(counts)}: {reason}"
    for reason, count in Counter(left_out().values()).items():
        yield f"left out, on stock too, {count}: {reason}"


def _noted(runs: Sequence[Run]) -> Iterator[str]:
    """What stock fails, and what was repeated because its authors call it flaky."""
    for run in runs:
        for test, outcome in sorted(run.outcomes.items()):
            if outcome == "failed" and run.name.endswith("/stock"):
                yield f"{run.name}: fails there: {test}: {run.why[test]}"
            elif outcome == "passed" and test in run.again:
                yield f"{run.name}: passed when repeated: {test}: {run.again[test]}"


def _wrong(run: Run, stock: Run, listed: Mapping[str, Difference]) -> Iterator[str]:
    if run.process.returncode not in (0, 1):
        yield f"pytest ended with {run.process.returncode}; see {run.log}"
    for file, why in run.not_collected.items():
        yield f"{file} could not be read: {why}"
    for test in sorted(run.collected - run.finished):
        yield f"{test} has not ended; see {run.log}"
    for test, outcome in sorted(run.outcomes.items()):
        if test in listed:
            yield from _unlike(test, outcome, run.why[test], listed[test])
        elif outcome != "passed" and stock.outcomes.get(test) == "passed":
            yield f"{test} passes on stock, and here it is {outcome}: {run.why[test]}"


def _unlike(test: str, outcome: str, why: str, entry: Difference) -> Iterator[str]:
    """What a test that is listed does, if it is not what its entry says."""
    if outcome == "failed" and why.startswith("[XPASS"):
        yield f"{test} is listed, and passes: take it out of {FILE.name}"
    elif outcome != "xfailed" or not re.match(entry.error, why):
        yield f"{test} is listed, and fails in another way: {why}"


def _missing(run: Run) -> Iterator[str]:
    if not run.outcomes:
        yield f"no test ran; see {run.log}"
    for entry in load(run.name):
        for test in sorted(set(entry.tests) - run.collected):
            yield f"{test} is listed, and does not exist"
