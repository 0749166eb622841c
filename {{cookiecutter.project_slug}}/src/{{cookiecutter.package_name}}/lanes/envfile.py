"""Read `.env` of the current folder: variables for `make workers` and the command alone."""

import os
from collections.abc import MutableMapping
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from .errors import UsageError

FILE = Path(".env")
_RULE = "(expected NAME=value, in characters that the locale has)"


def read(path: Path = FILE, environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Set what `path` says and `environ` does not; returns the names that were set.

    A file that is not there says nothing. `NAME` without a value says nothing either.

    Raises:
        UsageError: when a line cannot be read, or no variable can be what it says; its text is not
            repeated, because it may hold a secret.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin it with a mark
            lines = list(parse_stream(file))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text: {error.reason}; save it as UTF-8") from None
    for line in lines:
        if line.error:
            raise UsageError(f"{path}: line {_number(line)} cannot be read {_RULE}")
    # Of a name that comes twice, the last counts. A password may hold `${`: nothing is filled in.
    chosen = {line.key: line for line in lines if line.key and line.value is not None}
    missing = [name for name in chosen if name not in environ]
    for name in missing:
        line = chosen[name]
        try:
            environ[name] = str(line.value)
        except ValueError:  # a NUL byte, a name with =, a character that the locale lacks
            raise UsageError(f"{path}: line {_number(line)} cannot be set {_RULE}") from None
    return missing


def _number(line: Binding) -> int:
    """Of the line in its file; python-dotenv counts from the empty ones before it."""
    text = line.original.string
    return line.original.line + text[: len(text) - len(text.lstrip())].count("\n")
