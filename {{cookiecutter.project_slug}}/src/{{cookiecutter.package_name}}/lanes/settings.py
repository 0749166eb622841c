"""Read the environment: which broker, which result backend, which lanes file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .endpoint import SCHEMES, Endpoint, parse, value
from .errors import SettingsError

__all__ = ["DEFAULT_BROKER_URL", "SCHEMES", "Endpoint", "Settings", "load", "parse"]

DEFAULT_BROKER_URL = "redis://localhost:6379/0"


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class Log:
    """What workers log, and how."""

    level: str = "INFO"
    format: str = "text"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment decides at run time."""

    broker: Endpoint
    results: Endpoint | None  # None: results are off
    lanes_file: Path | None  # None: the lanes.toml of the package
    log: Log = Log()


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `BROKER_URL`, `RESULT_URL`, `LANES_FILE`, `LOG_LEVEL`, `LOG_FORMAT`.

    For Sentinels there are `SENTINEL_MASTER`, `SENTINEL_USERNAME` and `SENTINEL_PASSWORD`, too.
    A file of the variable's name in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential) comes
    before a URL's variable, `SENTINEL_USERNAME` and `SENTINEL_PASSWORD`.

    Raises:
        SettingsError: when a URL, or what is to be logged, cannot be used, or there is no URL where
            credentials are used.
    """
    broker_url = (value("BROKER_URL", environ) or "").strip()
    if not broker_url and (directory := environ.get("CREDENTIALS_DIRECTORY")):
        raise SettingsError(
            f"BROKER_URL: {Path(directory, 'BROKER_URL')} is empty or not there (expected the "
            "broker's URL in it, or in the variable: where credentials are used, there is no "
            "default)"
        )
    broker = parse("BROKER_URL", broker_url or DEFAULT_BROKER_URL, environ)
    lanes_file = environ.get("LANES_FILE")
    return Settings(
        broker=broker,
        results=_results(broker, environ),
        lanes_file=Path(lanes_file) if lanes_file else None,
        log=load_log(environ),
    )


def load_log(environ: Mapping[str, str] = os.environ) -> Log:
    """What `LOG_LEVEL` and `LOG_FORMAT` say, in any case; as `Log` has it when they are empty.

    Raises:
        SettingsError: when one of them says what is not known.
    """
    default = Log()
    return Log(
        level=_choice("LOG_LEVEL", _LEVELS, default.level, environ),
        format=_choice("LOG_FORMAT", _FORMATS, default.format, environ),
    )


def _choice(name: str, known: tuple[str, ...], default: str, environ: Mapping[str, str]) -> str:
    said = environ.get(name, "").strip()
    for each in known:
        if said.lower() == each.lower():
            return each
    if not said:
        return default
    raise SettingsError(
        f"{name}: {said!r:.100} (expected {', '.join(known[:-1])} or {known[-1]}; "
        f"left out, it is {default})"
    )


def _results(broker: Endpoint, environ: Mapping[str, str]) -> Endpoint | None:
    url = value("RESULT_URL", environ)
    if url is None:
        # Named so in messages because RESULT_URL is what to set when that database will not do.
        return replace(broker, variable="RESULT_URL", database=1)
    return parse("RESULT_URL", url, environ) if url.strip() else None
