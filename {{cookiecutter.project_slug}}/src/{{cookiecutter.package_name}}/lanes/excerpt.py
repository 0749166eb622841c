"""Keep texts of any length short: what a task raises may be as long as its arguments.

Six errors of 20 MB were 360 MB of log, and 240 MB in Redis.
"""

import logging

ERROR = 4_000  # characters of an error, in a log's line or a dead letter
TRACEBACK = 40_000  # characters
#: Celery's, which log the error of a task in full, its text twice.
_LOGGERS = ("celery.app.trace", "celery.worker.request")


def excerpt(text: str, most: int) -> str:
    """`text`, or its head and its tail, of `most` characters together, with a note between them."""
    if len(text) <= most:
        return text
    head, tail = most - most // 2, most // 2
    left_out = f"[... {len(text) - most:,} characters left out ...]"
    return f"{text[:head]}\n{left_out}\n{text[-tail:]}"


def bound_logs() -> None:
    """Have Celery's log of a failed task show no more of it than a dead letter."""
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if _shorten not in logger.filters:
            logger.addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if len(message) > ERROR:
        record.msg, record.args = excerpt(message, ERROR), None
    if record.exc_info and record.exc_info[0]:
        shown = record.exc_text or logging.Formatter().formatException(record.exc_info)
        record.exc_text = excerpt(shown, TRACEBACK)
    return True
