"""What the arithmetic of capacity says, beside what is known of it otherwise."""

import dataclasses
import math
import random
from collections import Counter
from fractions import Fraction
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queueing import exponential, poisson, waits
from queueing import flow_of as simulated_flow

from acme_tasks.lanes import config
from acme_tasks.lanes.capacity import (
    HIGHEST_USE,
    TURNAROUND,
    Flow,
    flow_of,
    slots_wanted,
    wait_of,
    wanted_workers,
)
from acme_tasks.lanes.counting import Counted, Histogram, Period

RATES = st.floats(1e-9, 1e6)  # a second
RUNS = st.floats(1e-4, 1e5)  # seconds
VARIATIONS = st.floats(0, 100)
LONG = 100_000  # tasks, after which chance moves the mean wait at 90 % use by some 4 %
SLOTS = st.integers(1, 500)
FLOWS = st.builds(Flow, RATES, RUNS, VARIATIONS)


@st.composite
def moderate_flows(draw: Any) -> Flow:
    """That some hundred slots suffice for."""
    load, run = draw(st.floats(1e-6, 300)), draw(RUNS)
    return Flow(load / run, run, draw(VARIATIONS))


@pytest.mark.parametrize(
    ("load", "slots", "share"),
    [
        pytest.param(1.0, 2, 1 / 3, id="1 of 2"),
        pytest.param(2.0, 3, 4 / 9, id="2 of 3"),
        pytest.param(4.5, 5, 0.7625, id="4.5 of 5"),
        pytest.param(10.0, 12, 0.4494, id="10 of 12"),
    ],
)
def test_erlang_c_is_as_in_tables(load: float, slots: int, share: float) -> None:
    assert wait_of(Flow(load, 1.0, 1.0), slots).share == pytest.approx(share, abs=1e-4)


@given(st.integers(1, 60), st.fractions("0.01", "0.99", max_denominator=100))
def test_erlang_c_is_as_its_formula_in_exact_numbers(slots: int, use: Fraction) -> None:
    load = use * slots
    all_busy = load**slots / math.factorial(slots) / (1 - use)
    share = all_busy / (sum(load**n / math.factorial(n) for n in range(slots)) + all_busy)
    found = wait_of(Flow(float(load), 1.0, 1.0), slots).share
    assert found == pytest.approx(float(share), rel=1e-9)


@given(st.floats(0.01, 0.99), RUNS)
def test_one_slot_is_the_queue_of_textbooks(use: float, run: float) -> None:
    wait = wait_of(Flow(use / run, run, 1.0), 1)
    assert wait.share == pytest.approx(use)
    assert wait.mean == pytest.approx(use * run / (1 - use))
    assert wait.beyond(run) == pytest.approx(use * math.exp(-(1 - use)))
    steady = wait_of(Flow(use / run, run, 0.0), 1)
    assert steady.mean == pytest.approx(wait.mean / 2), "Pollaczek and Khinchin, exactly"


@given(moderate_flows(), SLOTS)
def test_more_slots_never_wait_longer(flow: Flow, slots: int) -> None:
    fewer, more = wait_of(flow, slots), wait_of(flow, slots + 1)
    assert more.mean <= fewer.mean
    assert more.share <= fewer.share


@given(moderate_flows(), SLOTS, st.floats(1.01, 10))
def test_who_sends_more_never_waits_less(flow: Flow, slots: int, factor: float) -> None:
    more = dataclasses.replace(flow, arrivals=flow.arrivals * factor)
    assert wait_of(more, slots).mean >= wait_of(flow, slots).mean


@given(FLOWS, SLOTS)
def test_the_wait_is_finite_just_where_the_slots_can_keep_up(flow: Flow, slots: int) -> None:
    wait = wait_of(flow, slots)
    assert math.isfinite(wait.mean) == (flow.load < slots)
    assert 0 <= wait.share <= 1
    assert 0 <= wait.beyond(1.0) <= 1


@given(moderate_flows(), st.floats(0, 1e5), st.floats(0.5, 0.9999))
def test_the_slots_wanted_meet_the_objective_and_one_less_does_not(
    flow: Flow, slo: float, share: float
) -> None:
    def meets(slots: int) -> bool:
        in_time = wait_of(flow, slots).beyond(slo) <= 1 - share
        return in_time and flow.load / slots <= HIGHEST_USE * (1 + 1e-12)

    wanted = slots_wanted(flow, slo, share)
    assert meets(wanted)
    assert wanted == 1 or not meets(wanted - 1)


@given(FLOWS, st.floats(0, 1e5))
def test_there_is_an_answer_for_each_flow(flow: Flow, slo: float) -> None:
    assert slots_wanted(flow, slo, 0.99) >= flow.load


