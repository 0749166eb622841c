"""What is advised, of counts that a test makes up and of those of real workers."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from harness import Project, wait_until

from acme_tasks.lanes import advise, cli, config, deploy
from acme_tasks.lanes.advise import Advice, Seen
from acme_tasks.lanes.counting import OTHER, Counted, Load, Period, Tally, gather
from acme_tasks.lanes.redis.counters import Counters
from acme_tasks.lanes.redis.store import KeyState
from acme_tasks.lanes.status import store_of
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"
[lanes.quick]
[lanes.slow]
"""
DAY = 86_400.0
Row = tuple[int, float, float]  # how many, seconds that each waits, seconds that each runs


def counted(rows: Sequence[Row], slo: float = 1.0, **outcomes: int) -> Counted:
    """A task, as its worker counts it; all succeed, unless it is said."""
    tally = Tally(slo)
    for count, wait, run in rows:
        for _ in range(count):
            tally.started("t", wait, again=False)
            tally.ran("t", run)
    for outcome, count in (outcomes or {"succeeded": sum(row[0] for row in rows)}).items():
        for _ in range(count):
            tally.ended("t", outcome)
    return gather(tally.take())["t"]


Look = Callable[..., list[Advice]]


@pytest.fixture
def look(lanes_file: Callable[[str], Path]) -> Look:
    """What is advised of lanes in which these tasks were counted, of all others nothing."""

    def look(  # noqa: PLR0913 - what was seen, by name
        tasks: Mapping[str, Mapping[str, Counted]],
        lanes: str = LANES,
        *,
        seconds: float = DAY,
        workers: int = 1,
        waiting: int = 0,
        longest_key: KeyState | None = None,
        **parts: Sequence[Period],
    ) -> list[Advice]:
        declared = config.load(lanes_file(lanes))
        seen = []
        for lane in declared:
            period = Period(seconds, tasks.get(lane.name, {}), 0, seconds)
            loads = [Load(f"{lane.name}-{n}@a", lane.concurrency, 0, 0.0) for n in range(workers)]
            known = parts.get(lane.name, ())
            seen.append(Seen(lane, period, known, waiting, loads, longest_key))
        return list(advise.examine(seen))

    return look


QUICK = {"small": counted([(30_000, 0.003, 0.02)]), "mail": counted([(3000, 0.003, 0.4)])}
SLOW = {"report": counted([(100, 5.0, 300.0)], 600), "tidy": counted([(100, 5.0, 1.0)], 600)}


def only(found: Sequence[Advice]) -> Advice:
    assert len(found) == 1, found
    return found[0]


# A lane in which one key is most of the load

ONE_LANE = """
default_lane = "quick"
[lanes.quick]
"""


def test_a_key_that_is_most_of_what_waits_is_named_with_a_limit(look: Look) -> None:
    key = KeyState("c\x07 42", waiting=1_500, running=4, held_by="")
    assert only(look({}, ONE_LANE, waiting=2_000, longest_key=key)) == Advice(
        lane="quick",
        about="max_running_per_key",
        task=None,
        what="one key, 'c\\x07 42', is most of its load: 1,500 of 2,000 messages that wait (75 %), "
        "and 4 that workers hold, of 4 slots; a task of another key waits until one of its tasks "
        "ends",
        do="let no key have more than half of the slots, or as many as you like to give it; "
        "prefetch is 1 with that, so leave it out of the lane",
        write="[lanes.quick] max_running_per_key = 2",
    )


NOT_MOST = {
    "half of what waits": (ONE_LANE, 200, 100),
    "most of few": (ONE_LANE, 99, 99),
    "limited already": (f"{ONE_LANE}max_running_per_key = 1\n", 200, 200),
    "no slot to leave": (f"{ONE_LANE}concurrency = 1\n", 200, 200),
}


