"""What may follow the ? of a Redis URL: the database, and how TLS is spoken."""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
#: What `ssl` says of a sentinel:// URL: whether the server speaks TLS, whether the Sentinels do.
_SPEAK_TLS = {
    "true": (True, True),
    "server": (True, False),
    "sentinels": (False, True),
    "false": (False, False),
}
#: Options that other software has, and why they are refused here.
_REFUSED = {
    **dict.fromkeys(
        ("username", "password", "user"),
        "goes before the host: redis://user:password@host/0, "
        "redis+socket://:password@/run/redis.sock",
    ),
    **dict.fromkeys(
        ("sentinel_username", "sentinel_password", "master_name", "service_name"),
        "is not for the URL; set SENTINEL_USERNAME, SENTINEL_PASSWORD, SENTINEL_MASTER",
    ),
    **dict.fromkeys(
        (
            *("socket_timeout", "socket_connect_timeout", "socket_keepalive", "timeout"),
            *("socket_keepalive_options", "retry_on_timeout", "retry_on_error", "max_connections"),
            *("health_check_interval", "visibility_timeout", "protocol", "client_name"),
        ),
        "is not for the URL: the project decides it, the same for every connection; leave it out",
    ),
}


class UnusableError(ValueError):
    """Raised when a URL cannot be used; says why, and not which variable's it is."""


def unescaped(text: str) -> str:
    """`text` with its percent-escapes resolved.

    Raises:
        UnusableError: when a % stands for itself, or escapes stand for what is not UTF-8.
    """
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise UnusableError("a % that escapes nothing (escape it: % is %25)")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise UnusableError("what is escaped with % is not UTF-8 text") from None


def options(query: str) -> dict[str, str]:
    """The options of a URL by name.

    Raises:
        UnusableError: when one is unknown, refused, or there twice.
    """
    found: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name in _REFUSED:
            raise UnusableError(f"{name} {_REFUSED[name]}")
        if name not in ("db", "virtual_host", "ssl", *_TLS):
            close = difflib.get_close_matches(name, _TLS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: db, ssl, {', '.join(_TLS)}"
            shown = name if re.fullmatch(r"\w{1,40}", name) else "one"
            raise UnusableError(f"unknown option {shown}; {hint}")
        if name in found:
            raise UnusableError(f"{name} is there twice; leave one out")
        found[name] = unescaped(value)
    return found


def database(path: str, said: Mapping[str, str]) -> int:
    """The number of the database that a path such as "/0", or an option, names; 0 when none does.

    Raises:
        UnusableError: when it is no number, or two are named.
    """
    named = {said[name] for name in ("db", "virtual_host") if name in said}
    if path not in ("", "/"):
        named.add(path.removeprefix("/"))
    number = named.pop() if named else "0"
    if named:
        raise UnusableError("two databases are named; leave one out")
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise UnusableError("the database is not a number (expected 0 or more, as in /0)")
    return int(number)


def tls(scheme: str, said: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """redis-py's ssl_* keywords for the server and for the Sentinels; empty: no TLS is spoken.

    Raises:
        UnusableError: when an option is wrong, or one for TLS stands where none is spoken.
    """
    if scheme != "sentinel" and "ssl" in said:
        raise UnusableError("ssl is for sentinel:// alone (TLS to a server is rediss://)")
    speak = _SPEAK_TLS.get(said.get("ssl", "false").lower())
    if speak is None:
        raise UnusableError(f"ssl is none of {', '.join(_SPEAK_TLS)}")
    to_server, to_sentinels = (True, False) if scheme == "rediss" else speak
    chosen = {name: _TLS[name](name, value) for name, value in said.items() if name in _TLS}
    if chosen and not (to_server or to_sentinels):
        way = {"redis": "write rediss://", "sentinel": "add ssl=true"}.get(scheme, "leave it out")
        raise UnusableError(f"{next(iter(chosen))} is for TLS, and none is spoken here; {way}")
    if "ssl_keyfile" in chosen and "ssl_certfile" not in chosen:
        raise UnusableError("ssl_keyfile needs ssl_certfile")
    keys = [chosen[name] for name in ("ssl_certfile", "ssl_keyfile") if name in chosen]
    if "ssl_password" not in chosen and any(b"ENCRYPTED" in Path(key).read_bytes() for key in keys):
        # OpenSSL would ask for it on the terminal, and wait.
        raise UnusableError("the private key is encrypted; add ssl_password, or decrypt it")
    # Celery and kombu check neither unless they are told to.
    checks = chosen.get("ssl_cert_reqs") != "none"
    keywords = {"ssl_cert_reqs": "required", "ssl_check_hostname": checks} | chosen
    if keywords["ssl_check_hostname"] and not checks:
        raise UnusableError("ssl_check_hostname=true needs ssl_cert_reqs=required")
    return (keywords if to_server else {}), (dict(keywords) if to_sentinels else {})


def _requirement(name: str, value: str) -> str:
    """As redis-py has it; Celery's and Python's name is CERT_REQUIRED."""
    word = value.lower().removeprefix("cert_")
    if word not in ("required", "optional", "none"):
        raise UnusableError(f"{name} must be required, optional or none")
    return word


def _flag(name: str, value: str) -> bool:
    if value.lower() not in _FLAGS:
        raise UnusableError(f"{name} is neither true nor false")
    return _FLAGS[value.lower()]


def _file(name: str, value: str) -> str:
    try:
        with Path(value).open("rb"):
            return value
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise UnusableError(f"{name}: {_named(value)}{why}") from None


def _folder(name: str, value: str) -> str:
    if not Path(value).is_dir():
        raise UnusableError(f"{name}: {_named(value)}no such folder")
    return value


def _named(path: str) -> str:
    """For a message of one line."""
    return f"{path}: " if path.isprintable() else ""


def _text(_: str, value: str) -> str:
    return value


_TLS: dict[str, Callable[[str, str], Any]] = {
    "ssl_cert_reqs": _requirement,
    "ssl_check_hostname": _flag,
    "ssl_ca_certs": _file,
    "ssl_ca_path": _folder,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_password": _text,
    "ssl_ciphers": _text,
}
