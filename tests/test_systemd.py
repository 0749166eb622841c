"""A baked project on a real systemd, installed by the commands of its deploy/README.md."""

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import eventually, free_port
from support import units
from systemd_container import (
    IN_URL,
    LITERAL_URL,
    PASSWORD,
    Broker,
    Container,
    adapted,
    boot,
    commands,
    load,
    start_broker,
)

# Ten rolling restarts under load take two minutes where nothing else runs.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WATCHDOG = 8  # seconds: an operator's drop-in; the units say 30
START = 15  # seconds, likewise; a busy machine imports Celery for half of it, in slow
NOISE = 20  # seconds that a busy machine with two cores may add
CHECKOUT = "/srv/acme-tasks"
UNITS = ("acme-tasks-quick@1", "acme-tasks-quick@2", "acme-tasks-slow@1")
QUICK, SECOND_QUICK, SLOW = UNITS
METRICS = "acme-tasks-metrics"
LATER = '\n[lanes.mail]\ntime_limit = "10s"\n'
# A worker of another project, acme-tasks-extra.
NEIGHBOUR = "acme-tasks-extra-quick@1"
NEIGHBOURS_UNIT = "[Service]\nExecStart=sh -c 'echo I am the neighbour; exec sleep infinity'\n"


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with boot() as container:
        yield container


