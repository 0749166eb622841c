"""How figures are shown, and all of the flood of one key: a table, JSON values, a verdict."""

import math
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .experiment import CUT_OFF, Condition
from .keys import ALLOWED, FLOOD_KEY, KeysOutcome


def summary(condition: Condition) -> dict[str, Any]:
    """Of one condition, JSON values."""
    figures = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    values = {key: condition.percentile(share) for key, share in figures.items()}
    return {"sent": len(condition.waits)} | {key: finite(value) for key, value in values.items()}


def finite(value: float) -> float | None:
    """`value`, or None where JSON has no word for it."""
    return value if math.isfinite(value) else None


def shown(seconds: float) -> str:
    """Seconds as a text."""
    if math.isinf(seconds):
        return f"over {CUT_OFF:.0f} s"
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def show_keys(outcome: KeysOutcome, console: Console) -> None:
    """Print it."""
    flood = f"{outcome.flood:,}"
    title = f"How long a task of another key waits in the lane {outcome.lane.name}"
    table = Table("", title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("started", "p50", "p99", "max"):
        table.add_column(column, justify="right")
    for label, condition in (
        (f"no keys, {flood} ahead", outcome.control),
        (f"keys, all slots busy with {FLOOD_KEY}", outcome.idle),
        (f"keys, {flood} of {FLOOD_KEY} ahead", outcome.flooded),
    ):
        figures = [shown(condition.percentile(share)) for share in (0.5, 0.99, 1.0)]
        started = sum(wait is not None for wait in condition.waits)
        if not started:
            figures = ["", "not answered", f"in {CUT_OFF:.0f} s"]
        table.add_row(label, f"{started} of {len(condition.waits)}", *figures)
    console.print(table)
    verdict = "is not delayed" if outcome.kept else "IS DELAYED"
    console.print(
        f"Another key {verdict} by {flood} tasks of {FLOOD_KEY}: its p99 is {outcome.ratio:.2f} x "
        f"that with no task waiting, where {ALLOWED} x is allowed.",
        soft_wrap=True,
    )
    queued = f"{outcome.flood / outcome.enqueue_time:,.0f} a second"
    console.print(f"{flood} tasks were queued in {outcome.enqueue_time:.1f} s, {queued}.")


def keys_as_object(outcome: KeysOutcome) -> dict[str, Any]:
    """The outcome as JSON values; times in seconds, null for what was not answered."""
    return {
        "lane": outcome.lane.name,
        "flood": outcome.flood,
        "enqueue_seconds": outcome.enqueue_time,
        "cut_off_seconds": CUT_OFF,
        "no_keys": summary(outcome.control),
        "idle": summary(outcome.idle),
        "flooded": summary(outcome.flooded),
        "p99_ratio": finite(outcome.ratio),
        "p99_allowed": finite(outcome.allowed),
        "kept": outcome.kept,
    }
