"""What was revoked never starts, whichever workers were up when it was, and are later.

Seen before, and on stock Celery: a revocation is in the memory of the workers that are up, and is
forgotten when they restart; without any, nobody knows of it.
"""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from conftest import MakeFleet
from harness import PATIENCE, wait_until
from support import PYTHON, Fleet

from acme_tasks.lanes import remote, worker
from acme_tasks.lanes.errors import UsageError

pytestmark = pytest.mark.ours_only("a plain Celery app has no lane to send to")


def command_line(fleet: Fleet, *arguments: str) -> None:
    """`celery control`; that no worker answers, in its one second, is no fault of it."""
    ended = subprocess.run(
        [PYTHON, "-m", "celery", "-A", worker.PACKAGE, "control", *arguments],
        cwd=fleet.folder,
        env=fleet.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    told = ended.stdout + ended.stderr
    assert ended.returncode == 0 or "No nodes replied" in told, told


def send_waiting(app: Celery, name: str, **options: Any) -> AsyncResult[Any]:
    return app.send_task("tick", (name,), **options)


def run_all(fleet: Fleet, result: AsyncResult[Any]) -> None:
    """See everything run, or set aside, that waits or is delayed."""
    fleet.run_good("the revocation")
    fleet.await_idle()
    wait_until(lambda: not fleet.redis.zcard(fleet.keys("delayed")), "nothing to be delayed")
    fleet.await_idle()
    assert fleet.ledger.started["a"] == 0
    assert result.state == "REVOKED"
    assert fleet.dead() == []


@pytest.mark.parametrize("options", [{}, {"countdown": 5}], ids=["waits", "delayed"])
@pytest.mark.parametrize("are_up", [True, False], ids=["workers-up", "no-worker-up"])
def test_what_was_revoked_does_not_run_after_a_restart_of_all_workers(
    make_fleet: MakeFleet, options: dict[str, Any], are_up: bool
) -> None:
    fleet = make_fleet(concurrency=1, drain="requeue", drain_timeout="100ms")
    with fleet.app() as app:
        workers = [fleet.start(instance=number) for number in (1, 2)] if are_up else []
        held = ["held-1", "held-2"]
        for name in held:
            app.send_task("hold", (name,))
        if are_up:
            wait_until(lambda: fleet.ledger.started.total() == 2, "all slots to be taken")
        result = send_waiting(app, "a", **options)
        result.revoke()
        if are_up:
            wait_until(lambda: result.state == "REVOKED", "the workers to hear of it")
        for process in workers:
            assert process.end() == 0
        for name in held:
            fleet.mend(name)
        for number in (1, 2):
            fleet.start(instance=number)
        run_all(fleet, result)


def revoke_by_list(app: Celery, _: Fleet) -> None:
    app.control.revoke_by_stamped_headers({"customer": ["c7", "c1"]})


def revoke_by_value(app: Celery, _: Fleet) -> None:
    app.control.revoke_by_stamped_headers({"customer": "c1"})


def revoke_by_command(_: Celery, fleet: Fleet) -> None:
    command_line(fleet, "revoke_by_stamped_headers", "customer=c1", "shop=s1")


@pytest.mark.parametrize("stamp", ["c1", ["c0", "c1"]], ids=["one-stamp", "a-list"])
@pytest.mark.parametrize("revoke", [revoke_by_list, revoke_by_value, revoke_by_command])
def test_what_was_revoked_by_its_stamp_does_not_run_after_a_restart(
    make_fleet: MakeFleet, revoke: Callable[[Celery, Fleet], None], stamp: object
) -> None:
    """And others, with another stamp, or the same in another header, do."""
    fleet = make_fleet(concurrency=1)
    with fleet.app() as app:
        stamps = {"a": {"customer": stamp}, "b": {"customer": "c2"}, "c": {"payer": "c1"}}
        sent = {
            name: app.signature("tick", (name,)).stamp(**own).apply_async()
            for name, own in stamps.items()
        }
        revoke(app, fleet)
        fleet.start()
        run_all(fleet, sent["a"])
        assert {sent[name].get(PATIENCE) for name in "bc"} == {"b", "c"}


# By key


def revoke_key_in_code(app: Any, _: Fleet) -> None:
    assert app.control.revoke_by_key("k 1", lane="work") == 3


def revoke_key_by_command(_: Any, fleet: Fleet) -> None:
    command = fleet.run("revoke", "work", "--key", "k 1", "--yes")
    assert (command.returncode, command.stdout) == (0, "work: revoked 3 tasks\n"), command.stderr


@pytest.mark.parametrize("revoke", [revoke_key_in_code, revoke_key_by_command])
def test_what_a_key_has_is_revoked_and_what_it_is_sent_later_runs(
    make_fleet: MakeFleet, revoke: Callable[[Any, Fleet], None]
) -> None:
    fleet = make_fleet(concurrency=1)
    with fleet.app() as app:
        fleet.start()
        app.send_task("hold", ("held",), key="k 1")
        wait_until(lambda: fleet.ledger.started["held"], "the slot to be taken")
        waits = app.send_task("tick", ("a",), key="k 1")
        delayed = app.send_task("tick", ("later",), key="k 1", countdown=5)
        others = {
            "other": app.send_task("tick", ("other",), key="k"),
            "none": app.send_task("tick", ("none",)),
        }
        revoke(app, fleet)
        others["new"] = app.send_task("tick", ("new",), key="k 1")
        fleet.mend("held")
        assert {name: each.get(PATIENCE) for name, each in others.items()} == {
            name: name for name in others
        }
        run_all(fleet, waits)
        assert delayed.state == "REVOKED"
        assert fleet.ledger.started["later"] == 0
        assert fleet.ledger.ended["held"] == 1


def test_what_runs_of_a_key_is_ended_when_that_is_said(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1)
    with fleet.app() as app:
        fleet.start()
        held = app.send_task("hold", ("held",), key="k")
        wait_until(lambda: fleet.ledger.started["held"], "it to run")
        told = fleet.run("revoke", "work", "--key", "k", "--terminate", "--yes")
        assert (told.returncode, told.stdout) == (0, "work: revoked 1 task\n"), told.stderr
        wait_until(lambda: held.state == "REVOKED", "it to be ended")
        fleet.await_idle()
        assert fleet.ledger.ended["held"] == 0


def test_the_command_asks_first_and_revokes_ids_as_well(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=1)
    with fleet.app() as app:
        result = app.send_task("tick", ("a",), key="k")
        app.send_task("tick", ("b",), key="k", countdown=3600)
        no = fleet.run("revoke", "work", "--key", "k")  # nobody answers
        assert no.returncode == 1
        assert no.stdout.startswith(
            "work: revoke 2 tasks of the key k (1 waiting, 1 delayed, 0 running)? [y/N]: "
        )
        assert fleet.redis.keys("lanes:revo*") == []
        told = fleet.run("revoke", "work", result.id, "--yes")
        assert (told.returncode, told.stdout) == (0, "work: revoked 1 task\n"), told.stderr
        fleet.start()
        run_all_but_delayed(fleet, result)


def run_all_but_delayed(fleet: Fleet, result: AsyncResult[Any]) -> None:
    fleet.run_good("the revocation")
    wait_until(lambda: result.state == "REVOKED", "it to be passed over")
    assert fleet.ledger.started["a"] == 0


@pytest.mark.parametrize("arguments", [[], ["an-id", "--key", "k"]], ids=["neither", "both"])
def test_which_tasks_are_meant_has_to_be_said(make_fleet: MakeFleet, arguments: list[str]) -> None:
    told = make_fleet().run("revoke", "work", *arguments, "--yes")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == "revoke which? name ids, or --key; not both\n"


def test_a_key_with_more_tasks_than_are_remembered_is_not_revoked_in_part(
    make_fleet: MakeFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MOST", 2)
    fleet = make_fleet()
    with fleet.app() as sender:
        app: Any = sender
        for name in "abc":
            app.send_task("tick", (name,), key="k")
        with pytest.raises(UsageError) as refused:
            app.control.revoke_by_key("k")
        assert str(refused.value) == (
            "the key 'k' has 3 tasks, and no more than 2 revocations are remembered: delete what "
            "waits with the command `purge LANE --key KEY`, and revoke the rest"
        )
        assert fleet.redis.keys("lanes:revo*") == []


# Locks


@pytest.mark.parametrize("how", ["up", "none", "terminate"])
def test_a_task_that_is_revoked_gives_its_lock_for_a_time_back_at_once(
    make_fleet: MakeFleet, how: str
) -> None:
    """Seen before, in this test: the lock stayed for its hour, as after a task that ended well."""
    fleet = make_fleet(concurrency=1)
    once: dict[str, Any] = {"unique": "nightly", "unique_for": "1h"}
    lock = "lanes:work:once:*"
    with fleet.app() as app:
        if how != "none":
            fleet.start()
        if how == "up":
            app.send_task("hold", ("held",))
            wait_until(lambda: fleet.ledger.started["held"], "the slot to be taken")
        name = "hold" if how == "terminate" else "tick"
        result = app.send_task(name, ("a",), **once)
        assert app.send_task(name, ("a",), **once).id == result.id
        if how == "terminate":
            wait_until(lambda: fleet.ledger.started["a"], "it to run")
        result.revoke(terminate=how == "terminate")
        if how == "none":
            fleet.start()
        elif how == "up":
            fleet.mend("held")
        wait_until(lambda: result.state == "REVOKED", "it to be passed over")
        fleet.await_idle()
        wait_until(lambda: not fleet.redis.keys(lock), "its lock to be gone", 5)
        good = app.send_task("tick", ("b",), **once)
        assert good.get(PATIENCE) == "b"
        fleet.await_idle()
        assert len(fleet.redis.keys(lock)) == 1, "a task that ended well keeps it"


@pytest.mark.parametrize(
    "command", [["revoke"], ["terminate", "SIGKILL"]], ids=lambda each: each[0]
)
def test_a_revocation_from_the_command_line_is_kept_likewise(
    make_fleet: MakeFleet, command: list[str]
) -> None:
    fleet = make_fleet(concurrency=1)
    with fleet.app() as app:
        result = send_waiting(app, "a")
        command_line(fleet, *command, result.id)
        fleet.start()
        run_all(fleet, result)


def test_what_a_monitor_revokes_that_knows_celery_alone_is_kept_by_the_workers(
    make_fleet: MakeFleet,
) -> None:
    """Flower with `--broker`, for one: it is not bound to the lanes, and tells the workers."""
    fleet = make_fleet(concurrency=1, drain="requeue", drain_timeout="100ms")
    process = fleet.start()
    with fleet.app() as app, Celery(broker=fleet.server.url, set_as_current=False) as monitor:
        app.send_task("hold", ("held",))
        wait_until(lambda: fleet.ledger.started["held"], "the slot to be taken")
        result = send_waiting(app, "a", countdown=5)
        stamped = app.signature("tick", ("b",)).stamp(customer="c1").apply_async(countdown=5)
        monitor.control.revoke(result.id, reply=True, timeout=PATIENCE, limit=1)
        monitor.control.revoke_by_stamped_headers({"customer": ["c1"]}, reply=True)
        assert process.end() == 0
        fleet.mend("held")
        fleet.start()
        run_all(fleet, result)
        assert stamped.state == "REVOKED"