@pytest.fixture(scope="module")
def project(
    template: Path,
    env: dict[str, str],
    container: Container,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    project = adapted(template, env, tmp_path_factory.mktemp("systemd"))
    shutil.copytree(project, container.path(CHECKOUT))
    return project


@pytest.fixture(scope="module")
def broker(container: Container) -> Broker:
    return start_broker(container)


@pytest.fixture(scope="module")
def installed(container: Container, project: Path, broker: Broker) -> str:
    """Installed and started as the README says; what that printed."""
    for lane in ("quick", "slow"):
        drop_in(container, lane, f"WatchdogSec={WATCHDOG}\nTimeoutStartSec={START}")
    # Where the file system's own permissions would let the workers write.
    container.run("mkdir -m 777 /srv/anybody")
    install = commands(project, "systemd", "Install")
    assert LITERAL_URL in install
    return in_checkout(container, install.replace(LITERAL_URL, broker.url))


@pytest.fixture(scope="module")
def neighbour(container: Container) -> int:
    """The process of another project's worker, whose name begins as ours do."""
    name = NEIGHBOUR.replace("@1", "@.service")
    container.path(f"/etc/systemd/system/{name}").write_text(NEIGHBOURS_UNIT)
    container.run(f"systemctl daemon-reload; systemctl start {NEIGHBOUR}")
    return main_pid(container, NEIGHBOUR)


@pytest.fixture
def lanes(container: Container, broker: Broker, installed: str) -> Iterator[Container]:
    """Every lane at work, nothing waiting; what the journal said, when the test fails."""
    del installed
    since = container.run("date '+%F %T'")
    broker.start()
    container.run("systemctl reset-failed; systemctl start acme-tasks.target")
    eventually(lambda: all(active(container, unit) for unit in UNITS), "every lane is active")
    broker.redis.flushdb()
    yield container
    print(container.run(f"journalctl --no-pager --lines 300 --since '{since}'", check=False))


def in_checkout(container: Container, script: str) -> str:
    return container.run(f"cd {CHECKOUT}\n{script}")


def drop_in(container: Container, lane: str, service: str) -> None:
    folder = container.path(f"/etc/systemd/system/acme-tasks-{lane}@.service.d")
    folder.mkdir(exist_ok=True)
    (folder / "test.conf").write_text(f"[Service]\n{service}\n")


def state(container: Container, unit: str) -> str:
    return container.show(unit, "ActiveState")


def active(container: Container, unit: str) -> bool:
    return state(container, unit) == "active"


def main_pid(container: Container, unit: str) -> int:
    """The worker's main process, by its number in the container."""
    return int(container.show(unit, "MainPID"))


def stop_command(project: Path) -> str:
    return commands(project, "systemd", "Stop and start").splitlines()[0]


def restart_loop(project: Path) -> str:
    roll_back = commands(project, "systemd", "Roll back")
    return roll_back[roll_back.index("for unit in") :]


def pids(container: Container) -> dict[str, int]:
    return {unit: main_pid(container, unit) for unit in UNITS}


def restarted(container: Container, unit: str, pid: int) -> Callable[[], bool]:
    def check() -> bool:
        return active(container, unit) and main_pid(container, unit) not in (0, pid)

    return check


def test_the_readme_installs_it_and_returns_when_every_lane_consumes(
    container: Container, broker: Broker, installed: str
) -> None:
    assert {unit: state(container, unit) for unit in UNITS} == dict.fromkeys(UNITS, "active"), (
        installed
    )
    for lane in ("quick", "slow"):
        broker.await_work(lane)


def test_the_status_is_a_line_that_a_person_reads(lanes: Container, broker: Broker) -> None:
    # Longer than two looks of the thread that says it, each of which comes 10 s after the last.
    broker.send("slow", "long", 25)
    eventually(
        lambda: lanes.show(SLOW, "StatusText") == "slow: 1 running, 0 waiting", "the slow status"
    )
    assert re.fullmatch(r"quick: (consuming|0 running, 0 waiting)", lanes.show(QUICK, "StatusText"))
    broker.await_end("long")


def test_while_the_broker_is_away_a_lane_starts_and_is_not_timed_out(
    lanes: Container, broker: Broker, project: Path
) -> None:
    lanes.run(f"systemctl stop acme-tasks.target; {stop_command(project)}")
    broker.stop()
    lanes.run("systemctl start --no-block acme-tasks.target")
    eventually(lambda: all(pids(lanes).values()), "the workers start")
    before, deadline = pids(lanes), time.monotonic() + START + 3
    while time.monotonic() < deadline:
        assert {state(lanes, unit) for unit in UNITS} == {"activating"}
        time.sleep(1)
    broker.start()
    eventually(lambda: all(active(lanes, unit) for unit in UNITS), "every lane is active")
    assert pids(lanes) == before, "none was restarted"
    broker.await_work("slow")


def test_a_killed_worker_is_restarted_and_runs_its_task_again(
    lanes: Container, broker: Broker
) -> None:
    # On kombu's own transport the message came back after the visibility timeout, an hour or more.
    broker.send("slow", "of the killed", 5)
    broker.await_start("of the killed")
    pid = main_pid(lanes, SLOW)
    lanes.run(f"kill -KILL {pid}")
    eventually(restarted(lanes, SLOW, pid), "the worker is restarted")
    broker.await_end("of the killed")
    assert broker.records("ended").count("of the killed") == 1


def ended_by_watchdog(container: Container, unit: str) -> int:
    """How often systemd has said so."""
    said = container.run(f"journalctl --no-pager --output cat --unit {unit}")
    return len(re.findall(r"Watchdog timeout \(limit", said))


def test_a_stopped_process_is_restarted_by_the_watchdog(lanes: Container, broker: Broker) -> None:
    before = ended_by_watchdog(lanes, QUICK)
    pid, begun = main_pid(lanes, QUICK), time.monotonic()
    lanes.run(f"kill -STOP {pid}")
    eventually(restarted(lanes, QUICK, pid), "the watchdog restarts it")
    took = time.monotonic() - begun
    print(f"measured: restarted after {took:.1f} s, WatchdogSec={WATCHDOG}")
    assert took <= WATCHDOG + 5 + NOISE
    assert ended_by_watchdog(lanes, QUICK) == before + 1
    broker.await_work("quick")


def test_a_stalled_event_loop_is_restarted_by_the_watchdog_though_the_pinging_thread_lives(
    lanes: Container, broker: Broker
) -> None:
    before = ended_by_watchdog(lanes, SLOW)
    pid, begun = main_pid(lanes, SLOW), time.monotonic()
    lanes.run(f"kill -USR2 {pid}")
    eventually(restarted(lanes, SLOW, pid), "the watchdog restarts it")
    took = time.monotonic() - begun
    print(f"measured: restarted after {took:.1f} s, WatchdogSec={WATCHDOG}")
    assert took <= WATCHDOG + 5 + NOISE
    assert ended_by_watchdog(lanes, SLOW) == before + 1
    broker.await_work("slow")


def test_a_broker_outage_gets_no_worker_killed_and_no_task_run_twice(
    lanes: Container, broker: Broker
) -> None:
    # Celery 5.7.0 on kombu's own transport ends a worker whose broker goes while a late-ack task is
    # in flight (AttributeError in restore_unacked_once).
    before = pids(lanes)
    restarts = {unit: lanes.show(unit, "NRestarts") for unit in UNITS}
    broker.send("slow", "in flight", 3 * WATCHDOG + 15)
    broker.await_start("in flight")
    broker.stop()
    time.sleep(3 * WATCHDOG)
    assert pids(lanes) == before
    broker.start()
    broker.await_end("in flight")
    broker.await_work("quick")
    broker.await_work("slow")
    assert pids(lanes) == before
    assert {unit: lanes.show(unit, "NRestarts") for unit in UNITS} == restarts
    assert broker.records("started").count("in flight") == 1


def test_a_stop_finishes_or_hands_back_running_tasks_as_their_lane_says(
    lanes: Container, broker: Broker, project: Path
) -> None:
    # Long enough to run when they are told to stop, and in slow for much longer than its drain.
    for lane, seconds in (("quick", 12), ("slow", 15)):
        broker.send(lane, f"{lane} short", 2)
        broker.send(lane, f"{lane} long", seconds)
    for name in ("quick long", "slow short", "slow long"):
        broker.await_start(name)
    begun = time.monotonic()
    lanes.run("systemctl stop acme-tasks-slow@1")
    took = time.monotonic() - begun
    stop, start = commands(project, "systemd", "Stop and start").splitlines()
    lanes.run(stop)
    assert sorted(broker.records("ended")) == ["quick long", "quick short", "slow short"]
    assert not broker.held("quick"), "finish"
    assert broker.redis.llen("slow_tasks") == 1, "requeue"
    print(f"measured: slow handed back within {took:.1f} s, drain_timeout is 3 s")
    assert {lanes.show(unit, "Result") for unit in UNITS} == {"success"}
    lanes.run(start)
    broker.await_end("slow long")


def test_ten_restarts_of_the_target_under_load_lose_no_task(
    lanes: Container, broker: Broker
) -> None:
    with load(broker) as tasks:
        for _ in range(10):
            lanes.run("systemctl restart acme-tasks.target")
    lost, killed, doubled = tasks.outcome()
    print(f"measured: {len(tasks.sent)} tasks, {len(doubled)} run twice")
    assert (lost, killed) == ([], [])


TLS = """\
mkdir -p /etc/acme-tasks /srv/tls
cd /srv/tls
new="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
openssl req -x509 $new -subj /CN=authority -keyout ca.key -out /etc/acme-tasks/ca.crt
openssl req $new -subj /CN=server -keyout server.key -out server.csr
echo subjectAltName=DNS:localhost >names
openssl x509 -req -days 2 -in server.csr -CA /etc/acme-tasks/ca.crt -CAkey ca.key -CAcreateserial \
  -extfile names -out server.crt
chmod 644 /etc/acme-tasks/ca.crt
cat >broker.conf <<END
port 0
tls-port {port}
save ""
requirepass {password}
tls-auth-clients no
tls-cert-file /srv/tls/server.crt
tls-key-file /srv/tls/server.key
tls-ca-cert-file /etc/acme-tasks/ca.crt
END
systemd-run --quiet --unit tls-broker redis-server /srv/tls/broker.conf
cp -p /etc/credstore/acme-tasks.BROKER_URL /srv/tls/before
(umask 077; echo '{url}' >/etc/credstore/acme-tasks.BROKER_URL)
echo 'BROKER_URL={other}' >/etc/acme-tasks/environment
systemctl restart {unit}
"""
NO_TLS = """\
mv /srv/tls/before /etc/credstore/acme-tasks.BROKER_URL
systemctl stop tls-broker
rm -r /etc/acme-tasks /srv/tls
systemctl restart {unit}
"""
#: Sends a task, and waits until it has run; both by the project's own way to its broker.
RUN_ONE = """\
import time
from acme_tasks.tasks import app, work
work.apply_async(("over TLS",), lane="quick", ignore_result=True)
while app.server.client.lrange("ended", 0, -1) != [b"over TLS"]:
    time.sleep(0.1)
print("it ran")
"""


def test_a_unit_speaks_tls_to_the_broker_of_its_credential(
    lanes: Container, broker: Broker
) -> None:
    """Its environment names another one. Seen before, without systemd: in clear, never ready."""
    port = free_port()
    url = f"rediss://:{IN_URL}@localhost:{port}/0?ssl_ca_certs=/etc/acme-tasks/ca.crt"
    values = {"port": port, "password": PASSWORD, "url": url, "other": broker.url, "unit": QUICK}
    try:
        lanes.run(TLS.format(**values))
        eventually(lambda: active(lanes, QUICK), "the worker is ready")
        python = f"/opt/acme-tasks/current/bin/python -c '{RUN_ONE}'"
        assert lanes.run(f"cd /var/lib/acme-tasks; {python}", BROKER_URL=url) == "it ran"
    finally:
        lanes.run(NO_TLS.format(unit=QUICK))
    assert broker.records("ended") == []
    broker.await_work("quick")


def test_ten_rolling_restarts_under_load_lose_and_kill_no_task(
    lanes: Container,
    broker: Broker,
    project: Path,
) -> None:
    """One of them an upgrade, one a roll back, each by the README's commands."""
    upgrade = commands(project, "systemd", "Upgrade")
    roll_back = commands(project, "systemd", "Roll back")
    loop = restart_loop(project)
    first = lanes.run("readlink /opt/acme-tasks/current")
    samples: list[list[str]] = []
    done = threading.Event()

    def sample() -> None:
        # The first again after the second: of two that are read one after the other, each could
        # be seen inactive though they were never both.
        units = f"{QUICK} {SECOND_QUICK} {QUICK}"
        while not done.wait(0.2):
            samples.append(lanes.run(f"systemctl show -p ActiveState --value {units}").split())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        with load(broker) as tasks:
            in_checkout(lanes, upgrade)
            second = lanes.run("readlink /opt/acme-tasks/current")
            assert second != first
            assert running_releases(lanes) == {second}
            in_checkout(lanes, roll_back)
            assert lanes.run("readlink /opt/acme-tasks/current") == first
            assert running_releases(lanes) == {first}
            for _ in range(8):
                in_checkout(lanes, loop)
    finally:
        done.set()
        sampler.join()
    lost, killed, doubled = tasks.outcome()
    print(f"measured: {len(tasks.sent)} tasks, {len(doubled)} run twice, {len(samples)} samples")
    assert (lost, killed) == ([], [])
    without = [states for states in samples if "active" not in states]
    assert not without, f"{len(without)} of {len(samples)} samples saw no worker of quick active"
    assert any(set(states) != {"active"} for states in samples), "the samples see restarts"


def test_what_the_readme_says_is_for_this_projects_units_alone(
    lanes: Container, project: Path, neighbour: int
) -> None:
    # With the pattern 'acme-tasks-*@*.service' the neighbour was stopped, restarted and shown.
    shown = in_checkout(lanes, commands(project, "systemd", "Look"))
    for lane in ("quick", "slow"):
        assert f'Status: "{lane}: ' in shown
        assert re.search(rf"^\S+ \S+ \S+ \S+ acme-tasks-{lane}-1\[", shown, re.MULTILINE), shown
    assert re.search(r"^ quick +0 ", shown, re.MULTILINE), "the project's own status"
    assert "neighbour" not in shown
    before = pids(lanes)
    lanes.run(restart_loop(project))
    after = pids(lanes)
    assert not before.items() & after.items(), "each of ours was restarted"
    lanes.run(stop_command(project))
    assert {state(lanes, unit) for unit in UNITS} == {"inactive"}
    assert main_pid(lanes, NEIGHBOUR) == neighbour


def test_a_release_that_does_not_come_up_costs_one_worker_and_not_all(
    lanes: Container, broker: Broker, project: Path
) -> None:
    # Without `|| break`, the loop went on to take down every worker of every lane. None is down
    # where the first unit that is restarted is the exporter's: systemd says in which order.
    good, before = lanes.run("readlink /opt/acme-tasks/current"), pids(lanes)
    broken = "set +e; ln -sfn /opt/acme-tasks/broken /opt/acme-tasks/current"  # as when pasted
    lanes.run(f"{broken}\n{restart_loop(project)}", check=False)
    during = pids(lanes)
    lanes.run(f"ln -sfn {good} /opt/acme-tasks/current\n{restart_loop(project)}")
    assert len(before.items() & during.items()) >= len(UNITS) - 1
    assert not before.items() & pids(lanes).items()
    for lane in ("quick", "slow"):
        broker.await_work(lane)


def test_a_release_that_cannot_be_installed_leaves_all_as_it_was(
    lanes: Container, project: Path
) -> None:
    """Seen before: `Roll back` went to the release before the one that ran, or to a bad one."""
    upgrade = commands(project, "systemd", "Upgrade")
    install = upgrade[: upgrade.index("install -m 644")]
    running = lanes.run("readlink /opt/acme-tasks/current")
    releases = lanes.run("ls -d /opt/acme-tasks/[0-9]*")
    said = lanes.run(f"set +e; mkdir -p /srv/empty; cd /srv/empty\n{install}echo $?")
    assert "pyproject.toml" in said, "pip misses it"
    assert said.endswith("\n1"), "what is pasted stops"
    assert lanes.run("ls -d /opt/acme-tasks/[0-9]*") == releases
    assert lanes.run("readlink /opt/acme-tasks/current") == running
    point = commands(project, "systemd", "Roll back").splitlines()[0]
    lanes.run(point)
    assert lanes.run("readlink /opt/acme-tasks/current") == running


def test_after_two_bad_releases_one_rolls_back_to_the_good_one_and_removes_the_others(
    lanes: Container, broker: Broker, project: Path
) -> None:
    """Whether one rolled back between the two or not, and a third that cannot be installed.

    Seen before: without, `previous` was the first bad one, and the good one was removed.
    """
    upgrade = commands(project, "systemd", "Upgrade")
    install = upgrade[: upgrade.index("install -m 644")]
    roll_back = commands(project, "systemd", "Roll back")
    good = lanes.run("readlink /opt/acme-tasks/current")
    for rolls_back_between in (False, True):
        bad = set()
        for _ in range(2):
            time.sleep(1)  # a release is named by its second
            in_checkout(lanes, install)
            bad.add(lanes.run("readlink /opt/acme-tasks/current"))
            broken = "set +e; rm /opt/acme-tasks/current/bin/acme-tasks"
            loop = restart_loop(project).replace("timeout 90", "timeout 3")
            lanes.run(f"{broken}\n{loop}", check=False)
            if rolls_back_between:
                lanes.run(roll_back)
        lanes.run(f"set +e; mkdir -p /srv/empty; cd /srv/empty\n{install}", check=False)
        lanes.run(roll_back)
        assert lanes.run("readlink /opt/acme-tasks/current") == good
        assert len({good, *bad}) == 3
        lanes.run(commands(project, "systemd", "Remove old releases"))
        assert lanes.run("ls -d /opt/acme-tasks/[0-9]*") == good
    for lane in ("quick", "slow"):
        broker.await_work(lane)


def test_a_restart_that_waits_for_an_absent_broker_ends_and_says_so(
    lanes: Container, broker: Broker, project: Path
) -> None:
    """Seen before: it waited, and said nothing, for as long as the outage."""
    before = pids(lanes)
    loop = restart_loop(project).replace("timeout 90", "timeout 9")
    broker.stop()
    try:
        said = lanes.run(f"set +e\n{loop}", check=False)
    finally:
        broker.start()
    assert re.search(r"Active: activating", said), said
    assert "nothing listens there" in said
    assert len(before.items() & pids(lanes).items()) == len(UNITS) - 1


def test_a_unit_whose_credential_is_missing_does_not_start(
    lanes: Container, broker: Broker
) -> None:
    """Seen before: it started in silence, with the broker at localhost:6379."""
    file = "/etc/credstore/acme-tasks.BROKER_URL"
    lanes.run(f"mv {file} /srv/credential")
    try:
        said = lanes.run(f"set +e; systemctl restart {QUICK}; systemctl status {QUICK}; true")
        assert "CREDENTIALS" in said
        assert state(lanes, QUICK) != "active"
    finally:
        lanes.run(f"mv /srv/credential {file}; systemctl restart {QUICK}")
    broker.await_work("quick")


def test_results_may_have_a_credential_of_their_own(lanes: Container, broker: Broker) -> None:
    file = "/etc/credstore/acme-tasks.RESULT_URL"
    url = f"{broker.url.rpartition('/')[0]}/3"
    lanes.path(file).write_text(url)
    ask = "from acme_tasks.tasks import work; print(work.apply_async(('r',), lane='slow').get(120))"
    python = f'/opt/acme-tasks/current/bin/python -c "{ask}"'
    try:
        lanes.run(f"systemctl restart {SLOW}")
        said = lanes.run(f"cd /var/lib/acme-tasks; {python}", BROKER_URL=broker.url, RESULT_URL=url)
        assert said == "None"
    finally:
        lanes.run(f"rm {file}; systemctl restart {SLOW}")


def running_releases(container: Container) -> set[str]:
    """The folders below /opt/acme-tasks that the workers' Pythons run from."""
    commands = container.run("ps -o args= -p $(pgrep -d, -u acme-tasks -f celery)").splitlines()
    return {command.partition("/bin/")[0] for command in commands}


def test_the_sandbox_is_on(lanes: Container, broker: Broker) -> None:
    broker.app.send_task("acme_tasks.tasks.attempt", queue="slow_tasks")
    eventually(lambda: broker.redis.exists("attempted"), "the attempts are over")
    assert broker.redis.hgetall("attempts") == {
        "write to the state directory": "done",
        "write to /tmp": "done",
        "write elsewhere": "EROFS",
        "read /home": "EACCES",
        "open a packet socket": "EAFNOSUPPORT",
        "open a raw socket": "EPERM",
        "open a netlink socket": "EAFNOSUPPORT",
        "make a namespace": "EPERM",
        "mount": "EPERM",
        "choose its processors": "EPERM",
        "map memory to write and execute": "EPERM",
        "make a file setuid": "EPERM",
    }
    assert lanes.path("/var/lib/acme-tasks/mine").read_text() == "x"


def test_the_readmes_drop_ins_and_environment_file_do_what_it_says(
    lanes: Container, broker: Broker, project: Path
) -> None:
    for heading in ("Wait longer after each failure", "What the sandbox refuses"):
        lanes.run(commands(project, "systemd", heading).replace("LANE", "slow"))
    lanes.run("mkdir /etc/acme-tasks; echo KIND=blue > /etc/acme-tasks/environment")
    lanes.run(f"systemctl restart {SLOW}")
    assert "\0KIND=blue\0" in lanes.path(f"/proc/{main_pid(lanes, SLOW)}/environ").read_text()
    broker.app.send_task("acme_tasks.tasks.attempt", queue="slow_tasks")
    eventually(lambda: broker.redis.exists("attempted"), "the attempts are over")
    assert broker.redis.hget("attempts", "map memory to write and execute") == "done"
    assert broker.redis.hget("attempts", "mount") == "EPERM"
    version = int(re.findall(r"\d+", lanes.run("systemctl --version"))[0])
    wanted = ("5", "1min") if version >= 254 else ("", "")  # there, as the README says
    assert (lanes.show(SLOW, "RestartSteps"), lanes.show(SLOW, "RestartMaxDelayUSec")) == wanted
    folder = "/etc/systemd/system/acme-tasks-slow@.service.d"
    lanes.run(
        f"rm -r {folder}/jit.conf {folder}/backoff.conf /etc/acme-tasks; systemctl daemon-reload"
    )
    lanes.run(f"systemctl restart {SLOW}")


@pytest.mark.parametrize(("unit", "nice"), [(QUICK, 0), (SLOW, 10)])
def test_every_process_of_a_lane_is_confined_and_has_its_niceness(
    lanes: Container, unit: str, nice: int
) -> None:
    group = lanes.show(unit, "ControlGroup")
    processes = lanes.run(f"systemd-cgls --no-pager --unit {unit} | grep -o '[0-9]* /opt'")
    numbers = re.findall(r"\d+", processes)
    assert len(numbers) >= 3, group
    for number in numbers:
        status = lanes.run(f"cat /proc/{number}/status")
        assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)
        assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\s*0+$", status, re.MULTILINE)
        assert lanes.run(f"ps -o ni=,user:20= -p {number}").split() == [str(nice), "acme-tasks"]


