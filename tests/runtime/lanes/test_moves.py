"""A task that goes on in another lane expires as that lane says, and not as the first one did."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from celery import Celery
from harness import Project, running_broker, wait_until

from acme_tasks.lanes.routing import LANE_EXPIRES, SENT_AT

HOUR = 3600.0  # seconds
LANES = """
default_lane = "quick"

[lanes.quick]
expires = "10m"
concurrency = 1
[lanes.brief]
expires = "5m"
[lanes.slow]
"""
#: Seconds after it is due, by lane.
EXPIRES = {"quick": 600.0, "brief": 300.0, "slow": None}
WAYS = ("retry", "signature", "replace", "headers")


@pytest.fixture(scope="module")
def broker() -> Iterator[Any]:
    with running_broker() as server:
        yield server


@pytest.fixture(scope="module")
def app(broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Celery]:
    project = Project(tmp_path_factory.mktemp("moves"), LANES, broker.url)
    with project.workers("quick"), project.app() as app:
        yield app


def moved(broker: Any, lane: str) -> dict[str, Any]:
    """The headers of the one message that waits for its time in the lane."""
    key = f"lanes:{lane}:delayed"
    (message,) = wait_until(lambda: broker.redis.zrange(key, 0, -1), f"a message in {key}", 30)
    broker.redis.delete(key)
    return dict(json.loads(message)["headers"])


def seconds(headers: dict[str, Any], name: str) -> float:
    return datetime.fromisoformat(headers[name]).timestamp()


@pytest.mark.parametrize("lane", EXPIRES)
@pytest.mark.parametrize("way", WAYS)
def test_what_moves_expires_as_its_new_lane_says(
    app: Celery, broker: Any, way: str, lane: str
) -> None:
    """Whichever of Celery's ways it goes.

    Seen before: all but `replace` kept quick's, 10 minutes from when the first was sent, and so
    were set aside before they were due; and the time of sending was the first one's, too. A retry
    that named another lane was refused, because it named its queue as well.
    """
    app.send_task("move", (way, lane, HOUR), lane="quick")
    headers = moved(broker, lane)
    assert headers[SENT_AT] == pytest.approx(seconds(headers, "eta") - HOUR, abs=1.0)
    if EXPIRES[lane] is None:
        assert headers["expires"] is None
        assert LANE_EXPIRES not in headers
    else:
        assert headers["expires"] == headers[LANE_EXPIRES]
        late = seconds(headers, "expires") - seconds(headers, "eta")
        assert late == pytest.approx(EXPIRES[lane], abs=0.01)


@pytest.mark.parametrize("way", ["retry", "signature"])
def test_what_moves_keeps_the_expiry_that_its_caller_gave_it(
    app: Celery, broker: Any, way: str
) -> None:
    app.send_task("move", (way, "slow", HOUR), lane="quick", expires=2 * HOUR)
    headers = moved(broker, "slow")
    assert seconds(headers, "expires") - headers[SENT_AT] == pytest.approx(2 * HOUR, abs=60)
    assert LANE_EXPIRES not in headers
