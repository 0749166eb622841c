"""Whether the broker's server keeps what it is given, and goes on taking it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from redis.exceptions import RedisError

from ..redis.connect import Server
from ..redis.sentinel import Sentinels
from ..redis.store import Keys, Store
from .finding import Finding, Level, weight

_FULL = 0.8  # of maxmemory, or of the connections, from which on it is a problem
_LAG = 10  # seconds that a replica is behind
_CLOCKS = 1.0  # seconds that two clocks differ
_AREA = "broker"
_RIGHTS = "docs/access.md has a line for an operator who may run doctor"
Info = Mapping[str, Any]


def of_results(server: Server) -> Iterator[Finding]:
    """What it deletes, of a server that has results alone; whether it writes is no matter."""
    with suppress(RedisError, OSError):
        for each in eviction(server.client.info("memory"), what="results"):
            if each.level != "ok":
                yield replace(each, area="results", level="note")


def find(server: Server) -> Iterator[Finding]:
    """Look at a server that has let us in."""
    try:
        info = server.client.info()
    except (RedisError, OSError) as error:
        yield _unseen(server, error, "version, persistence, memory and replicas")
    else:
        for check in (kind, eviction, memory, writes, replicas, connections):
            yield from check(info)
        yield from _configured(server, info)
    yield from _clock(server)
    if server.sentinels:
        yield from _quorum(server.sentinels)


def _unseen(server: Server, error: BaseException, what: str) -> Finding:
    """What could not be looked at, and why."""
    line, _, do = server.explain(error).partition("; ")
    return Finding(_AREA, weight(error), f"{line}: {what} were not looked at", do or _RIGHTS)


def kind(info: Info) -> Iterator[Finding]:
    """Which server it is; whether it can be used at all has been asked before."""
    name, version = "Redis", info.get("redis_version", "of an unknown version")
    if "valkey_version" in info:
        name, version = "Valkey", info["valkey_version"]
    yield Finding(_AREA, "ok", f"{name} {version}")


def eviction(info: Info, *, what: str = "tasks") -> Iterator[Finding]:
    """Whether it deletes what it is there for, when its memory is full."""
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        yield Finding(_AREA, "ok", "maxmemory-policy is noeviction: it deletes nothing by itself")
        return
    gone = int(info.get("evicted_keys", 0))
    has = f", and has deleted {gone:,} keys since it was started" if gone else ""
    of_all = not policy.startswith("volatile")  # else of what has an end, as results have
    level: Level = "problem" if of_all and info.get("maxmemory") else "note"
    what = what if of_all else "results"
    when = "when its memory is full" if info.get("maxmemory") else "once it has a maxmemory"
    yield Finding(
        _AREA,
        level,
        f"maxmemory-policy is {policy}: {when}, it deletes {what}{has}",
        "CONFIG SET maxmemory-policy noeviction, and write it into the server's configuration",
    )


def memory(info: Info) -> Iterator[Finding]:
    """How near it is to refusing what is sent."""
    most, used = int(info.get("maxmemory") or 0), int(info.get("used_memory", 0))
    if not most:
        return
    share = f"{used / 2**20:,.0f} of {most / 2**20:,.0f} MiB of its maxmemory are used"
    if used >= _FULL * most:
        yield Finding(
            _AREA,
            "problem",
            f"{share}: it soon refuses what is sent",
            "raise maxmemory; delete what nobody needs (purge, dead purge)",
        )
    else:
        yield Finding(_AREA, "ok", share)


def writes(info: Info) -> Iterator[Finding]:
    """Whether it can write to its disk; where it cannot, it refuses what is sent."""
    failed = [
        what
        for what, name in {
            "its append-only file": "aof_last_write_status",
            "its append-only file anew": "aof_last_bgrewrite_status",
            "its snapshot": "rdb_last_bgsave_status",
        }.items()
        if info.get(name, "ok") != "ok"
    ]
    if failed:
        yield Finding(
            _AREA,
            "problem",
            f"it could not write {' and '.join(failed)}, and may refuse what is sent until it can",
            "make room on its disk, see that it may write there; its log says why it could not",
        )


def replicas(info: Info) -> Iterator[Finding]:
    """Who takes over when it fails, and what is lost then."""
    if info.get("role") != "master":
        yield Finding(
            _AREA,
            "problem",
            "it is a replica, which takes no tasks",
            "name its master, or the Sentinels, in BROKER_URL",
        )
    for number in range(int(info.get("connected_slaves", 0))):
        replica = info.get(f"slave{number}", {})
        address = f"{replica.get('ip')}:{replica.get('port')}"
        behind = int(replica.get("lag", 0))
        if replica.get("state") != "online" or behind > _LAG:
            yield Finding(
                _AREA,
                "note",
                f"the replica {address} is {replica.get('state')}, {behind} s behind: a fail-over "
                "to it loses what it has not got",
                "see its log, and the network between the two",
            )
        else:
            yield Finding(_AREA, "ok", f"the replica {address} is up to date")


def connections(info: Info) -> Iterator[Finding]:
    """Whether it takes another worker, another web server."""
    used, most = int(info.get("connected_clients", 0)), int(info.get("maxclients", 0))
    if most and used >= _FULL * most:
        yield Finding(
            _AREA,
            "problem",
            f"{used:,} of {most:,} connections are taken: it soon refuses more",
            "raise its maxclients; see CLIENT LIST for who holds them",
        )


def _configured(server: Server, info: Info) -> Iterator[Finding]:
    """What only its configuration says."""
    names = ("appendfsync", "save", "min-replicas-to-write")
    try:
        # One by one: Redis 6.2 takes no more.
        found = {name: server.client.config_get(name).get(name, "") for name in names}
    except (RedisError, OSError) as error:
        found = {}
        yield _unseen(server, error, "appendfsync, save and min-replicas-to-write")
    yield from persistence(info, found)
    wanted, there = int(found.get("min-replicas-to-write") or 0), info.get("connected_slaves", 0)
    good = int(info.get("min_slaves_good_slaves", there))
    if good < wanted:
        yield Finding(
            _AREA,
            "problem",
            f"it refuses what is sent: {good} replicas are up to date, and min-replicas-to-write "
            f"asks for {wanted}",
            "start the replicas, or lower min-replicas-to-write",
        )
    elif there and not wanted and "min-replicas-to-write" in found:
        yield Finding(
            _AREA,
            "note",
            "min-replicas-to-write is 0: cut off from its replicas it goes on taking tasks, which "
            "a fail-over loses",
            "CONFIG SET min-replicas-to-write 1, and write it into the server's configuration",
        )


def persistence(info: Info, found: Mapping[str, str]) -> Iterator[Finding]:
    """What a crash of the server, or of its machine, loses."""
    if info.get("aof_enabled"):
        losses = {"always": "nothing", "everysec": "the last second", "no": "some 30 s"}
        how = found.get("appendfsync", "")
        after = f": a power cut loses {losses[how]}" if how in losses else ""
        what = f"every write goes to an append-only file{after}"
        if how == "no":
            do = "CONFIG SET appendfsync everysec, and write it into the server's configuration"
            yield Finding(_AREA, "problem", what, do)
        else:
            yield Finding(_AREA, "ok", what)
        return
    lost = "all tasks"
    if found.get("save") != "":
        minutes = max(0.0, time.time() - float(info.get("rdb_last_save_time", 0))) / 60
        changes = int(info.get("rdb_changes_since_last_save", 0))
        lost = f"what came since its last snapshot, now {changes:,} changes in {minutes:,.0f} min"
    yield Finding(
        _AREA,
        "problem",
        f"it has no append-only file: a crash loses {lost}",
        "CONFIG SET appendonly yes, and write it into the server's configuration",
    )


def _clock(server: Server) -> Iterator[Finding]:
    asked = time.time()
    try:
        now = Store(server.client, Keys("", "")).now()
    except (RedisError, OSError) as error:
        yield _unseen(server, error, "its clock and this machine's")
        return
    behind = now - (asked + time.time()) / 2
    if abs(behind) > _CLOCKS:
        yield Finding(
            _AREA,
            "note",
            f"this machine's clock is {abs(behind):,.1f} s "
            f"{'behind' if behind > 0 else 'ahead of'} the server's, by which all that is due goes",
            "keep both by NTP; tasks are right all the same, and logs are not",
        )
    else:
        yield Finding(_AREA, "ok", "its clock and this machine's agree within a second")


def _quorum(sentinels: Sentinels) -> Iterator[Finding]:
    for host, failure in sentinels.quorum():
        if failure is None:
            yield Finding(_AREA, "ok", f"the Sentinel {host} could make a replica the master")
        else:
            yield Finding(
                _AREA,
                "problem",
                f"the Sentinel {host} could make no replica the master ({failure})",
                "start the Sentinels and replicas that are down, or correct BROKER_URL",
            )
