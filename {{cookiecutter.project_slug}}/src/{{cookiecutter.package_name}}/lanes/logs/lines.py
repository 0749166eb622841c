"""Lines of JSON: each line that a process and its children say, whole, whoever says it."""

import fcntl
import io
import json
import logging
import os
import select
import sys
import tempfile
import threading
import warnings
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

from ..settings import Log
from .about import of_task

_OURS = __name__.rsplit(".", 2)[0]  # the runtime


class _Json(logging.Formatter):
    lane: str | None = None  # the worker's

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII, so that no reader needs to know of an encoding."""
        time_of_day = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {
            "time": time_of_day.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        if self.lane is not None:
            entry["lane"] = self.lane
        entry |= of_task(record)
        if record.exc_info and record.exc_info[0]:
            entry["exception"] = record.exc_text or self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = record.stack_info
        return json.dumps(entry)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - arguments that do not fit, or cannot be shown
        return f"{record.msg!s} ({type(error).__name__} when its arguments were filled in: {error})"


_json = _Json()


class _Whole(logging.Handler):
    """Writes lines that no other process of this worker breaks in two.

    A pipe takes 4 KiB in one piece, and a line with a traceback may be ten times as long.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(_json)
        self.descriptor = descriptor
        # Locked by whichever process writes; the kernel lets go of it whatever becomes of that.
        self._turn = tempfile.TemporaryFile()  # noqa: SIM115 - until the process ends
        self._lines: deque[bytes] = deque()
        self._writer: int | None = None  # the thread that writes

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock, which keeps other threads out, and no signal's handler.

        What such a handler says while a line is written comes after that line.
        """
        self._lines.append(self.format(record).encode() + b"\n")
        if self._writer == threading.get_ident():
            return
        self._writer = threading.get_ident()
        try:
            while self._lines:
                self._write(self._lines.popleft())
        finally:
            self._writer = None

    def _write(self, line: bytes) -> None:
        with suppress(OSError):  # nobody reads it any more: the tasks go on
            fcntl.lockf(self._turn, fcntl.LOCK_EX)
            try:
                while line:
                    try:
                        line = line[os.write(self.descriptor, line) :]
                    except BlockingIOError:  # whoever started us reads without waiting
                        select.select([], [self.descriptor], [])
            finally:
                fcntl.lockf(self._turn, fcntl.LOCK_UN)


_handler: _Whole | None = None  # None: this process writes text


class _Kept(threading.local):
    """What a thread has written of a line, and whether it is writing one."""

    text = ""
    busy = False


class _Stream(io.TextIOBase):
    """sys.stdout or sys.stderr: each line that is written to it is a line of the log."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self._descriptor = name, descriptor
        self._kept = _Kept()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str, /) -> int:
        """Keeps what does not end a line: `print` writes texts, separators and its end apart."""
        self._kept.text += text
        if text.endswith("\n"):
            self.flush()
        return len(text)

    def flush(self) -> None:
        text, self._kept.text = self._kept.text.rstrip("\n"), ""
        if text:
            self._log(text)

    def _log(self, text: str) -> None:
        record = _record(self.name, logging.WARNING, text)  # the level of Celery's, too
        if self._kept.busy or not logging.root.handlers:
            # The log itself writes here, or there is none yet.
            say(text, level=record.levelno, logger=self.name)
            return
        self._kept.busy = True
        try:
            logger = logging.getLogger(self.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        finally:
            self._kept.busy = False


def _record(logger: str, level: int, text: str, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord(logger, level, "", 0, text, None, exc_info)


def line(text: str, who: str | None = None) -> str:
    """A line of this process: text with a lane's name in front, or JSON."""
    text = f"{who} | {text}" if who and _json.lane is None else text
    return text if _handler is None else _json.format(_record(_OURS, logging.INFO, text))


def say(
    text: str,
    who: str | None = None,
    *,
    level: int = logging.INFO,
    logger: str = _OURS,
    file: TextIO | None = None,
) -> None:
    """Say a line past the log: before it is set up, or in a signal's handler.

    Args:
        who: the lane, for text, in which nothing else names it.
        level: for JSON; nothing that is said so is left out.
        logger: likewise.
        file: for text; standard output, unless it is given.
    """
    if _handler is None:
        print(line(text, who), file=file, flush=True)
    else:
        text = f"{who} | {text}" if who and _json.lane is None else text
        _handler.handle(_record(logger, level, text))


def warn(message: Warning | str, category: type[Warning], who: str | None = None) -> None:
    """Say a warning in one line; Celery's to root has nine, of which the first names its file."""
    text = f"{category.__name__}: {' '.join(str(message).split())}"
    say(text, who, level=logging.WARNING, logger="py.warnings")


def begin(log: Log, descriptor: int = 2) -> None:
    """Have all that this process and its children say be JSON, if that is what `log` asks for."""
    global _handler  # noqa: PLW0603 - a process has one standard error
    if log.format != "json" or _handler is not None:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _handler = _Whole(descriptor)
    # Celery writes to these two past any redirection.
    sys.stdout = sys.__stdout__ = _Stream("stdout", 1)  # type: ignore[assignment, misc]
    sys.stderr = sys.__stderr__ = _Stream("stderr", 2)  # type: ignore[assignment, misc]
    sys.excepthook = _uncaught
    threading.excepthook = lambda seen: _uncaught(seen.exc_type, seen.exc_value, seen.exc_traceback)
    warnings.showwarning = lambda message, category, *_: warn(message, category)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    text = f"{kind.__name__}: {error}"
    if _handler is not None:
        _handler.handle(_record(_OURS, logging.CRITICAL, text, (kind, error, trace)))


def to_json(logger: logging.Logger) -> None:
    """Have a logger of Celery's write lines of JSON where it wrote text."""
    for handler in list(logger.handlers):
        if isinstance(getattr(handler, "stream", None), _Stream) and _handler is not None:
            logger.removeHandler(handler)
            logger.addHandler(_handler)
        else:  # a file, by --logfile
            handler.setFormatter(_json)


def name_lane(lane: str) -> None:
    """Have each line of this process say that it is of this lane's worker."""
    _json.lane = lane
