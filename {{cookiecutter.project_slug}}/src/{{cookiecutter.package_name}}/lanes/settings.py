"""Read the environment: which broker, which result backend, which lanes file."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from .errors import SettingsError

DEFAULT_BROKER_URL = "redis://localhost:6379/0"
SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment decides at run time."""

    broker_url: str
    result_url: str | None  # None: results are off
    lanes_file: Path | None  # None: the lanes.toml of the package
    sentinel_master: str  # the name that Sentinels know the server by, for sentinel:// URLs


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `BROKER_URL`, `RESULT_URL`, `LANES_FILE` and `SENTINEL_MASTER`.

    A file of the variable's name in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential) comes
    before the variable itself.

    Raises:
        SettingsError: when a URL is none that this project can use.
    """
    broker_url = _checked("BROKER_URL", _value("BROKER_URL", environ) or DEFAULT_BROKER_URL)
    result_url = _value("RESULT_URL", environ)
    if result_url is None:
        result_url = _with_database(broker_url, 1)
    lanes_file = environ.get("LANES_FILE")
    return Settings(
        broker_url=broker_url,
        result_url=_checked("RESULT_URL", result_url) if result_url else None,
        lanes_file=Path(lanes_file) if lanes_file else None,
        sentinel_master=environ.get("SENTINEL_MASTER") or "mymaster",
    )


def redacted(url: str) -> str:
    """`url` with its passwords replaced, fit for a log line."""
    return ";".join(_redacted(one) for one in url.split(";"))


def _redacted(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user_and_host = parts.netloc.rpartition("@")
    user = user_and_host[0].partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{user_and_host[2]}"))


def _value(name: str, environ: Mapping[str, str]) -> str | None:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if directory:
        secret = Path(directory, name)
        if secret.is_file():
            return secret.read_text(encoding="utf-8").strip()
    return environ.get(name)


def _checked(name: str, url: str) -> str:
    # Sentinels are several URLs with semicolons between them.
    return ";".join(_checked_one(name, one) for one in url.split(";"))


def _checked_one(name: str, url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"{name}: not a URL ({error}; expected {DEFAULT_BROKER_URL})") from None
    if parts.scheme not in SCHEMES:
        expected = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        shown = f"{parts.scheme}://..." if parts.scheme else "no scheme"
        raise SettingsError(f"{name}: {shown} (expected one of {expected})")
    database = parts.path.strip("/")
    if parts.scheme != "redis+socket" and database and not re.fullmatch(r"\d+", database):
        raise SettingsError(f"{name}: database {database!r} (expected a number, as in /0)")
    if parts.scheme == "rediss" and "ssl_cert_reqs" not in parts.query:
        # Celery's result backend refuses a rediss:// URL that does not say; the safe answer.
        query = "&".join(filter(None, [parts.query, "ssl_cert_reqs=required"]))
        return urlunsplit(parts._replace(query=query))
    return url


def _with_database(url: str, database: int) -> str:
    if ";" in url:
        return ";".join(_with_database(one, database) for one in url.split(";"))
    parts = urlsplit(url)
    if parts.scheme == "redis+socket":
        query = dict(parse_qsl(parts.query)) | {"virtual_host": str(database)}
        # urlunsplit would drop the empty host of redis+socket:///run/valkey.sock
        return f"{parts.scheme}://{parts.netloc}{parts.path}?{urlencode(query)}"
    return urlunsplit(parts._replace(path=f"/{database}"))
