"""Time limits of a task and of a call, in a lane that has its own."""

import pytest
from conftest import MakeFleet
from harness import wait_until
from support import message

pytestmark = pytest.mark.ours_only("the limits of a lane")

LONG = 600.0  # seconds
AT_LEAST = 40  # seconds before the lane's own soft limit; see `time_limit` below


def test_the_shorter_limit_is_enforced_when_it_has_passed(make_fleet: MakeFleet) -> None:
    """Seen before: a hard one that is shorter than the lane's soft one, when that had passed."""
    fleet = make_fleet(concurrency=5, time_limit="10m", soft_time_limit="9m", max_retries=0)
    fleet.start()
    fleet.send(
        message("tick", ["call-hard", LONG], timelimit=[1, None]),
        message("tick", ["call-soft", LONG], timelimit=[None, 1]),
        message("tick", ["soft-as-long-as-hard", LONG], timelimit=[1, 1]),
        message("tick_briefly", ["task-hard", LONG]),
        message("tick_briefly", ["call-longer", LONG], timelimit=[LONG, LONG]),
    )
    letters = wait_until(
        lambda: letters if len(letters := fleet.dead()) == 5 else None, "five letters", AT_LEAST
    )
    errors = sorted(letter.error for letter in letters)
    assert errors[0].startswith("SoftTimeLimitExceeded: ")
    assert errors[1:] == ["time limit of 1 s exceeded"] * 4
    assert fleet.ledger.started.total() == 5
    assert not fleet.ledger.ended


def test_a_lanes_limits_are_the_longest_that_any_call_gets(make_fleet: MakeFleet) -> None:
    """A stop waits for as long as them, and no longer."""
    fleet = make_fleet(concurrency=2, time_limit="3s", soft_time_limit="2s", max_retries=0)
    fleet.start()
    fleet.send(
        message("tick", ["hard", LONG], timelimit=[LONG, None]),
        message("tick", ["both", LONG], timelimit=[LONG, LONG]),
    )
    letters = wait_until(
        lambda: letters if len(letters := fleet.dead()) == 2 else None, "two letters", AT_LEAST
    )
    assert all(letter.error.startswith("SoftTimeLimitExceeded: ") for letter in letters)


def test_remote_control_shortens_a_tasks_limits(make_fleet: MakeFleet) -> None:
    """Stock's workers say that they do it, and go on as before (5.7.0)."""
    fleet = make_fleet(concurrency=1, time_limit="10m", soft_time_limit="9m", max_retries=0)
    fleet.start()
    with fleet.app() as app:
        said = wait_until(lambda: app.control.time_limit("tick", hard=1, reply=True), "an answer")
    (answer,) = said[0].values()
    assert answer == {"ok": "time limits set successfully"}
    fleet.send(message("tick", ["a", LONG]))
    (letter,) = wait_until(fleet.dead, "a letter", AT_LEAST)
    assert letter.error == "time limit of 1 s exceeded"
