"""What Prometheus is told, by a real process of the command, about real workers."""

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner
from harness import PATIENCE, Process, Project, free_port, running_broker, wait_until
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from acme_tasks.lanes import cli, deploy
from acme_tasks.lanes.counting import EDGES, Load
from acme_tasks.lanes.metrics import LanesCollector, once
from acme_tasks.lanes.redis.counters import Counters
from acme_tasks.lanes.redis.store import EXCHANGE_KEYS
from acme_tasks.lanes.routing import SENT_AT
from acme_tasks.lanes.status import store_of
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
max_running_per_key = 1
[lanes.quick]
queue = "swift"
latency_slo = "3s"
slo_target = 0.95
max_retries = 0
"""
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
#: By name, as samples have it: what tells its series apart.
SERIES = {
    "lanes_broker_up": set(),
    "lanes_tasks_total": {"lane", "task", "outcome"},
    "lanes_slo_good_total": {"lane", "task"},
    "lanes_slo_total": {"lane", "task"},
    "lanes_redeliveries_total": {"lane", "task"},
    **{
        f"lanes_{what}_seconds_{part}": {"lane", "task", *(["le"] if part == "bucket" else [])}
        for what in ("queue_wait", "run")
        for part in ("bucket", "count", "sum")
    },
    **{
        f"lanes_{what}": {"lane"}
        for what in (
            *("oldest_wait_seconds", "waiting", "running", "delayed", "dead", "paused", "workers"),
            *("slots", "wanted_workers", "clock_difference_seconds", "latency_slo_seconds"),
            *("slo_target", "keys_waiting", "keys_held"),
        )
    },
    **{
        f"celery_{what}": {"queue_name"}
        for what in ("queue_length", "active_worker_count", "active_process_count")
    },
    "celery_worker_up": {"hostname"},
}
#: What promtool has against names that are celery-exporter's.
LINT = {
    f'celery_active_{what}_count non-histogram and non-summary metrics should not have "_count" '
    "suffix"
    for what in ("worker", "process")
}

Samples = dict[str, dict[tuple[str, ...], float]]  # by name, by the labels' values


@pytest.fixture(scope="module")
def project(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """With a worker of quick, which has run two tasks well and failed one."""
    project = Project(tmp_path_factory.mktemp("metrics"), LANES, server.url)
    app = project.app()
    seen = project.folder / "seen"
    with project.workers("quick"):
        for _ in range(2):
            app.send_task("hold", (0.1, str(seen)))
        app.send_task("fail", (str(seen),))
        counters = Counters(store_of(server.redis, app.lanes.get("quick")))
        wait_until(
            lambda: sum(each.outcomes.total() for each in counters.total().values()) == 3,
            "three tasks to be counted",
        )
        app.send_task("echo", ("later",), lane="slow", countdown=3600)
        app.send_task("echo", ("now",), lane="slow")
        for key in ("42", "42", "43", "43"):
            app.send_task("echo", ("now",), lane="slow", key=key)
        store = store_of(server.redis, app.lanes.get("slow"))
        store.run("exchange", EXCHANGE_KEYS, (1, 3600, "owner", 0))
        server.redis.set("lanes:slow:paused", "1")
        yield project
    app.close()


@pytest.fixture
def app(bound: Callable[[str], Celery], broker: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two lanes without workers, on a broker of the test's own."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    return bound(LANES)


@contextmanager
def exporter(project: Project, *arguments: str) -> Iterator[tuple[Process, str]]:
    """The command, answering at the URL that comes with it; it has ended after the block."""
    port = free_port()
    command = [sys.executable, "-m", PACKAGE, "metrics", "--port", str(port), *arguments]
    process = Process(f"metrics-{port}", command, project.folder, project.environment)
    try:
        process.await_log("/metrics")
        yield process, f"http://127.0.0.1:{port}/metrics"
    finally:
        process.end()


def scrape(url: str, accept: str = OPEN_METRICS) -> str:
    asked = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 - our own
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:  # noqa: S310
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith(accept.partition(";")[0])
        return str(answer.read().decode())


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            assert SERIES[sample.name] == sample.labels.keys()
            assert all(sample.labels.values())
            series = tuple(value for _, value in sorted(sample.labels.items()))
            assert series not in found.setdefault(sample.name, {})
            found[sample.name][series] = sample.value
    return found


def test_it_tells_all_that_is_promised_and_what_is_true(project: Project) -> None:
    with exporter(project) as (_, url):
        told = samples(scrape(url))
    assert set(told) == set(SERIES) - {"lanes_wanted_workers"}  # of which too little is known
    tasks = {key: count for key, count in told["lanes_tasks_total"].items() if count}
    assert tasks == {("quick", "succeeded", "hold"): 2, ("quick", "failed", "fail"): 1}
    assert told["lanes_slo_total"] == {("quick", "hold"): 2, ("quick", "fail"): 1}
    assert told["lanes_redeliveries_total"] == {("quick", "hold"): 0, ("quick", "fail"): 0}
    assert told["lanes_run_seconds_count"] == {("quick", "hold"): 2, ("quick", "fail"): 1}
    assert told["lanes_run_seconds_bucket"]["quick", "0.1", "hold"] == 0
    assert 0.2 <= told["lanes_run_seconds_sum"]["quick", "hold"] < 10
    gauges = {
        "waiting": (4, 0),
        "keys_waiting": (2, 0),
        "keys_held": (1, 0),
        "delayed": (1, 0),
        "dead": (0, 1),
        "paused": (1, 0),
        "running": (0, 0),
        "workers": (0, 1),
        "slots": (0, 4),
        "latency_slo_seconds": (600, 3),
        "slo_target": (0.99, 0.95),
    }
    for name, (slow, quick) in gauges.items():
        assert told[f"lanes_{name}"] == {("slow",): slow, ("quick",): quick}, name
    oldest = told["lanes_oldest_wait_seconds"]
    assert oldest["quick",] == 0 < oldest["slow",] < PATIENCE
    assert told["lanes_clock_difference_seconds"].keys() == {("quick",)}  # of workers alone
    assert told["celery_queue_length"] == {("slow_tasks",): 4, ("swift",): 0}
    assert told["celery_active_process_count"] == {("slow_tasks",): 0, ("swift",): 4}
    [(node,)] = told["celery_worker_up"]
    assert node.startswith("quick-1@")


def test_two_of_them_say_the_same_and_so_does_once(project: Project) -> None:
    def constant(text: str) -> list[str]:
        return [line for line in text.splitlines() if "oldest" not in line]

    with exporter(project) as (_, url), exporter(project) as (_, other):
        first, second = constant(scrape(url)), constant(scrape(other))
    told = project.run("metrics", "--once")
    assert (told.returncode, told.stderr) == (0, "")
    assert first == second == constant(told.stdout)
    assert first[-1] == "# EOF"


def test_prometheus_own_check_finds_fault_with_celerys_names_alone(project: Project) -> None:
    if not (promtool := shutil.which("promtool")):
        pytest.skip("no promtool is installed")
    with exporter(project) as (_, url):
        text = scrape(url, "text/plain; version=0.0.4")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert set(checked.stderr.splitlines()) == LINT
    assert checked.returncode == 3  # lint


def test_a_broker_that_is_away_is_told_of_and_comes_back(tmp_path: Path) -> None:
    port = free_port()
    project = Project(tmp_path, LANES, f"redis://:secret@127.0.0.1:{port}/0")
    project.environment["BROKER_URL"] = f"redis://127.0.0.1:{port}/0"
    with exporter(project) as (process, url):
        for _ in range(3):
            assert samples(scrape(url)) == {"lanes_broker_up": {(): 0}}
        with running_broker(port):
            told = samples(scrape(url))
            assert told["lanes_broker_up"] == {(): 1}
            assert told["lanes_waiting"] == {("slow",): 0, ("quick",): 0}
        assert samples(scrape(url)) == {"lanes_broker_up": {(): 0}}
        assert process.end() == 0
    _, first, back, again = process.log.splitlines()
    assert first.startswith(f"BROKER_URL (redis://127.0.0.1:{port}/0): ")
    assert back == "the broker answers again"
    assert again.startswith("BROKER_URL")


def test_once_without_a_broker_is_one_line_without_secrets_and_exit_1(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    told = Project(tmp_path, LANES, url).run("metrics", "--once")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith("BROKER_URL")
    assert len(told.stderr.splitlines()) == 1
    assert "secret" not in told.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_well_when_told_to(project: Project, number: signal.Signals) -> None:
    with exporter(project) as (process, _):
        process.process.send_signal(number)
        assert process.ended() == 0
    assert len(process.log.splitlines()) == 1


def test_it_says_what_it_does_as_json_where_that_is_asked_for(project: Project) -> None:
    environment, project.environment = project.environment, {**project.environment}
    project.environment |= {"LOG_FORMAT": "json", "METRICS_HOST": "localhost"}
    try:
        with exporter(project) as (process, url):
            assert samples(scrape(url))
    finally:
        project.environment = environment
    [line] = process.log.splitlines()
    address = url.replace("127.0.0.1", "localhost")
    assert json.loads(line)["message"] == f"metrics of 2 lanes at {address}"


def test_a_port_that_is_taken_is_one_line_and_exit_2(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = project.run("metrics", "--port", str(port))
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == (
        f"--port: {port} of 127.0.0.1: Address already in use (expected a free port; --port or "
        "METRICS_PORT says another)\n"
    )


def test_a_variable_that_is_wrong_is_named(project: Project) -> None:
    environment = project.environment
    project.environment = environment | {"METRICS_PORT": "abc"}
    try:
        told = project.run("metrics", "--once")
    finally:
        project.environment = environment
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--port' (env var: 'METRICS_PORT'): 'abc' is not a valid integer "
        "range."
    )


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("nowhere.invalid", "Name or service not known"),
        ("192.0.2.1", "Cannot assign requested address"),
    ],
)
def test_a_host_that_is_not_this_one_is_one_line_and_exit_2(
    project: Project, host: str, why: str
) -> None:
    told = project.run("metrics", "--host", host)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"--host: {host}: ")
    assert told.stderr.endswith(
        "(expected an address of this host, such as 127.0.0.1, or 0.0.0.0 for all of them)\n"
    )
    assert why in told.stderr or "Temporary failure in name resolution" in told.stderr


def test_without_its_extra_it_says_how_to_get_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)  # as if it were not there
    project = deploy.Project(slug="acme", package=PACKAGE, process_managers=("systemd",))
    told = CliRunner().invoke(cli._main, ["metrics"], prog_name="acme", obj=project)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == (
        "metrics needs prometheus-client, which is not installed: pip install 'acme[metrics]', or "
        "-e '.[metrics]' in its folder\n"
    )


# What a scrape makes of what is in Redis.


def tell(app: Any, lane: str, additions: list[Any]) -> None:
    store = store_of(app.server.client, app.lanes.get(lane))
    load = Load(node="one@host", slots=4, running=1, clock=-7.5)
    Counters(store).add(additions, now=store.now(), owner="one@host/1/x", batch=1, load=load)


def test_every_bucket_is_there_from_the_first_count_on(app: Any) -> None:
    """Else a rate would miss what made it appear, and a quantile see holes."""
    tell(app, "quick", [("wait<=3.0", "echo", 2), ("wait", "echo", 5.0), ("run<=0.1", "echo", 1)])
    told = samples(once(app))
    waits = {float(le): n for (_, le, _), n in told["lanes_queue_wait_seconds_bucket"].items()}
    assert waits == {edge: 2 * (edge >= 3) for edge in (*EDGES, 3.0, math.inf)}
    runs = {float(le): n for (_, le, _), n in told["lanes_run_seconds_bucket"].items()}
    assert runs == {edge: int(edge >= 0.1) for edge in (*EDGES, math.inf)}
    assert told["lanes_queue_wait_seconds_sum"] == {("quick", "echo"): 5}


def test_what_may_become_of_a_task_is_there_as_0_before_it_does(app: Any) -> None:
    """Of a series that begins at 1, Prometheus sees no increase."""
    tell(app, "quick", [("outcome=succeeded", "echo", 1)])
    outcomes = {
        outcome: n for (_, outcome, _), n in samples(once(app))["lanes_tasks_total"].items()
    }
    assert outcomes == {"succeeded": 1, "retried": 0, "failed": 0, "expired": 0, "poison": 0}


@pytest.mark.parametrize("name", ['a "quoted" one', "back\\slash", "größe", "{{ x }}", "a b"])
def test_a_task_may_be_called_anything(app: Any, name: str) -> None:
    tell(app, "quick", [("good", name, 3), ("total", name, 4)])
    told = samples(once(app))
    assert told["lanes_slo_good_total"] == {("quick", name): 3}
    assert told["lanes_slo_total"] == {("quick", name): 4}


def test_how_far_a_clock_is_off_has_no_sign(app: Any, broker: Any) -> None:
    broker.redis.hset("lanes:quick:workers", "one@host/1/x", f"{time.time()} here")
    tell(app, "quick", [])
    told = samples(once(app))
    assert told["lanes_clock_difference_seconds"] == {("quick",): 7.5}
    assert (told["lanes_workers"]["quick",], told["lanes_running"]["quick",]) == (1, 1)


def test_a_wait_that_nobody_knows_is_left_out(app: Any, broker: Any) -> None:
    broker.redis.lpush("swift", '{"headers": {}}')
    told = samples(once(app))
    assert told["lanes_waiting"] == {("slow",): 0, ("quick",): 1}
    assert told["lanes_oldest_wait_seconds"] == {("slow",): 0}


def test_of_many_lanes_fewer_messages_are_looked_at_in_each(
    bound: Callable[[str], Celery], broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"lane{number}" for number in range(50)]
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound('default_lane = "lane0"\n' + "".join(f"[lanes.{name}]\n" for name in names))
    message = json.dumps({"headers": {SENT_AT: time.time() - 100}})
    for name in names:
        broker.redis.rpush(f"{name}_tasks", *[message] * 2_000)
    told = samples(once(app))
    assert set(told["lanes_waiting"].values()) == {2_000}
    assert all(99 < age < PATIENCE + 100 for age in told["lanes_oldest_wait_seconds"].values())
    looked = broker.redis.info("commandstats")["cmdstat_lindex"]["calls"]
    assert looked <= 2 * 2_000


def test_a_scrape_takes_the_same_few_round_trips_however_many_lanes_there_are(
    bound: Callable[[str], Celery], broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", broker.url)

    def trips(lanes: int) -> int:
        app: Any = bound('default_lane = "a0"\n' + "".join(f"[lanes.a{n}]\n" for n in range(lanes)))
        collector = LanesCollector(app)
        collector.look()  # connects, and loads the script
        sent = []
        connection = app.server.client.connection_pool.get_connection()
        app.server.client.connection_pool.release(connection)
        send = connection.send_packed_command
        monkeypatch.setattr(
            connection, "send_packed_command", lambda *args, **how: sent.append(send(*args, **how))
        )
        collector.look()
        return len(sent)

    assert trips(40) == trips(1) < 8


def test_how_many_workers_a_lane_wants_is_told_once_enough_is_known(app: Any) -> None:
    tell(app, "slow", [("run<=50.0", "echo", 10), ("run", "echo", 400.0)])
    store = store_of(app.server.client, app.lanes.get("quick"))
    load = Load(node="one@host", slots=4, running=1, clock=0.0)
    runs = [("run<=10.0", "echo", 900), ("run", "echo", 9e3), ("run^2", "echo", 9e4)]
    told = [*runs, ("wait<=1.0", "echo", 900)]
    for batch, ago in enumerate((840, 60), 1):  # one a second or two, of 10 s each, by 4 at once
        now = store.now() - ago
        Counters(store).add(told, now=now, owner="o", batch=batch, load=load)
        minute = store.keys(f"counts:minute:{now // 60:.0f}")
        app.server.client.hset(minute, "backlog", f"0@{now:.0f}")  # as if it had been then
    wanted = samples(once(app))["lanes_wanted_workers"]
    assert wanted.keys() == {("quick",)}
    assert 4 <= wanted["quick",] <= 12


def test_entries_of_the_schedule_are_told_with_their_last_and_next_run(
    server: Any, tmp_path: Path
) -> None:
    schedule = '[schedule.often]\ntask = "echo"\nevery = "1s"\nargs = ["x"]\n'
    schedule += '[schedule.rarely]\ntask = "echo"\ncron = "0 0 29 2 *"\nargs = ["x"]\n'
    project = Project(tmp_path, LANES + schedule, server.url)

    def told() -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(project.run("metrics", "--once").stdout):
            for sample in family.samples:
                if sample.name.startswith("lanes_schedule_"):
                    what = sample.name.removeprefix("lanes_schedule_")
                    found.setdefault(what, {})[sample.labels["entry"]] = sample.value
        return found

    with project.workers("quick"):
        seen = wait_until(
            lambda: (now := told()).get("last_run_timestamp_seconds") and now, "a run to be told"
        )
    last, following = (seen[f"{each}_run_timestamp_seconds"] for each in ("last", "next"))
    assert set(last) == {"often"}
    assert set(following) == {"often", "rarely"}
    assert 0 <= following["often"] - last["often"] <= 60
    assert following["rarely"] > time.time()
    assert set(seen["late_runs_total"]) == set(seen["missed_total"]) == {"often", "rarely"}