@pytest.mark.parametrize("unit", [QUICK, SLOW, METRICS])
def test_the_exposure_of_the_running_unit_is_at_most_1_2(lanes: Container, unit: str) -> None:
    report = lanes.run(f"systemd-analyze security --no-pager {unit}.service")
    level = re.search(r"Overall exposure level for .*: ([0-9.]+)", report)
    assert level, report
    print(f"measured: exposure {level[1]}")
    assert float(level[1]) <= 1.2, report


def test_prometheus_is_told_of_the_lanes_and_no_worker_ends_with_what_tells_it(
    lanes: Container,
) -> None:
    reading = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
    url = "http://127.0.0.1:9464/metrics"
    ask = f"/opt/acme-tasks/current/bin/python -c '{reading}' {url}"

    def told() -> bool:
        return 'lanes_workers{lane="quick"} 2.0' in lanes.run(ask, check=False)

    eventually(told, "both workers of quick to be told of")
    before = pids(lanes)
    lanes.run(f"systemctl stop {METRICS}")
    assert pids(lanes) == before
    lanes.run("systemctl start acme-tasks.target")
    eventually(told, "it answers again")
    assert pids(lanes) == before


def test_the_broker_s_password_shows_in_no_listing(lanes: Container) -> None:
    by_root = lanes.run(
        "systemctl show 'acme-tasks-*' acme-tasks.target; systemctl cat 'acme-tasks-*';"
        "systemctl status --no-pager 'acme-tasks-*'; journalctl --no-pager;"
        "for pid in $(pgrep -u acme-tasks -f celery); do cat /proc/$pid/cmdline; done"
    )
    nobody = "setpriv --reuid nobody --regid nogroup --clear-groups sh -c"
    files = "/proc/[0-9]*/cmdline /proc/[0-9]*/environ /etc/credstore/* /run/credentials/*/*"
    by_nobody = lanes.run(f"{nobody} 'ps auxeww; cat {files} || true'")
    assert "Connected to " in by_root
    assert "--hostname=quick-1@%h" in by_root
    assert "--hostname=quick-1@%h" in by_nobody
    for secret in (PASSWORD, IN_URL):
        assert secret not in by_root
        assert secret not in by_nobody