def test_so_many_slots_as_no_lane_has_are_reckoned_with() -> None:
    wait = wait_of(Flow(99_999.0, 1.0, 1.0), 100_000)
    assert 0.99 < wait.share < 1
    assert wait.mean == pytest.approx(wait.share)
    assert slots_wanted(Flow(75_000.0, 1.0, 1.0), 0.1, 0.99) == 100_000


def period(
    runs: int = 3600,
    *,
    seconds: float = 3600.0,
    backlog: int | None = 0,
    run: float = 2.0,
    **counted: Any,
) -> Period:
    """Of runs that all take as long."""
    ran = Histogram({2.5: runs}, runs * run, runs * run * run)
    waits = counted.pop("waits", runs)
    task = Counted(run=ran, wait=Histogram({0.001: waits}), **counted)
    return Period(3600.0, {"t": task}, backlog, seconds)


@pytest.mark.parametrize(
    ("given_", "waiting", "arrivals"),
    [
        pytest.param(period(), 0, 1.0, id="what started"),
        pytest.param(period(backlog=900), 0, 0.75, id="less what had waited"),
        pytest.param(period(), 1800, 1.5, id="and what waits now"),
        pytest.param(period(outcomes=Counter(expired=360)), 0, 1.1, id="and what expired"),
        pytest.param(period(waits=7200), 0, 2.0, id="what started and has not ended"),
        pytest.param(period(waits=3600, redelivered=36), 0, 1.01, id="again"),
        pytest.param(period(waits=0), 0, 1.0, id="of senders that do not say when"),
        pytest.param(period(seconds=1800.0), 0, 2.0, id="of a lane that is new"),
        pytest.param(period(backlog=9999), 0, 0.0, id="purged"),
    ],
)
def test_what_came_is_reckoned_from_what_left(
    given_: Period, waiting: int, arrivals: float
) -> None:
    flow = flow_of(given_, waiting)
    assert flow is not None
    assert flow.arrivals == pytest.approx(arrivals)
    assert (flow.taken, flow.variation) == (2.0 + TURNAROUND, pytest.approx(0.0))


@pytest.mark.parametrize(
    "given_",
    [
        pytest.param(period(49), id="runs"),
        pytest.param(period(seconds=599.0), id="time"),
        pytest.param(Period(3600.0, {}, None, None), id="nothing at all"),
    ],
)
def test_too_little_data_is_no_answer(given_: Period, lanes_file: Any) -> None:
    assert flow_of(given_, 0) is None
    lane = config.load(lanes_file('default_lane = "a"\n[lanes.a]')).default
    assert wanted_workers(given_, lane, 0) is None


def test_workers_are_wanted_for_what_comes_and_for_what_waits(lanes_file: Any) -> None:
    text = 'default_lane = "a"\n[lanes.a]\nconcurrency = 2\nlatency_slo = "30s"'
    lane = config.load(lanes_file(text)).default
    assert wanted_workers(period(), lane, 0) == 2  # 2 slots busy of 3
    assert wanted_workers(period(backlog=3600), lane, 0) == 1  # nothing comes any more
    # It came while nothing did, and is to be worked off: 4 slots busy of 6, and 5.33 would do.
    assert wanted_workers(period(backlog=3600), lane, 3600) == 3


def some_long(count: int) -> list[float]:
    """One of ten, by chance, runs for ten times as long; 1 s on average."""
    drawn = random.Random(3)  # noqa: S311 - the same in each run of the tests
    means = drawn.choices((10 / 19, 100 / 19), weights=(9, 1), k=count)
    return [drawn.expovariate(1 / mean) for mean in means]


@pytest.mark.parametrize("use", [0.5, 0.75, 0.9])
@pytest.mark.parametrize(
    ("runs", "least", "most"),
    [
        pytest.param(exponential(1.0, LONG, 1), 0.9, 1.1, id="exponential"),
        pytest.param([1.0] * LONG, 0.8, 1.1, id="alike"),
        # Known of the formula: where slots are half idle, it errs to the long side.
        pytest.param(some_long(LONG), 0.9, 1.5, id="some long"),
    ],
)
def test_a_simulated_queue_waits_as_predicted(
    runs: list[float], least: float, most: float, use: float
) -> None:
    tasks = list(poisson(4 * use, runs, 7))
    wait = wait_of(simulated_flow(tasks), 4)
    simulated = list(waits(tasks, 4))
    assert least <= wait.mean / fmean(simulated) <= most
    late = sum(each > 3.0 for each in simulated) / len(simulated)
    assert wait.beyond(3.0) == pytest.approx(late, rel=0.3, abs=0.01)
