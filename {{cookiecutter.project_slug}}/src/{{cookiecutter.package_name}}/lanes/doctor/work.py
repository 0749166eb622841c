"""Whether what waits in Redis is what the lanes' workers take."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from .. import status, workers
from ..config import Lane, Lanes
from ..errors import BrokerError
from ..redis import identity
from ..redis.refusals import lacks_right
from ..redis.store import PRIORITY_LISTS, Keys, Store
from ..status import LaneStatus
from ..timeouts import SCAN
from .finding import Finding, Level, refused, weight

_AREA = "lanes"


def find(app: Any, command: str) -> Iterator[Finding]:
    """Look at the lanes, and at what else is in their database; `command` is the project's."""
    redis = app.server.client
    yield from guarded(app, lambda: _lanes(app, command))
    yield from guarded(app, lambda: _others(app))
    yield from guarded(app, lambda: _strangers(app, redis))
    yield from guarded(app, lambda: _rights(app))


def guarded(app: Any, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check finds, or why it could not be made."""
    try:
        yield from check()
    except (RedisError, OSError, OperationalError) as error:
        yield refused(_AREA, app.server.explain(error), level=weight(error))
    except BrokerError as error:
        yield refused(_AREA, str(error), level=weight(error))


def _lanes(app: Any, command: str) -> Iterator[Finding]:
    for lane, state in zip(app.lanes, status.read(app), strict=True):
        findings = [*of_workers(lane, state), *of_messages(state, command)]
        yield from findings or [Finding(_AREA, "ok", f"{lane.name}: {_at_work(state.workers)}")]


def of_workers(lane: Lane, state: LaneStatus) -> Iterator[Finding]:
    """Whether somebody takes what is sent to a lane."""
    at_work = state.workers
    start = "run `make workers`, or start its units"
    left = state.waiting + state.delayed
    if not at_work and left:
        held = f"{_messages(state.waiting)} waiting, {state.delayed:,} delayed"
        what = f"{lane.name}: no worker, and {held}"
        yield Finding(_AREA, "problem", what, start)
    elif not at_work:
        yield Finding(_AREA, "note", f"{lane.name}: no worker", start)
    elif at_work < lane.workers:
        what = f"{lane.name}: {_at_work(at_work)}, and lanes.toml says {lane.workers}"
        yield Finding(_AREA, "note", what, start)


def of_messages(state: LaneStatus, command: str) -> Iterator[Finding]:
    """Whether what a lane holds is on its way."""
    lane = state.lane
    if state.paused:
        what = f"{lane}: paused, with {_messages(state.waiting)} waiting"
        level: Level = "problem" if state.waiting else "note"
        yield Finding(_AREA, level, what, f"{command} resume {lane}")
    elif state.workers and not state.slo_kept:
        yield Finding(
            _AREA,
            "problem",
            f"{lane}: the oldest of {_messages(state.waiting)} has waited for "
            f"{state.oldest:,.0f} s, and latency_slo is {state.latency_slo:g} s",
            "raise its workers or concurrency; move what runs for long to a lane of its own",
        )
    if state.dead_full:
        yield Finding(
            _AREA,
            "problem",
            f"{lane}: its dead letters are full of messages that never ran; others like them stay "
            "delayed",
            f"{command} dead list --group, then dead retry or dead purge",
        )
    elif state.dead:
        yield Finding(
            _AREA, "note", f"{lane}: {_letters(state.dead)}", f"{command} dead list --group"
        )


def _others(app: Any) -> Iterator[Finding]:
    if theirs := workers.of_others(app.server.client):
        yield Finding(
            _AREA,
            "problem",
            f"workers of another project are at work in this database, {theirs[0]}: lanes of the "
            "same name take each other's tasks",
            f"give one of them another BROKER_URL, such as {workers.another(app.server.endpoint)}",
        )


def _strangers(app: Any, redis: Any) -> Iterator[Finding]:
    """What else is in the database, and nobody takes."""
    names, saw_lanes = Store.lanes_of(redis, within=SCAN)
    names -= app.lanes.by_name.keys()
    for name in sorted(names):
        yield from guarded(app, partial(_undeclared, Store(redis, Keys(name, _queue(name)))))
    queues, saw_queues = Store.queues_of(redis, within=SCAN)
    for name in names - {lane.queue for lane in app.lanes}:
        queues.pop(_queue(name), None)  # has been told with its lane
    yield from _unconsumed(app.lanes, redis, queues)
    if not (saw_lanes and saw_queues):
        what = f"the database has more keys than can be looked through in {SCAN:g} s"
        yield Finding(_AREA, "note", what, "give the lanes a database of their own")


def _queue(lane: str) -> str:
    """What a lane's queue is called, unless its owner says otherwise."""
    return f"{lane}_tasks"


def _undeclared(store: Store) -> Iterator[Finding]:
    """A lane that was taken out of lanes.toml; one of another project's is told by its workers."""
    if any(identity.project_of(note) != identity.PROJECT for _, note in store.workers().values()):
        return
    held = store.counts()
    left = held.waiting + held.delayed + held.leased
    if left or held.dead:
        yield Finding(
            _AREA,
            "problem" if left else "note",
            f"{store.keys.lane}: not in lanes.toml, and Redis holds {_messages(left)} and "
            f"{_letters(held.dead)} of it",
            "declare it again until it is empty",
        )


def _unconsumed(lanes: Lanes, redis: Any, queues: Mapping[str, set[str]]) -> Iterator[Finding]:
    """Messages in lists that no lane takes from."""
    ours = {lane.queue for lane in lanes}
    unseen = []
    for queue, steps in sorted(queues.items()):
        taken = {"", *PRIORITY_LISTS} if queue in ours else set()
        try:
            left = sum(Store.messages_of(redis, queue + each) for each in steps - taken)
        except RedisError as error:
            if not lacks_right(error):
                raise
            unseen.append(queue)
        else:
            if left:
                yield _left(queue, left, lanes, in_steps=queue in ours)
    if unseen:
        what = f"lists that may be queues, and that we may not look into: {', '.join(unseen)}"
        yield Finding(_AREA, "note", what, "docs/access.md lists the rights that are needed")


def _left(queue: str, left: int, lanes: Lanes, *, in_steps: bool) -> Finding:
    if in_steps:
        return Finding(
            _AREA,
            "problem",
            f"{queue}: {_messages(left)} in lists of priorities that its workers do not read",
            "have their sender use the priorities 0, 3, 6 and 9, kombu's own priority_steps",
        )
    return Finding(
        _AREA,
        "problem",
        f"{queue}: {_messages(left)}, and no lane takes from this queue",
        f"send to {', '.join(lane.queue for lane in lanes)}; or see whose it is, and give them "
        "another database",
    )


def _rights(app: Any) -> Iterator[Finding]:
    """What the user of the URL may do, which need not be the workers'."""
    user = app.server.endpoint.username or "default"
    try:
        refused = [status.store_of(app.server.client, lane).refused(user) for lane in app.lanes]
    except RedisError as error:
        if lacks_right(error) or "unknown" in str(error).lower():
            what = (
                f"what the user {user} may do was not looked at: the server has no ACL DRYRUN, or "
                "this user may not call it"
            )
            yield Finding(_AREA, "note", what, "docs/access.md lists the rights that are needed")
            return
        raise
    for role, doing in {"send": "sender", "work": "worker"}.items():
        if commands := [found[role] for found in refused if role in found]:
            yield Finding(
                _AREA,
                "note",
                f"the user {user} may not do what a {doing} does ({commands[0]})",
                f"if {doing}s have this URL, docs/access.md lists the rights that they need",
            )


def _messages(count: int) -> str:
    return f"{count:,} {'message' if count == 1 else 'messages'}"


def _at_work(count: int) -> str:
    return f"{count:,} {'worker' if count == 1 else 'workers'}"


def _letters(count: int) -> str:
    return f"{count:,} dead {'letter' if count == 1 else 'letters'}"