@pytest.mark.parametrize(("lanes", "waiting", "of_key"), NOT_MOST.values(), ids=NOT_MOST)
def test_a_key_that_is_not_or_that_no_limit_would_help_against_is_not_named(
    look: Look, lanes: str, waiting: int, of_key: int
) -> None:
    key = KeyState("k", waiting=of_key, running=0, held_by="")
    assert look({}, lanes, waiting=waiting, longest_key=key) == []


def test_the_longest_key_of_a_lane_is_looked_up(run: Callable[..., Result], broker: Any) -> None:
    store = store_of(broker.redis, config.load().get("quick"))
    message = '{"headers": {"lane_key": "%s", "id": "%s"}}'
    store.send([message % (key, number) for key in "aab" for number in range(50)])
    [advice] = json.loads(run("quick", "--json").stdout)["advice"]
    assert advice["what"].startswith("one key, 'a', is most of its load: 100 of 150 messages")


# A lane with a task that is in the wrong one


def test_a_clean_project_is_told_nothing(look: Look) -> None:
    assert look({"quick": QUICK, "slow": SLOW}) == []
    assert look({"quick": QUICK, "slow": SLOW}, seconds=12 * 3600.0) == []
    assert look({}) == []


def test_a_task_that_the_others_wait_for_is_in_the_wrong_lane(look: Look) -> None:
    small = counted([(900, 0.01, 0.02), (100, 8.0, 0.02)])
    report = counted([(400, 0.01, 12.0)])
    advice = only(look({"quick": {"small": small, "report": report}}))
    assert advice == Advice(
        lane="quick",
        about="lane",
        task="report",
        what="report runs for 24.2 s at its p95, where quick is to start tasks within 1 s; it "
        "takes 99.6 % of the lane's busy time (400 runs), and of 1,000 others, which run for "
        "24 ms, 10 % started late",
        do="move it to slow, whose tasks may wait for 10 min",
        write='@app.task(lane="slow"), or [routes] "report" = "slow" where the task names no lane',
    )


def test_it_is_in_the_wrong_lane_before_the_others_have_waited(look: Look) -> None:
    """All its slots are in use for a tenth of the time, which so few others have not met."""
    report = counted([(8000, 0.01, 12.0)])
    advice = only(look({"quick": {"small": counted([(50, 0.01, 0.02)]), "report": report}}))
    assert (advice.about, advice.task) == ("lane", "report")
    assert "0 % started late" in advice.what


def test_a_long_task_that_nobody_waits_for_may_stay(look: Look) -> None:
    report = counted([(30, 0.01, 12.0)])
    assert look({"quick": QUICK | {"report": report}}) == []


def test_a_long_task_among_its_like_is_no_stranger(look: Look) -> None:
    rows = [(400, 8.0, 12.0)]
    found = look({"quick": {"report": counted(rows), "other report": counted(rows)}})
    assert "lane" not in [advice.about for advice in found]


def test_it_goes_to_the_most_urgent_lane_that_it_fits(look: Look) -> None:
    text = LANES + '[lanes.middle]\n[lanes.short]\nlatency_slo = "25s"\ntime_limit = "15s"\n'
    small = counted([(900, 0.01, 0.02), (100, 8.0, 0.02)])
    found = look({"quick": {"small": small, "report": counted([(400, 0.01, 12.0)])}}, text)
    assert only(found).write.startswith('@app.task(lane="middle")')


def test_where_no_lane_fits_it_wants_one_of_its_own(look: Look) -> None:
    text = 'default_lane = "quick"\n[lanes.quick]'
    small = counted([(900, 0.01, 0.02), (100, 8.0, 0.02)])
    found = look({"quick": {"small": small, "report": counted([(400, 0.01, 12.0)])}}, text)
    assert only(found).do == 'move it to a lane of its own: [lanes.slow] profile = "slow"'


def test_in_the_lane_that_may_wait_for_longest_the_short_ones_are_misplaced(look: Look) -> None:
    report = counted([(100, 5.0, 1500.0)], 600)
    tidy = counted([(70, 5.0, 0.1), (30, 900.0, 0.1)], 600)
    advice = only(look({"quick": QUICK, "slow": {"report": report, "tidy": tidy}}))
    assert (advice.task, advice.do) == ("tidy", "move tidy to quick")


