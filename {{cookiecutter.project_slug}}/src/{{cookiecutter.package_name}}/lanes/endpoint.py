"""Read the URL of a Redis, once: where it is and how to log in, or what is wrong with it.

Messages repeat nothing of a URL but names of options and of the files they name: a password that
was not escaped may have ended up in any other part of it.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import urloptions
from .errors import SettingsError
from .urloptions import UnusableError, unescaped

SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")
DEFAULT_MASTER = "mymaster"  # as Redis' own sentinel.conf calls it

_PORTS = {"redis": 6379, "rediss": 6379, "sentinel": 26379}
_EXPECTED = "expected redis://, rediss://, redis+socket:// or sentinel://"
_RABBITMQ = (
    "RabbitMQ is not supported: leases are scripts of Redis, and a second transport would halve "
    "what this one guarantees; use Redis or Valkey, or plain Celery with RabbitMQ's quorum queues"
)
_ESCAPE = (
    "the user or the password holds a character that must be escaped: / is %2F, # is %23, "
    "? is %3F, @ is %40, : is %3A, % is %25 (an @ in a path or an option is %40, too)"
)
#: What other software calls the same.
_ALIASES = {"valkey": "redis", "valkeys": "rediss", "unix": "redis+socket"}
#: What a mismatch of several URLs is called in a message, where the field's name would not do.
_CALLED = {"username": "user", "tls": "options", "sentinel_tls": "options"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Redis is and how to log in: all that a URL says, decided once."""

    variable: str  # BROKER_URL or RESULT_URL, for messages
    scheme: str  # one of SCHEMES
    hosts: tuple[tuple[str, int], ...]  # tried in order; the Sentinels, if any; empty for a socket
    path: str | None  # of the Unix socket
    database: int
    username: str | None
    password: str | None = field(repr=False)
    tls: Mapping[str, Any] = field(repr=False, hash=False)  # redis-py's ssl_*; empty: no TLS
    master: str  # the name that Sentinels know the server by
    sentinel_username: str | None
    sentinel_password: str | None = field(repr=False)
    sentinel_tls: Mapping[str, Any] = field(repr=False, hash=False)  # as `tls`, for the Sentinels

    @property
    def shown(self) -> str:
        """The URL without secrets, for logs and messages."""
        login = ""
        if self.username or self.password:
            login = f"{quote(self.username or '', safe='')}:{'***' if self.password else ''}@"
        if self.path is not None:
            return f"{self.scheme}://{login}{quote(self.path)}?virtual_host={self.database}"
        return ";".join(
            f"{self.scheme}://{login}{f'[{host}]' if ':' in host else host}:{port}/{self.database}"
            for host, port in self.hosts
        )


def parse(variable: str, url: str, environ: Mapping[str, str] = os.environ) -> Endpoint:
    """What `url`, the value of `variable`, says.

    Several URLs with semicolons between them may differ in the host alone; the hosts are tried in
    order. User and password are percent-encoded, and always the server's own; what the Sentinels
    of a sentinel:// URL ask for is in `SENTINEL_USERNAME` and `SENTINEL_PASSWORD`, and the name
    that they know the server by in `SENTINEL_MASTER`.

    Options, after a `?`:

    - `db`, or `virtual_host` as kombu calls it: the database, which only a socket's URL needs;
    - `ssl`, for sentinel:// alone: `true` for TLS to the server and to the Sentinels, `server` or
      `sentinels` for TLS to one of the two;
    - where TLS is spoken: `ssl_cert_reqs` (`required`, `optional` or `none`), `ssl_check_hostname`,
      `ssl_ca_certs`, `ssl_ca_path`, `ssl_certfile`, `ssl_keyfile`, `ssl_password`, `ssl_ciphers`,
      as redis-py has them. Certificates and host names are checked unless these say otherwise.

    Raises:
        SettingsError: when it cannot be used.
    """
    try:
        # Not at every semicolon: passwords have them, too.
        urls = re.split(r";(?=[A-Za-z][A-Za-z0-9+.-]*://)", _printable(url.strip()))
        first, *others = [_read(variable, each) for each in urls]
        for number, other in enumerate(others, 2):
            _check_alike(first, other, number)
    except UnusableError as error:
        raise SettingsError(f"{variable}: {error}") from None
    endpoint = replace(first, hosts=tuple(host for each in (first, *others) for host in each.hosts))
    return _with_sentinels(endpoint, environ) if endpoint.scheme == "sentinel" else endpoint


def value(name: str, environ: Mapping[str, str]) -> str | None:
    """What a variable is set to; None when it is not.

    A file of its name in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential) comes before it.

    Raises:
        SettingsError: when there is such a file and it cannot be read.
    """
    if directory := environ.get("CREDENTIALS_DIRECTORY"):
        path = Path(directory, name)
        try:
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8 text"
            raise SettingsError(f"{name}: {path}: {why}") from None
    return environ.get(name)


