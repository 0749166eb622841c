"""What an error of redis-py, ssl or socket means for the person who set the URL.

redis-py's own words are not repeated, only the server's: its errors hold the settings of clients,
passwords among them (6.4). A server's hold arguments of commands, AUTH's among them (Redis 5),
which are cut off.
"""

import errno
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from redis import exceptions
from redis.sentinel import MasterNotFoundError

from ..endpoint import Endpoint

_DOC, _RIGHTS = "docs/delivery.md", "docs/access.md"
NEEDED = "Redis 6.2 or newer is needed, or Valkey"
STRANGER = "what answers is neither Redis nor Valkey; correct the host or the port"
CLUSTER = (
    "this is a Redis Cluster, which is not supported because a lane's keys must be on one server; "
    "use a single Redis or Valkey, or one with Sentinels for fail-over (sentinel://)"
)
_REPLICA = "the server is a replica, which takes no writes; name the master, or the Sentinels"
_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}


@dataclass(frozen=True, slots=True)
class Case:
    """An error, what it was raised from, and where."""

    error: BaseException
    chain: list[BaseException]
    endpoint: Endpoint
    within: float | None  # seconds waited

    @property
    def text(self) -> str:
        """The error's, without what redis-py puts in front: a command of a pipeline, cut short."""
        return re.sub(r"(?s)^Command # .* of pipeline caused error: ", "", str(self.error))

    def says(self, pattern: str) -> re.Match[str] | None:
        """Where the error's text has this."""
        return re.search(pattern, self.text, re.IGNORECASE)

    @property
    def by_tls(self) -> str:
        """How to have TLS spoken."""
        return "add the option ssl" if self.endpoint.master else "write rediss://"

    @property
    def without_tls(self) -> str:
        """How to have none."""
        return "change the option ssl" if self.endpoint.master else "write redis://"

    @property
    def time(self) -> str:
        """How long was waited, in words."""
        return "in time" if self.within is None else f"within {self.within:g} s"

    @property
    def why(self) -> str:
        """What the system or OpenSSL calls it."""
        error: Any = self.error
        names = (getattr(error, name, None) for name in ("verify_message", "reason", "strerror"))
        return re.sub(r" \(_ssl.*|\.$", "", str(next(filter(None, names), "no reason given")))

    @property
    def there(self) -> str:
        """The address that Sentinels named: not in the URL, and often one for themselves alone."""
        named = re.search(r"(?:to|from) ([\w.-]+:\d+)\b", " ".join(map(str, self.chain)))
        if self.endpoint.master and named:
            return f"at {named[1]}, which is what the Sentinels name"
        return "there"


def cause(case: Case) -> str | None:
    """What the error means; None when it wraps what does mean something."""
    for kind, pattern, what in _CAUSES:
        if isinstance(case.error, kind) and case.says(pattern):
            return what.format(case=case) if isinstance(what, str) else what(case)
    return None


def _no_master(case: Case) -> str:
    endpoint, reason = case.endpoint, case.error.__cause__
    # redis-py adds " - " and the repr of an error for each Sentinel that did not answer.
    failed = re.findall(r"> - (?:\w+:)?(\w+)", str(case.error))
    if reason is not None:
        failed = [type(reason).__name__] * len(endpoint.hosts)
    if len(failed) < len(endpoint.hosts):
        return (
            f"the Sentinels know no server called {endpoint.master} that is up; set "
            "SENTINEL_MASTER to the name, or start it"
        )
    if "AuthenticationError" in failed:
        if endpoint.sentinel_password is None:
            return "the Sentinels want a password; set SENTINEL_PASSWORD"
        user = "SENTINEL_USERNAME or " if endpoint.sentinel_username else ""
        return f"the Sentinels refuse {user}SENTINEL_PASSWORD; correct it"
    answered = isinstance(reason, exceptions.ResponseError)
    to_sentinel = replace(endpoint, tls=endpoint.sentinel_tls)
    for each in case.chain[case.chain.index(reason) :] if reason else ():
        if what := cause(Case(each, case.chain, to_sentinel, case.within)):
            return what if answered else f"no Sentinel can be asked: {what}"
    tls = "" if endpoint.sentinel_tls else ", or add ?ssl=true if they speak TLS"
    return f"no Sentinel answers; start them, correct their hosts{tls}"


def _no_login(case: Case) -> str:
    if case.endpoint.password is None:
        return "the server wants a password; write it as in redis://:password@host:6379/0"
    if case.endpoint.username is None:
        return "the server refuses the password; correct it"
    return "the server refuses the user or the password (it does not say which); correct them"


def _no_right(case: Case) -> str:
    command = case.says(r"'([\w|.-]+)' command")
    name = command[1] if command else ""
    what = f"run {name}" if name else "use one of the keys or channels"
    if case.says("can't run this command"):
        what = "run one of the commands of a script"
    of_sentinel = name.startswith("sentinel")
    user = case.endpoint.sentinel_username if of_sentinel else case.endpoint.username
    return (
        f"the user {user or 'default'} may not {what}; {_RIGHTS} lists the rights that are needed"
    )


def _refusal(case: Case) -> str:
    words = re.split(", with args| script: ", case.text)[0]
    for secret in filter(None, (case.endpoint.password, case.endpoint.sentinel_password)):
        words = words.replace(secret, "***")
    words = " ".join(words.split())
    words = words if len(words) <= 200 else f"{words[:200].rpartition(' ')[0]} ..."
    return f"the server refuses ({words}); {_DOC} says what can be done"


