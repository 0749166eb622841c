"""Long texts are cut in the middle, in Celery's log of a failed task, too."""

import logging

import pytest

from acme_tasks.lanes import excerpt


def test_the_head_and_the_tail_are_kept_with_a_note_of_what_is_left_out() -> None:
    text = "a" * 10 + "b" * 2000 + "c" * 9
    assert excerpt.excerpt(text, 19) == (
        "a" * 10 + "\n[... 2,000 characters left out ...]\n" + "c" * 9
    )
    assert excerpt.excerpt("abc", 3) == "abc"


@pytest.mark.parametrize("name", excerpt._LOGGERS)
def test_celerys_log_of_an_error_is_bounded(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Seen before: six errors of 20 MB were 360 MB of log."""
    logger = logging.getLogger(name)
    excerpt.bound_logs()
    excerpt.bound_logs()
    try:
        assert logger.filters.count(excerpt._shorten) == 1
        error = ValueError("x" * 1_000_000)
        logger.error(  # as Celery does it
            "Task %(name)s raised: %(exc)s", {"name": "a", "exc": repr(error)}, exc_info=error
        )
        logger.error("short: %s", "a")
    finally:
        logger.removeFilter(excerpt._shorten)
    assert "Task a raised: ValueError('xxx" in caplog.text
    assert "\nValueError: xxx" in caplog.text
    assert "short: a" in caplog.text
    assert len(caplog.text) < 50_000