def _with_sentinels(endpoint: Endpoint, environ: Mapping[str, str]) -> Endpoint:
    user, password = value("SENTINEL_USERNAME", environ), value("SENTINEL_PASSWORD", environ)
    if user and not password:
        raise SettingsError("SENTINEL_USERNAME: a user needs a password; set SENTINEL_PASSWORD")
    return replace(
        endpoint,
        master=environ.get("SENTINEL_MASTER") or DEFAULT_MASTER,
        sentinel_username=user or None,
        sentinel_password=password or None,
    )


def _printable(url: str) -> str:
    if url.startswith(("'", '"')):
        raise UnusableError("quotation marks around the URL; leave them out")
    if not url.isprintable() or " " in url:
        raise UnusableError(
            "a space, a line break or another control character within the URL "
            "(escape it: a space is %20)"
        )
    return url


def _read(variable: str, url: str) -> Endpoint:
    scheme, rest = _scheme(url)
    # Not urlsplit's: an unescaped / # or ? would be the end of the password, and no mistake.
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, address = authority.rpartition("@")
    behind = rest.removeprefix(authority)
    if "@" in login + behind or login.count(":") > 1 or re.search("%(?![0-9A-Fa-f]{2})", login):
        raise UnusableError(_ESCAPE)
    if at and ":" not in login:
        raise UnusableError(
            "no : before the @ (expected user:password@, :password@ without a user, or user:@)"
        )
    if "#" in behind:
        raise UnusableError("a # has no meaning in this URL (escape it: # is %23)")
    path, _, query = behind.partition("?")
    if ";" in address + path:
        raise UnusableError(
            "each of several URLs begins with its scheme, as in sentinel://one/0;sentinel://two/0"
        )
    said = urloptions.options(query)
    socket = _socket(address, path) if scheme == "redis+socket" else None
    tls, sentinel_tls = urloptions.tls(scheme, said)
    user, _, password = login.partition(":")
    return Endpoint(
        variable=variable,
        scheme=scheme,
        hosts=() if socket else (_host(address, _PORTS[scheme]),),
        path=socket,
        database=urloptions.database("" if socket else path, said),
        username=unescaped(user) or None,
        password=unescaped(password) or None,
        tls=tls,
        master="",
        sentinel_username=None,
        sentinel_password=None,
        sentinel_tls=sentinel_tls,
    )


def _scheme(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise UnusableError(f"no scheme ({_EXPECTED})")
    if scheme in ("amqp", "amqps", "pyamqp", "librabbitmq"):
        raise UnusableError(_RABBITMQ)
    if scheme not in SCHEMES:
        near = _ALIASES.get(scheme) or next(iter(difflib.get_close_matches(scheme, SCHEMES)), None)
        raise UnusableError(
            f"unknown scheme{f', did you mean {near}://?' if near else ''} ({_EXPECTED})"
        )
    return scheme, rest


def _socket(address: str, path: str) -> str:
    if address or not path.strip("/") or "\0" in unescaped(path):
        raise UnusableError(
            "no absolute path of a socket (expected three slashes, redis+socket:///run/redis.sock)"
        )
    return unescaped(path)


def _host(address: str, default_port: int) -> tuple[str, int]:
    bracketed = re.fullmatch(r"\[([^][]*)\](?::(.*))?", address)
    if address.count(":") > 1 and not bracketed:
        raise UnusableError(
            "more than one : in the host (expected an IPv6 address in brackets: redis://[::1]:6379)"
        )
    host, port = bracketed.groups() if bracketed else (*address.split(":"), None)[:2]
    if not host:
        raise UnusableError("no host (expected one, as in redis://localhost:6379/0)")
    if not (_is_ipv6(host) if bracketed else _is_name(host)):
        raise UnusableError("the host is neither a name nor an address")
    if port is not None and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise UnusableError("the port is not a number from 1 to 65535")
    # RFC 6874: the % before an IPv6 zone is escaped in a URL.
    return host.replace("%25", "%"), int(port or default_port)


def _is_ipv6(text: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _is_name(text: str) -> bool:
    try:
        # What cannot be encoded so, such as "a..b", is a UnicodeError where one connects.
        return bool(re.fullmatch(r"[\w.-]+", text) and text.encode("idna"))
    except UnicodeError:
        return False


def _check_alike(first: Endpoint, other: Endpoint, number: int) -> None:
    for each in fields(Endpoint):
        if each.name != "hosts" and getattr(first, each.name) != getattr(other, each.name):
            raise UnusableError(
                f"URL {number} differs from the first in its {_CALLED.get(each.name, each.name)}; "
                "several URLs may differ in the host alone"
            )
    if first.path is not None:
        raise UnusableError("a Unix socket is one server; leave the other URLs out")
