"""A real Prometheus scrapes a real flood: who is paged and who is not, and what a dashboard has."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import eventually
from watching import Watch, hurried, missing, queries, watched

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=f"not here (Debian): {', '.join(missing())}"),
]


@pytest.fixture(scope="module")
def watch(
    baked: Callable[[str], Path], env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watch]:
    """A flood in slow, and tasks of quick beside it. The last test stops slow's worker."""
    folder = tmp_path_factory.mktemp("watched")
    with watched(baked("default"), folder, env) as watch:
        watch.flood(20_000)
        yield watch


def test_rules_are_hurried_and_not_changed_else() -> None:
    rules = 'a > 0.144 and b{x="[5m]"}[5m] offset 1h\nfor: 5m\ninterval: 2m\nratio5m 3d'
    assert hurried(rules) == (
        'a > 0.144 and b{x="[5000ms]"}[5000ms] offset 60000ms\nfor: 5000ms\ninterval: 2000ms\n'
        "ratio5m 3d"
    )


def test_a_flood_pages_for_its_own_lane_alone(watch: Watch) -> None:
    eventually(lambda: ("LaneLateNow", "slow") in watch.fired(), "a page for slow")
    eventually(lambda: ("LaneLateNow", "slow") in watch.received(), "Alertmanager to have it")
    late = watch.received()["LaneLateNow", "slow"]
    assert late["labels"]["severity"] == "page"
    assert late["annotations"]["runbook_url"] == "docs/alerts.md#lanelatenow"
    assert (
        "of the starts in the last hour came later than 1 s; 1% may"
        in (late["annotations"]["summary"])
    )
    assert [receiver["name"] for receiver in late["receivers"]] == ["pages"]
    # Meanwhile tasks of quick started, and in time.
    # A late scrape may leave one sample in ten seconds, of which nothing can be said.
    in_time = 'increase(lanes_slo_good_total{lane="quick"}[10s]) > 0'
    eventually(lambda: bool(watch.query(in_time)), "tasks of quick that start in time")
    assert "quick" not in {lane for _alert, lane in watch.fired()}


@pytest.mark.parametrize("lane", ["quick", "slow"])
def test_every_query_of_the_dashboard_has_data(watch: Watch, lane: str) -> None:
    made = queries(watch.dashboard, lane)
    assert len(made) > 15

    def without() -> list[str]:
        return [
            f"{query.panel}, {query.legend}: {query.expression}"
            for query in made
            if not any(
                math.isfinite(float(series["value"][1])) for series in watch.query(query.expression)
            )
        ]

    eventually(lambda: not without(), f"data for each of {made}, lacking: {without()}")


def test_the_dashboards_variable_finds_each_lane(watch: Watch) -> None:
    (lane,) = [each for each in watch.dashboard["templating"]["list"] if each["name"] == "lane"]
    selected = lane["query"]["query"].removeprefix("label_values(").removesuffix(", lane)")
    assert {each["metric"]["lane"] for each in watch.query(selected)} == {"quick", "slow"}


def test_a_lane_whose_workers_all_stop_pages_by_the_age_of_its_oldest_task(watch: Watch) -> None:
    watch.workers["slow"].end()
    both = {("LaneOldestWaitsTooLong", "slow"), ("LaneHasNoWorker", "slow")}
    eventually(lambda: both <= watch.received().keys(), "both alerts at Alertmanager")

    def inhibited() -> bool:
        status = watch.received()["LaneOldestWaitsTooLong", "slow"]["status"]
        cause = watch.received()["LaneHasNoWorker", "slow"]
        return cause["fingerprint"] in status["inhibitedBy"]

    eventually(inhibited, "one page of two: the cause's")
    assert "quick" not in {lane for _alert, lane in watch.fired()}