# Workers


def test_a_lane_that_is_late_for_want_of_slots_is_told_how_many(look: Look) -> None:
    busy = {"work": counted([(500_000, 0.5, 0.6), (100_000, 3.0, 0.6)])}
    advice = only(look({"quick": busy}))
    assert (advice.lane, advice.about, advice.task) == ("quick", "workers", None)
    assert advice.what == (
        "too few workers: in the busiest 24 h, 6.94 tasks a second came, each of which takes "
        "a slot for 602 ms (variation 0): 4.18 of 4 slots busy, so that the queue only grew; 17 % "
        "of 600,000 did not start within 1 s"
    )
    assert advice.do == (
        "6 slots start 99 % in time at 70 % use (at most 75 %), which are 2 workers of 4"
    )
    assert advice.write == "[lanes.quick] workers = 2"


def test_what_would_be_late_is_said_beside_what_was(look: Look) -> None:
    busy = {"work": counted([(450_000, 0.5, 0.6), (50_000, 3.0, 0.6)])}
    advice = only(look({"quick": busy}))
    assert "; 13 % would start late in the long run, and wait for " in advice.what
    assert advice.what.endswith("; 10 % of 500,000 did not start within 1 s")


def test_a_lane_that_is_nearly_full_wants_more_before_it_is_late(look: Look) -> None:
    busy = {"work": counted([(530_000, 0.5, 0.6)])}
    assert only(look({"quick": busy})).write == "[lanes.quick] workers = 2"


def test_a_lane_that_may_be_late_more_often_is_left_alone(look: Look) -> None:
    lanes = LANES.replace("[lanes.quick]", "[lanes.quick]\nslo_target = 0.8")
    busy = {"work": counted([(450_000, 0.5, 0.6), (50_000, 3.0, 0.6)])}
    assert look({"quick": busy}, lanes) == []


def test_the_busiest_hour_says_how_many(look: Look) -> None:
    late = {"work": counted([(90_000, 0.1, 0.5), (10_000, 8.0, 0.5)])}
    calm = {"work": counted([(1000, 0.1, 0.5)])}
    busy = {"work": counted([(54_000, 0.1, 0.5), (10_000, 8.0, 0.5)])}
    hours = [Period(3600.0, calm, 0, 3 * 3600.0), Period(3600.0, busy, 0, 2 * 3600.0)]
    hours.append(Period(3600.0, calm, 8000, 3600.0))
    advice = only(look({"quick": late}, quick=hours))
    # 64,000 started in it, and 8,000 that came in it waited when it ended.
    assert "in the busiest 1 h, 20 tasks a second came, " in advice.what
    assert ": 10 of 4 slots busy, so that the queue only grew" in advice.what
    assert advice.write == "[lanes.quick] workers = 4"


def test_where_slots_suffice_and_tasks_were_late_no_number_is_guessed(look: Look) -> None:
    bursts = {"work": counted([(900, 0.1, 0.5), (100, 8.0, 0.5)])}
    advice = only(look({"quick": bursts}))
    assert advice.what.startswith(
        "late, though its workers suffice for what comes if that comes evenly: "
    )
    assert advice.write == ""


def test_workers_that_have_nothing_to_do_are_too_many(look: Look) -> None:
    lanes = LANES.replace("[lanes.quick]", "[lanes.quick]\nworkers = 4")
    advice = only(look({"quick": QUICK, "slow": {}}, lanes, workers=4))
    assert advice.what.startswith("more workers than it wants: ")
    assert advice.write == "[lanes.quick] workers = 1"
    assert look({"quick": QUICK}, lanes, workers=4, seconds=10 * 3600.0) == [], "not a whole day"


