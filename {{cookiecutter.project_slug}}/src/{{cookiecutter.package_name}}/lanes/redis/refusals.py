"""Say in one line why a server cannot be used, and the way out: for senders, workers, commands."""

import re
from collections.abc import Iterator
from typing import Any

from redis import exceptions
from redis.sentinel import MasterNotFoundError

from ..endpoint import Endpoint
from ..errors import BrokerError
from .causes import CLUSTER, NEEDED, STRANGER, Case, cause

#: For BLMOVE, with which a worker waits for messages and takes none.
OLDEST_REDIS = (6, 2)


def explain(error: BaseException, endpoint: Endpoint, *, within: float | None = None) -> str:
    """Why `endpoint` cannot be used, in one line without secrets.

    Args:
        error: what redis-py, ssl or socket raised, or what was raised from that.
        within: seconds that were waited, for when no answer came.
    """
    chain = list(_chain(error))
    causes = (cause(Case(each, chain, endpoint, within)) for each in chain)
    unknown = f"it failed with {type(error).__name__}; see the server's log"
    return _line(endpoint, next(filter(None, causes), unknown))


def check(client: Any, endpoint: Endpoint) -> None:
    """Ask a server once, by a redis-py client, whether it is one that can be used.

    One that does not let us ask is taken for good: what it cannot do, it will refuse.

    Raises:
        BrokerError: when it cannot be reached, is too old, a Cluster, a Sentinel, or no Redis.
    """
    try:
        server = client.info("server")
    except (exceptions.RedisError, OSError) as error:
        if re.search("'info' command|unknown command .info", str(error), re.IGNORECASE):
            return
        raise BrokerError(explain(error, endpoint)) from error
    version = re.match(r"(\d+)\.(\d+)", str(server.get("redis_version")))
    mode = server.get("redis_mode") or server.get("server_mode")  # Valkey's
    if not version:
        raise BrokerError(_line(endpoint, STRANGER))
    if mode == "cluster":
        raise BrokerError(_line(endpoint, CLUSTER))
    if mode == "sentinel":
        raise BrokerError(
            _line(endpoint, "this is a Sentinel; write sentinel://, or the port of its server")
        )
    if tuple(map(int, version.groups())) < OLDEST_REDIS:
        raise BrokerError(_line(endpoint, f"this is Redis {server['redis_version']}; {NEEDED}"))


def is_final(error: BrokerError) -> bool:
    """Whether what `check` raised will not pass by waiting: a setting is wrong."""
    cause = error.__cause__
    if isinstance(cause, MasterNotFoundError):
        cause = cause.__cause__
    passing = (exceptions.ReadOnlyError, exceptions.MasterDownError, exceptions.OutOfMemoryError)
    return cause is None or (
        isinstance(cause, exceptions.AuthenticationError | exceptions.ResponseError)
        and not isinstance(cause, passing)
        and not str(cause).startswith(("MISCONF", "NOREPLICAS", "max number of clients"))
    )


def lacks_right(error: BaseException) -> bool:
    """Whether the server's user may not do what was tried: all else may be well."""
    pattern = "no permissions|user executing the script can't"
    return any(
        isinstance(each, exceptions.RedisError) and re.search(pattern, str(each), re.IGNORECASE)
        for each in _chain(error)
    )


def _line(endpoint: Endpoint, what: str) -> str:
    return f"{endpoint.variable} ({endpoint.shown}): {what}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it was raised from, the innermost last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
