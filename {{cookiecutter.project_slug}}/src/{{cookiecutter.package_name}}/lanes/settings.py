"""Read the environment: which broker, which result backend, which lanes file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .endpoint import SCHEMES, Endpoint, parse, value

__all__ = ["DEFAULT_BROKER_URL", "SCHEMES", "Endpoint", "Settings", "load", "parse"]

DEFAULT_BROKER_URL = "redis://localhost:6379/0"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment decides at run time."""

    broker: Endpoint
    results: Endpoint | None  # None: results are off
    lanes_file: Path | None  # None: the lanes.toml of the package


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `BROKER_URL`, `RESULT_URL`, `LANES_FILE` and, for Sentinels, `SENTINEL_*`.

    A file of the variable's name in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential) comes
    before a URL's variable, `SENTINEL_USERNAME` and `SENTINEL_PASSWORD`.

    Raises:
        SettingsError: when a URL is none that this project can use.
    """
    broker_url = (value("BROKER_URL", environ) or "").strip()
    broker = parse("BROKER_URL", broker_url or DEFAULT_BROKER_URL, environ)
    lanes_file = environ.get("LANES_FILE")
    return Settings(
        broker=broker,
        results=_results(broker, environ),
        lanes_file=Path(lanes_file) if lanes_file else None,
    )


def _results(broker: Endpoint, environ: Mapping[str, str]) -> Endpoint | None:
    url = value("RESULT_URL", environ)
    if url is None:
        # Named so in messages because RESULT_URL is what to set when that database will not do.
        return replace(broker, variable="RESULT_URL", database=1)
    return parse("RESULT_URL", url, environ) if url.strip() else None