def test_a_new_lane_starts_and_the_others_are_not_restarted(
    lanes: Container, broker: Broker, project: Path, env: dict[str, str]
) -> None:
    """Nearly last: a lane more, then a lane less."""
    declared = project / "src/acme_tasks/lanes.toml"
    three = declared.read_text() + LATER
    two, before = declared.read_text(), pids(lanes)
    declared.write_text(three)
    assert "wrote deploy/systemd/acme-tasks-mail@.service" in units(project, env)
    shutil.copytree(project, lanes.path(CHECKOUT), dirs_exist_ok=True)
    # "A release that has the new lanes.toml", without the restarts of an upgrade.
    upgrade = commands(project, "systemd", "Upgrade")
    in_checkout(lanes, upgrade[: upgrade.index("install -m 644")])
    in_checkout(lanes, commands(project, "systemd", "Add or change a lane"))
    eventually(lambda: active(lanes, "acme-tasks-mail@1"), "the new lane is active")
    broker.await_work("mail")
    assert pids(lanes) == before
    declared.write_text(two)
    assert "removed deploy/systemd/acme-tasks-mail@.service" in units(project, env)
    assert not (project / "deploy/systemd/acme-tasks-mail@.service").exists()
    shutil.rmtree(lanes.path(CHECKOUT))
    shutil.copytree(project, lanes.path(CHECKOUT))
    # Left in place, its worker was started again and again by a release without the lane.
    remove = commands(project, "systemd", "Remove a lane").replace("LANE", "mail")
    in_checkout(lanes, remove)
    assert pids(lanes) == before
    in_checkout(lanes, upgrade)
    assert not before.items() & pids(lanes).items(), "the loop met no lane that is no more"
    assert lanes.run("systemctl list-units --all --no-legend 'acme-tasks-mail@*'") == ""
    assert not lanes.path("/etc/systemd/system/acme-tasks-mail@.service").exists()


def test_what_is_uninstalled_leaves_nothing_and_its_neighbour_alone(
    lanes: Container, project: Path, neighbour: int
) -> None:
    """Last."""
    in_checkout(lanes, commands(project, "systemd", "Uninstall"))
    left = lanes.run(
        "find /etc /opt /var/lib -name 'acme-tasks*'; grep -c '^acme-tasks:' /etc/passwd || true"
    )
    assert left.splitlines() == [f"/etc/systemd/system/{NEIGHBOUR.replace('@1', '@.service')}", "0"]
    assert lanes.run("systemctl list-units --all --no-legend 'acme-tasks*'").count("\n") == 0
    assert main_pid(lanes, NEIGHBOUR) == neighbour
