"""Whether the schedule is kept."""

from collections.abc import Iterator
from typing import Any

from .. import planned
from ..errors import ConfigError
from ..schedule import check_tasks, entries
from ..timetable import LATE
from .finding import Finding

_AREA = "schedule"


def find(app: Any, command: str) -> Iterator[Finding]:
    """Look at its entries, and at who keeps them; `command` is the project's."""
    app.loader.import_default_modules()
    app.finalize()
    try:
        declared = entries(app)
        check_tasks(app, declared)
    except ConfigError as error:
        for problem in error.problems:
            do = "correct it: no worker starts with it"
            yield Finding(_AREA, "problem", problem, do)
        return
    if declared:
        yield from of_entries(planned.read(app), command)


def of_entries(found: planned.Planned, command: str) -> Iterator[Finding]:
    """Whether what is due is sent."""
    count = len(found.entries)
    entries_ = f"{count:,} {'entry' if count == 1 else 'entries'}"
    if not found.keepers:
        what = f"no worker keeps it, and it has {entries_}"
        yield Finding(_AREA, "problem", what, "run `make workers`, or start its units")
        return
    if not found.ours:
        what = "workers keep another schedule than this release has"
        yield Finding(_AREA, "note", what, "restart them with this release")
        return
    findings = []
    for each in found.entries:
        if each.paused:
            do = f"{command} schedule resume {each.name}"
            findings.append(Finding(_AREA, "note", f"{each.name}: paused", do))
        elif each.overdue > LATE:
            what = f"{each.name}: was due {each.overdue:,.0f} s ago, and nobody sent it"
            findings.append(Finding(_AREA, "problem", what, "see the logs of the workers for why"))
    yield from findings or [Finding(_AREA, "ok", f"{entries_}, kept by {found.ours:,} workers")]
