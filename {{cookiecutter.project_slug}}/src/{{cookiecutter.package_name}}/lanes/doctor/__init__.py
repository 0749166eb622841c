"""What would lose or delay tasks, or is worth knowing, with what to do about each.

Nothing is changed, each wait has an end, and one check that fails does not keep the others back.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import deploy
from ..config import Lanes
from ..errors import BrokerError
from ..redis.connect import Server
from . import machine, schedule, server, versions, work
from .finding import Finding, refused

__all__ = ["Finding", "examine"]

_DEPLOY = Path("deploy")


def examine(app: Any, project: deploy.Project) -> Iterator[Finding]:
    """Look at all that the lanes of `app` stand on."""
    yield from versions.find(project.slug)
    yield from _broker(app, project)
    yield from _results(app.server, app.results)
    yield from _deploy(app.lanes, project)
    yield from machine.find(app.lanes)


def _broker(app: Any, project: deploy.Project) -> Iterator[Finding]:
    try:
        app.server.check()
    except BrokerError as error:
        yield refused("broker", str(error))
        yield Finding("lanes", "note", "not looked at: they are in the broker")
        return
    yield from server.find(app.server)
    yield from work.find(app, project.slug)
    yield from work.guarded(app, lambda: schedule.find(app, project.slug))


def _results(broker: Server, results: Server | None) -> Iterator[Finding]:
    """In short: what is lost there is a value that somebody waits for, and no task."""
    if results is None:
        yield Finding("results", "ok", "none are kept: RESULT_URL is empty")
        return
    try:
        results.check()
    except BrokerError as error:
        yield refused("results", str(error), level="note")
        return
    yield Finding("results", "ok", f"{results.endpoint.shown} answers")
    if results.endpoint.hosts != broker.endpoint.hosts:
        yield from server.of_results(results)


def _deploy(lanes: Lanes, project: deploy.Project) -> Iterator[Finding]:
    if not _DEPLOY.is_dir():
        return
    stale = deploy.stale(deploy.render(lanes, project), _DEPLOY)
    if stale:
        names = ", ".join(str(path) for path, _old, _new in stale)
        what = f"out of date with lanes.toml: {names}"
        yield Finding("deploy", "note", what, f"make units, or {project.slug} units")
    else:
        yield Finding("deploy", "ok", "as lanes.toml says")