def test_workers_that_are_declared_and_not_there_are_to_be_started(look: Look) -> None:
    lanes = LANES.replace("[lanes.quick]", "[lanes.quick]\nworkers = 3")
    busy = {"work": counted([(500_000, 0.5, 0.6), (100_000, 3.0, 0.6)])}
    advice = only(look({"quick": busy}, lanes))
    assert advice.what.startswith("too few workers: ")
    assert advice.do == "lanes.toml has enough, 3, and 1 are there: start the others"
    assert advice.write == ""


def test_names_that_are_counted_together_are_not_moved(look: Look) -> None:
    small = counted([(900, 0.01, 0.02), (100, 8.0, 0.02)])
    found = look({"quick": {"small": small, OTHER: counted([(400, 0.01, 12.0)])}})
    assert [advice.about for advice in found] == ["workers"]


def test_each_host_keeps_a_worker(lanes_file: Callable[[str], Path]) -> None:
    text = LANES.replace("[lanes.quick]", "[lanes.quick]\nworkers = 4")
    lane = config.load(lanes_file(text)).get("quick")
    loads = [Load(f"quick-{n}@{host}", 4, 0, 0.0) for n in (1, 2, 3, 4) for host in "abc"]
    seen = Seen(lane, Period(DAY, QUICK, 0, DAY), (), 0, loads)
    assert (seen.hosts, seen.workers, seen.slots) == (3, 12, 48)
    assert only(list(advise.examine([seen]))).do.endswith("1 workers of 4 on each of 3 hosts")


# Keys


def limits(look: Look, lane: str, *tasks: Counted, workers: int = 1) -> list[Advice]:
    named = {f"t{number}": each for number, each in enumerate(tasks)}
    found = look({"a": named}, f'default_lane = "a"\n[lanes.a]\n{lane}', workers=workers)
    return [advice for advice in found if advice.about not in ("lane", "workers")]


def test_a_time_limit_that_nobody_comes_near_is_named(look: Look) -> None:
    advice = only(limits(look, 'time_limit = "2h"', counted([(2000, 0.01, 4.0)])))
    assert advice.what == (
        "a time_limit of 2 h, and none of 2,000 runs took longer than 5 s: a task that hangs keeps "
        "its slot until the limit"
    )
    assert advice.write == '[lanes.a] time_limit = "30s"'


@pytest.mark.parametrize(
    ("lane", "rows"),
    [
        pytest.param("", [(2000, 0.01, 4.0)], id="which is a default"),
        pytest.param('time_limit = "2h"', [(999, 0.01, 4.0)], id="of few runs"),
        pytest.param('time_limit = "2h"', [(5000, 0.0, 4.0), (1, 0.0, 900.0)], id="but for one"),
        pytest.param("time_limit = false", [(2000, 0.01, 4.0)], id="where there is none"),
    ],
)
def test_a_time_limit_is_left_alone(look: Look, lane: str, rows: Sequence[Row]) -> None:
    assert limits(look, lane, counted(rows)) == []


def test_a_time_limit_that_a_task_hits_is_named(look: Look) -> None:
    hits = counted([(60, 0.01, 2.0), (40, 0.01, 27.0)], succeeded=60, failed=10, retried=30)
    advice = only(limits(look, 'time_limit = "30s"', hits))
    assert (advice.task, advice.about) == ("t0", "time_limit")
    assert advice.what == (
        "40 of 100 runs of t0 lasted to about the limit (27 s, then 30 s), and 40 failed or were "
        "retried"
    )
    assert advice.write == '[lanes.a] time_limit = "1m"'


def test_a_task_that_runs_nearly_as_long_and_succeeds_hits_no_limit(look: Look) -> None:
    assert limits(look, 'time_limit = "30s"', counted([(100, 0.01, 26.0)])) == []


