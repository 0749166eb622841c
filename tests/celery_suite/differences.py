"""Reads differences.toml: which tests must differ from stock Celery, or are not run, and why."""

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("differences.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One entry of the file; see there."""

    runs: list[str]  # where: "<suite>/<mode>"
    reason: str
    error: str  # a regular expression: how their failures begin
    tests: list[str] = field(default_factory=list)  # exact ids
    parameter: str | None = None  # or: all tests with this parameter

    def of(self, tests: Iterable[str]) -> list[str]:
        """Those of `tests` that are meant."""
        return [test for test in tests if test in self.tests or self._has_parameter(test)]

    def _has_parameter(self, test: str) -> bool:
        _, _, parameters = test.rstrip("]").partition("[")
        return self.parameter in parameters.split("-")


def left_out() -> dict[str, str]:
    """The files and the tests of Celery's that are not run, and why."""
    return {name: entry["reason"] for entry in _read()["left_out"] for name in entry["tests"]}


def load(run: str) -> list[Difference]:
    """The entries for a run, in the file's order."""
    return [Difference(**entry) for entry in _read()["difference"] if run in entry["runs"]]


def _read() -> dict[str, list[dict[str, Any]]]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def differences(run: str, tests: Iterable[str]) -> dict[str, Difference]:
    """By test, what must differ in a run.

    Raises:
        ValueError: when a test is listed twice.
    """
    listed: dict[str, Difference] = {}
    for entry in load(run):
        for test in entry.of(tests):
            if test in listed:
                raise ValueError(f"{FILE.name}: {test} is listed twice for {run}")
            listed[test] = entry
    return listed
