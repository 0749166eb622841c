"""`status`: what is shown of how lanes got on, and what scripts are told."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
from celery import Celery
from harness import PATIENCE, Project

from acme_tasks.lanes import status
from acme_tasks.lanes.counting import Addition, Load
from acme_tasks.lanes.redis.counters import Counters
from acme_tasks.lanes.redis.store import EXCHANGE_KEYS
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
[lanes.quick]
latency_slo = "50ms"
dead_cap = 1
"""
NAME = "a.module.with.tasks.resize"
WIDTH = 100  # columns that what is shown must do with


@pytest.fixture
def project(broker: Any, tmp_path: Path) -> Project:
    return Project(tmp_path, LANES, broker.url)


@pytest.fixture
def count(bound: Callable[[str], Celery], broker: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has a worker of quick have counted these, so many seconds ago."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app: Any = bound(LANES)
    store = status.store_of(broker.redis, app.lanes.get("quick"))
    load = Load(node="quick-1@host", slots=4, running=0, clock=0.0)

    def count(additions: list[Addition], *, ago: float = 0.0) -> None:
        count.batch += 1
        now = store.now() - ago
        Counters(store).add(additions, now=now, owner="o", batch=count.batch, load=load)

    count.batch = 0
    return count


def of(name: str, good: int, total: int, *, outcome: str = "succeeded") -> list[Addition]:
    """So many tasks of which so many started in time, each after up to 50 or 100 ms."""
    waits = [("wait<=0.05", name, good), ("wait<=0.1", name, total - good)]
    runs = [("run<=0.25", name, total)]
    return [("good", name, good), ("total", name, total), (f"outcome={outcome}", name, total)] + [
        each for each in waits + runs if each[2]
    ]


def rows(shown: str, first: str) -> list[list[str]]:
    """The cells of the table whose head begins so, in words; columns are apart by a space."""
    lines = [line for line in shown.splitlines() if line.strip()]
    words = first.split()
    head = next(n for n, line in enumerate(lines) if line.split()[: len(words)] == words)
    found = []
    for line in lines[head + 2 :]:
        if line.startswith((" lane ", " task,")):
            break
        found.append(line.split())
    return found


def test_a_newcomer_sees_one_table(project: Project) -> None:
    told = project.run("status")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.split()[0] == "lane"
    assert "budget" not in told.stdout
    assert max(map(len, told.stdout.splitlines())) <= WIDTH


def test_it_shows_how_many_started_in_time_and_what_of_the_budget_is_left(
    project: Project, count: Any
) -> None:
    count(of("echo", 1_990, 2_000), ago=86_400)
    count(of("echo", 999, 1_000), ago=1_800)
    count(of(NAME, 297, 300))
    told = project.run("status")
    [slow, quick] = rows(told.stdout, "lane in time,")
    assert slow[:4] == ["slow", "-", "-", "-"]
    # 1,296 of 1,300 in an hour; 14 of 3,300 were late, and 33 may be.
    assert quick[:9] == ["quick", "99", "%", "99.69", "%", "99.57", "%", "99", "%"]
    assert quick[9:11] == ["57.57", "%"]
    assert float(quick[11]) == pytest.approx(300 / 270, rel=0.2)  # a second, of 240 s to 300 s
    assert quick[12:] == ["38", "ms", "50", "ms", "-"]
    assert max(map(len, told.stdout.splitlines())) <= WIDTH

    [_, told_of] = json.loads(project.run("status", "--json").stdout)
    assert told_of["budget_left"] == pytest.approx(1 - 14 / 33)
    assert told_of["last_5m"]["in_time"] == pytest.approx(0.99)
    assert told_of["last_1h"]["outcomes"] == {"succeeded": 1_300}
    assert told_of["last_30d"]["done"] == 3_300


def test_a_budget_that_is_spent_says_how_often(project: Project, count: Any) -> None:
    count(of("echo", 50, 100))
    [_, quick] = rows(project.run("status").stdout, "lane in time,")
    assert quick[9:12] == ["spent", "50", "x"]


def test_it_shows_a_lane_with_its_tasks(project: Project, count: Any) -> None:
    count(of("echo", 9, 10, outcome="failed"))
    count(of(NAME, 10, 10))
    told = project.run("status", "quick")
    assert (told.returncode, told.stderr) == (0, "")
    assert [row[0] for row in rows(told.stdout, "lane waiting")] == ["quick"]
    assert [row[:5] for row in rows(told.stdout, "task, last hour")] == [
        [NAME, "10", "0", "100", "%"],
        ["echo", "10", "10", "90", "%"],
    ]
    assert max(map(len, told.stdout.splitlines())) <= WIDTH
    [told_of] = json.loads(project.run("status", "quick", "--json").stdout)
    assert told_of["lane"] == "quick"
    assert told_of["tasks"]["echo"]["outcomes"] == {"failed": 10}
    assert told_of["tasks"][NAME]["run_p99"] == pytest.approx(0.25, abs=0.01)


def test_it_shows_the_ten_longest_keys_of_a_lane_and_what_holds_each_back(
    project: Project, broker: Any
) -> None:
    project.lanes_file.write_text(LANES + "max_running_per_key = 1\n", encoding="utf-8")
    with project.app() as app:
        store = status.store_of(broker.redis, app.lanes.get("quick"))
        for number in range(12):
            name = "[bold]\n" if number == 0 else f"customer {number}"
            for _ in range(20 - number):
                app.send_task("echo", ("x",), lane="quick", key=name)
    # A worker takes one of each of the two keys whose turn is first.
    store.run("exchange", EXCHANGE_KEYS, (2, 60, "owner", 0))
    told = project.run("status", "quick", "--keys")
    assert (told.returncode, told.stderr) == (0, "")
    shown = rows(told.stdout, "key waiting")
    assert shown[:3] == [
        ["[bold]\\n", "19", "1", "max_running_per_key"],
        ["customer", "2", "18", "0", "-"],
        ["customer", "1", "18", "1", "max_running_per_key"],
    ]
    assert len(shown) == 11
    assert told.stdout.splitlines()[-1] == "10 of 12 keys, those of which most wait"
    [lane] = json.loads(project.run("status", "quick", "--keys", "--json").stdout)
    held = "max_running_per_key"
    assert lane["longest_keys"][0] == {
        "key": "[bold]\n",
        "waiting": 19,
        "running": 1,
        "held_by": held,
    }
    assert (lane["waiting"], lane["keys"], lane["keys_held"]) == (172, 12, 2)
    [slow, quick] = json.loads(project.run("status", "--json").stdout)
    assert (slow["keys"], quick["keys"]) == (0, 12)
    assert "longest_keys" not in quick


def test_a_key_that_waits_for_its_rate_is_said_to_be_held_by_it(
    project: Project, broker: Any
) -> None:
    project.lanes_file.write_text(LANES + 'rate_per_key = "1/h"\n', encoding="utf-8")
    with project.app() as app:
        store = status.store_of(broker.redis, app.lanes.get("quick"))
        for _ in range(2):
            app.send_task("echo", ("x",), lane="quick", key="a")
    store.run("exchange", EXCHANGE_KEYS, (2, 60, "owner", 0))
    told = project.run("status", "quick", "--keys")
    assert rows(told.stdout, "key waiting") == [["a", "1", "1", "rate_per_key"]]


def test_that_no_key_has_messages_is_a_line(project: Project) -> None:
    told = project.run("status", "quick", "--keys")
    assert told.stdout.splitlines()[-1] == "quick: no key has messages waiting"
    [lane] = json.loads(project.run("status", "quick", "--keys", "--json").stdout)
    assert lane["longest_keys"] == []


def test_keys_are_those_of_one_lane(project: Project) -> None:
    told = project.run("status", "--keys")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "--keys shows those of one lane; name it: status LANE --keys\n"


def test_an_unknown_lane_is_one_line_and_exit_2(project: Project) -> None:
    told = project.run("status", "quikc")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == (
        'no lane is called "quikc"; did you mean "quick"? (lanes: slow, quick)\n'
    )


def have_no_worker(broker: Any, _: Any) -> None:
    broker.redis.lpush("slow_tasks", "of somebody else")


def spend_the_budget(_: Any, count: Any) -> None:
    count(of("echo", 99, 100))


def fill(broker: Any, _: Any) -> None:
    broker.redis.hset("lanes:quick:dead:totals", "never", 1)


WRONG = {
    "no worker": (have_no_worker, "slow: no worker, and 1 waiting\n"),
    "the budget": (
        spend_the_budget,
        "quick: more tasks were late in 30 days than slo_target, 0.99, allows\n",
    ),
    "dead letters": (
        fill,
        (
            "quick: its dead letters are full of messages that never ran, which are not dropped; "
            "others like them stay delayed until `dead retry` or `dead purge` makes room\n"
        ),
    ),
}


@pytest.mark.parametrize(("happen", "line"), WRONG.values(), ids=WRONG)
def test_for_scripts_it_says_what_is_wrong_and_exits_1(
    project: Project, broker: Any, count: Any, happen: Callable[[Any, Any], None], line: str
) -> None:
    told = project.run("status", "--fail")
    assert (told.returncode, told.stderr) == (0, "")
    happen(broker, count)
    for form in ([], ["--json"]):
        told = project.run("status", "--fail", *form)
        assert (told.returncode, told.stderr) == (1, line)
    assert project.run("status").returncode == 0


def test_what_waits_for_too_long_is_wrong_unless_the_lane_is_paused(
    project: Project, broker: Any
) -> None:
    project.app().send_task("echo", ("x",))
    told = project.run("status", "--fail", "--json")
    assert told.returncode == 1
    late, idle = told.stderr.splitlines()
    assert late.startswith("quick: the oldest of 1 waiting has waited for ")
    assert late.endswith(" s, and latency_slo is 0.05 s")
    assert idle == "quick: no worker, and 1 waiting"
    assert project.run("pause", "quick").returncode == 0
    told = project.run("status", "--fail")
    assert (told.returncode, told.stderr) == (0, "")
    assert broker.redis.llen("quick_tasks") == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "--watch needs a terminal; without one, run status again, or ask metrics\n"),
        (["--json"], "--watch is for people; leave out --json and --fail, or --watch\n"),
        (["--fail"], "--watch is for people; leave out --json and --fail, or --watch\n"),
    ],
)
def test_it_watches_on_a_terminal_alone(project: Project, options: list[str], line: str) -> None:
    told = project.run("status", "--watch", *options)
    assert (told.returncode, told.stdout, told.stderr) == (2, "", line)


def test_on_a_terminal_it_watches_until_ctrl_c(project: Project, count: Any) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-m", PACKAGE, "status", "--watch"],
        cwd=str(project.folder),
        env=project.environment,
        encoding="utf-8",
        dimensions=(24, WIDTH),
        timeout=PATIENCE,
    )
    try:
        child.expect("starts in time")
        child.expect("quick")
        count(of("echo", 99, 100))
        child.expect("budget")  # without being started anew
        child.sendintr()
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
    assert child.exitstatus == 0
    assert "Traceback" not in child.before