def _unknown_command(case: Case) -> str:
    found = case.says(r"unknown command\W*([\w|.-]+)")
    name = found[1].upper() if found else "a command"
    if name == "HELLO":  # what redis-py begins with
        name = "HELLO, and so is older than Redis 6"
    return f"the server does not know {name}; {NEEDED}"


def _silent(case: Case) -> str:
    tls = "" if case.endpoint.tls or case.endpoint.path else f" speaks TLS ({case.by_tls}), or"
    return (
        f"the server takes connections and does not answer {case.time}; see whether it{tls} hangs"
    )


def _unreached(case: Case) -> str:
    if any("handshake" in str(each) for each in case.chain):
        way = f"{case.without_tls} if it speaks none, and else see whether it hangs"
        return f"the server does not answer to TLS {case.time}; {way}"
    return f"no answer comes {case.time}; see whether the server is up, and the way to it open"


def _closed(case: Case) -> str:
    way = f"speaks TLS, {case.by_tls}"
    if case.endpoint.tls:
        way = "wants a certificate of ours, add ssl_certfile and ssl_keyfile"
    return f"the server ends the connection; if it {way}, and else see its log"


def _other_host(case: Case) -> str:
    way = "write the host that it names"
    if case.endpoint.master:
        way = "have the Sentinels announce host names, or add ssl_check_hostname=false"
    return f"the certificate is for another host ({case.why}); {way}"


def _system(case: Case) -> str:
    if isinstance(case.error, OSError) and case.error.errno in _UNREACHABLE:
        return f"no way leads {case.there} ({case.why}); correct the URL, or mend the network"
    return _closed(case)


_Kind = type[BaseException] | tuple[type[BaseException], ...]
_MOVED = (exceptions.AskError, exceptions.ClusterDownError)  # MOVED is a kind of ASK
#: The first whose class and words fit. Classes come first where words would not tell, and a
#: replica before a Cluster, whose kind redis-py takes MASTERDOWN for.
_CAUSES: tuple[tuple[_Kind, str, str | Callable[[Case], str]], ...] = (
    (MasterNotFoundError, "", _no_master),
    ((exceptions.ReadOnlyError, exceptions.MasterDownError), "", _REPLICA),
    ((*_MOVED, exceptions.ClusterCrossSlotError, exceptions.TryAgainError), "", CLUSTER),
    (exceptions.ResponseError, "in cluster mode|a cluster node|to the same slot", CLUSTER),
    (exceptions.BusyLoadingError, "", "the server loads its data; wait until that is done"),
    (exceptions.InvalidResponse, "", STRANGER),
    (
        exceptions.ResponseError,
        "DB index",
        "there is no database {case.endpoint.database}; take a lower number, or raise `databases`",
    ),
    (
        exceptions.RedisError,
        "max number of clients",
        "the server takes no more connections; raise its `maxclients`",
    ),
    (
        exceptions.RedisError,
        "^DENIED",
        "the server takes its own machine's connections alone; give it a password, and the URL it",
    ),
    (
        exceptions.RedisError,
        "previous master is now a slave",
        "the server has become a replica; the Sentinels are asked for the new one",
    ),
    (
        exceptions.RedisError,
        "without any password|no password is set",
        "the server wants no password; leave it out of the URL",
    ),
    (
        exceptions.ResponseError,
        "unknown command ['`]sentinel",
        "this is no Sentinel; name the Sentinels, or write redis:// for a single server",
    ),
    (exceptions.AuthenticationError, "", _no_login),
    (exceptions.RedisError, "no permissions|user executing the script can't", _no_right),
    (exceptions.ResponseError, "unknown command", _unknown_command),
    (exceptions.ResponseError, "", _refusal),
    (exceptions.ConnectionError, "closed by server", _closed),
    (
        ssl.SSLCertVerificationError,
        "mismatch",
        _other_host,
    ),
    (
        ssl.SSLCertVerificationError,
        "expired|not yet valid",
        "the certificate is not valid now ({case.why}); renew it, or set this machine's clock",
    ),
    (
        ssl.SSLCertVerificationError,
        "",
        "the certificate is not trusted ({case.why}); name its authority's file with ssl_ca_certs",
    ),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), "", _closed),
    (ssl.SSLError, "certificate_required", _closed),
    (
        ssl.SSLError,
        "alert",
        "the server refuses our TLS ({case.why}); correct ssl_certfile and ssl_keyfile",
    ),
    (
        ssl.SSLError,
        "wrong_version|record_layer|packet_length",
        "no TLS is spoken at that port; name the one for TLS, or {case.without_tls}",
    ),
    (
        ssl.SSLError,
        "",
        "the files that the ssl_ options name will not do ({case.why}); correct them",
    ),
    (exceptions.TimeoutError, "reading|writing", _silent),
    (socket.gaierror, "", "the host name is unknown ({case.why}); correct it"),
    (FileNotFoundError, "", "there is no such socket; start the server, or correct the path"),
    (PermissionError, "", "this user may not open the socket; add them to the group that may"),
    (
        ConnectionRefusedError,
        "",
        "nothing listens {case.there}; start the server, or correct the URL",
    ),
    ((TimeoutError, exceptions.TimeoutError), "", _unreached),
    (OSError, "", _system),
)