def test_retries_that_never_help_are_named(look: Look) -> None:
    never = counted([(408, 0.01, 0.1)], succeeded=8, failed=100, retried=300)
    advice = only(limits(look, "", never))
    assert (advice.task, advice.about) == ("t0", "max_retries")
    assert advice.what == (
        "t0 was retried 300 times, and 8 of its tasks succeeded where 100 failed for good"
    )
    helped = counted([(408, 0.01, 0.1)], succeeded=90, failed=18, retried=300)
    assert limits(look, "", helped) == []


def test_an_expiry_before_the_objective_is_named(look: Look) -> None:
    advice = only(limits(look, 'expires = "5s"'))
    assert advice.what == "a task expires after 5 s, and is in time when it starts within 30 s"
    assert advice.write == '[lanes.a] expires = "1m"'


def test_an_expiry_under_the_usual_wait_is_named(look: Look) -> None:
    stale = counted([(80, 45.0, 0.1)], 30.0, succeeded=80, expired=20)
    advice = only(limits(look, 'expires = "1m"', stale))
    assert advice.what == (
        "20 of 100 tasks expired (after 1 min), and half of the others waited for up to about "
        "37.5 s"
    )
    assert advice.write == '[lanes.a] expires = "2m"'


def test_a_prefetch_that_hoards_is_named(look: Look) -> None:
    lane = 'profile = "quick"\nlatency_slo = "2s"'
    advice = only(limits(look, lane, counted([(200, 0.01, 1.0)], 2.0), workers=2))
    assert advice.what == (
        "a worker holds 4 messages for each slot, and tasks run for 1 s on average: the last of "
        "them waits for 3 s in it, beyond 2 s, while another of 2 workers may be free"
    )
    assert advice.write == "[lanes.a] prefetch = 1"
    alone = limits(look, lane, counted([(200, 0.01, 1.0)], 2.0), workers=1)
    assert alone == [], "nobody else could run what it holds"


def test_a_long_lease_is_named_once_a_worker_was_lost(look: Look) -> None:
    tally = Tally(30.0)
    assert limits(look, 'lease = "10m"', counted([(200, 0.01, 1.0)])) == []
    tally.started("t", 700.0, again=True)
    advice = only(limits(look, 'lease = "10m"', gather(tally.take())["t"]))
    assert (advice.about, advice.write) == ("lease", '[lanes.a] lease = "15s"')


# The command


@pytest.fixture
def run(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """The command, on lanes whose counts a test writes."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound(LANES)
    monkeypatch.setattr(cli.context, "app", lambda: app)
    monkeypatch.setattr(cli.context, "lanes", lambda: app.lanes)
    project = deploy.Project(slug="acme", package=PACKAGE, process_managers=())

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(cli._main, ["advise", *arguments], prog_name="acme", obj=project)

    return run


def count(broker: Any, lane: str, rows: Mapping[str, Sequence[Row]], *, ago: float) -> None:
    """As a worker does that ran so many seconds ago."""
    store = store_of(broker.redis, config.load().get(lane))
    tally = Tally(config.load().get(lane).latency_slo)
    for task, each in rows.items():
        for number, wait, runs in each:
            for _ in range(number):
                tally.started(task, wait, again=False)
                tally.ran(task, runs)
                tally.ended(task, "succeeded")
    at = store.now() - ago
    load = Load("a@b", 4, 0, 0.0)
    Counters(store).add(tally.take(), now=at, owner=f"a@b#{ago:g}", batch=1, load=load)
    for key in broker.redis.keys(f"lanes:{lane}:counts:*"):
        if broker.redis.type(key) == b"hash":  # Redis stamped it with its own time
            waited = broker.redis.hget(key, "backlog").partition(b"@")[0]
            broker.redis.hset(key, "backlog", b"%s@%d" % (waited, int(at)))


def test_a_clean_project_is_one_line(run: Callable[..., Result], broker: Any) -> None:
    count(broker, "quick", {"small": [(2000, 0.01, 0.02)]}, ago=9000)
    count(broker, "slow", {"report": [(100, 0.01, 30.0)]}, ago=9000)
    told = run()
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout == "nothing to change, by 2,100 runs in the last 24 h\n"
    assert run("slow").stdout == "nothing to change, by 100 runs in the last 24 h\n"
    assert json.loads(run("--json").stdout)["advice"] == []


def test_each_of_several_tasks_in_the_wrong_lane_is_named(
    run: Callable[..., Result], broker: Any
) -> None:
    """When others were all but the one task, each hid the other."""
    reports = {"report_a": [(100, 0.01, 20.0)], "report_b": [(100, 0.01, 21.0)]}
    count(broker, "quick", {"short": [(800, 0.01, 0.02), (200, 9.0, 0.02)]} | reports, ago=9000)
    advice = json.loads(run("--json").stdout)["advice"]
    assert {each["task"] for each in advice if each["about"] == "lane"} == set(reports)


def test_too_little_data_is_said(run: Callable[..., Result], broker: Any) -> None:
    count(broker, "quick", {"small": [(49, 0.01, 0.02)]}, ago=9000)
    told = run()
    assert told.exit_code == 0
    said = "{}: too little to say how many workers it wants: {}, and 50 in 10 min are the least"
    assert told.stdout.splitlines() == [
        said.format("quick", "49 runs in 2.5 h"),
        said.format("slow", "0 runs in 0 ms"),
    ]


def test_advice_is_shown_with_what_it_rests_on(run: Callable[..., Result], broker: Any) -> None:
    count(broker, "quick", {"work": [(60_000, 0.5, 0.6), (6000, 3.0, 0.6)]}, ago=9000)
    told = run("quick")
    assert told.exit_code == 0, "advice is no failure"
    first, do, write, assumed = told.stdout.splitlines()
    assert first.startswith(
        "quick: too few workers: in the busiest 2.5 h, 7.33 tasks a second came"
    )
    assert do.startswith("  -> 6 slots start 99 % in time at 74 % use")
    assert write == "     [lanes.quick] workers = 2"
    assert assumed == advise.ASSUMED
    answer = json.loads(run("quick", "--json").stdout)
    assert [each["lane"] for each in answer["lanes"]] == ["quick"]
    sizing = answer["lanes"][0]["sizing"]
    assert (sizing["slots_wanted"], sizing["workers_wanted"]) == (6, 2)
    assert sizing["wait_mean"] is None, "JSON has no word for endless"
    assert answer["advice"][0]["write"] == "[lanes.quick] workers = 2"


def test_an_unknown_lane_is_a_mistake(run: Callable[..., Result]) -> None:
    told = run("slwo")
    assert told.exit_code == 2
    assert told.stderr == 'no lane is called "slwo"; did you mean "slow"? (lanes: quick, slow)\n'


def test_real_workers_of_a_misplaced_task_and_of_a_clean_lane(broker: Any, tmp_path: Path) -> None:
    text = """
default_lane = "quick"
[lanes.quick]
concurrency = 2
prefetch = 1
latency_slo = "250ms"
[lanes.clean]
[lanes.slow]
"""
    project = Project(tmp_path, text, broker.url)
    with project.workers("quick", "clean"), project.app() as app:
        for _ in range(100):
            app.send_task("echo", ("clean",), lane="clean")
        for _ in range(20):  # a second and a half of two slots each time
            app.send_task("hold", (1.5, str(tmp_path / "seen")))
            app.send_task("echo", ("late",))
        counters = Counters(store_of(broker.redis, app.lanes.get("quick")))

        def all_done() -> bool:
            total = sum(counters.total().values(), Counted())
            return total.outcomes == Counter(succeeded=40)

        wait_until(all_done, "40 tasks to be counted")
        told = project.run("advise", "--json")
    assert told.returncode == 0, told.stderr
    advice = json.loads(told.stdout)["advice"]
    assert [(each["lane"], each["about"], each["task"]) for each in advice] == [
        ("quick", "lane", "hold")
    ]
    assert advice[0]["write"].startswith('@app.task(lane="clean")')
