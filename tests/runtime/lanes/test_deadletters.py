"""Dead letters on a real Valkey: read, tried again, deleted; and the command for it."""

import contextlib
import io
import json
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result

from acme_tasks.lanes import cli, deadletters, deploy
from acme_tasks.lanes.config import Lane
from acme_tasks.lanes.deadletters import DeadLetter
from acme_tasks.lanes.redis.store import EXCHANGE_KEYS, Keys, Store
from acme_tasks.lanes.routing import SENT_AT
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
[lanes.quick]
expires = "10m"
"""
GARBAGE = b"\xff\x00 no text"
DAY = 86400.0  # seconds


@pytest.fixture
def app(
    server: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Celery]:
    monkeypatch.setenv("BROKER_URL", server.url)
    app = bound(LANES)
    monkeypatch.setattr(cli.context, "app", lambda: app)  # the command's own is the owner's
    yield app
    app.close()


@pytest.fixture
def quick(app: Celery) -> Lane:
    return app.lanes.get("quick")


def set_aside(
    redis: Any, lane: Lane, reason: str, message: bytes | None = None, **more: Any
) -> None:
    """Make a dead letter of `message`, or of what is next in the lane's queue."""
    store = Store(redis, Keys(lane.name, lane.queue))
    if message is not None:
        redis.rpush(lane.queue, message)
    _, _, _, id_, _, _ = store.run("exchange", EXCHANGE_KEYS, (1, 60, "owner", 0))
    report = {"reason": reason, "error": "no", "traceback": None, "task": None, "task_id": None}
    assert store.set_aside(id_.decode(), report | more, cap=10_000, size=1 << 20, age=DAY) == 0


@pytest.fixture
def letters(redis: Any, app: Celery) -> list[DeadLetter]:
    """quick/1 failed, quick/2 malformed, quick/3 expired, slow/1 failed."""
    quick, slow = app.lanes.get("quick"), app.lanes.get("slow")
    for lane, reason, task in (
        (quick, "failed", "mail.send"),
        (quick, "malformed", None),
        (quick, "expired", "mail.send"),
        (slow, "failed", "report"),
    ):
        if task is None:
            set_aside(redis, lane, reason, GARBAGE)
            continue
        sent = app.send_task(task, ("x",), lane=lane.name, ignore_result=True)
        more = {"error": "ValueError: [no]\nmore", "traceback": "trace"}
        set_aside(redis, lane, reason, task=task, task_id=sent.id, **more)
    return [*deadletters.read(redis, quick), *deadletters.read(redis, slow)]


def ids(found: Iterator[DeadLetter]) -> list[str]:
    return [letter.id for letter in found]


def test_a_letter_has_all_that_is_known(letters: list[DeadLetter]) -> None:
    first, second, *_ = letters
    sent = json.loads(first.message)
    assert first == DeadLetter(
        lane="quick",
        number=1,
        at=pytest.approx(datetime.now(UTC).timestamp(), abs=60),
        reason="failed",
        error="ValueError: [no]\nmore",
        task="mail.send",
        task_id=sent["headers"]["id"],
        key=None,
        deliveries=1,
        traceback="trace",
        message=first.message,
    )
    assert deadletters.age(first, first.at + 60) == 60
    assert deadletters.age(first, first.at - 60) == 0
    assert (second.task, second.task_id, second.message) == (None, None, GARBAGE)


def test_the_message_tells_the_task_that_the_report_does_not(redis: Any, quick: Lane) -> None:
    set_aside(redis, quick, "poison", b'{"headers": {"task": "echo", "id": "7"}}')
    (letter,) = deadletters.read(redis, quick)
    assert (letter.task, letter.task_id) == ("echo", "7")


def test_a_letter_has_its_key_by_its_report_or_its_message(
    redis: Any, app: Celery, quick: Lane
) -> None:
    """One of poison, or of a worker that knew no keys, says none in its report."""
    for _ in range(2):
        app.send_task("echo", ("x",), lane="quick", key="café", ignore_result=True)
    set_aside(redis, quick, "poison")
    set_aside(redis, quick, "failed", task="echo")
    set_aside(redis, quick, "failed", GARBAGE, task="echo", key="by the report")
    app.send_task("echo", ("x",), lane="quick", ignore_result=True)
    set_aside(redis, quick, "failed", task="echo", key=None)
    found = ["café", "café", "by the report", None]
    assert [each.key for each in deadletters.read(redis, quick)] == found
    for key, expected in {"café": ["quick/1", "quick/2"], "by the report": ["quick/3"]}.items():
        for messages in (True, False):
            letters = deadletters.read(redis, quick, key=key, messages=messages)
            assert ids(letters) == expected


def test_letters_of_a_key_are_shown_tried_again_and_deleted(
    redis: Any, app: Celery, quick: Lane
) -> None:
    keys = ["a b", "c", "a b", "a b"]
    for key in keys:
        app.send_task("echo", ("x",), lane="quick", key=key, ignore_result=True)
        set_aside(redis, quick, "failed", task="echo", key=key)
    listed = json.loads(dead("list", "--key", "a b", "--json").stdout)
    assert [each["id"] for each in listed] == ["quick/4", "quick/3", "quick/1"]
    assert "\nkey: a b\n" in dead("show", "quick/1").stdout
    told = dead("retry", "quick/1", "--key", "a b")
    assert outcome(told) == (0, "1 message back in their queues\n", "")
    store = Store(redis, Keys.of(quick))
    assert [(each.key, each.waiting) for each in store.keys_waiting()] == [("a b", 1)]
    told = dead("purge", "--key", "a b", "--yes")
    assert outcome(told) == (0, "2 messages deleted\n", "")
    assert [each.id for each in deadletters.read(redis, quick)] == ["quick/2"]


FILTERS = {
    "none": ({}, ["quick/1", "quick/2", "quick/3"]),
    "reason": ({"reason": "failed"}, ["quick/1"]),
    "task": ({"task": "mail.send"}, ["quick/1", "quick/3"]),
    "reason and task": ({"reason": "malformed", "task": "mail.send"}, []),
    "numbers": ({"numbers": [3, 1]}, ["quick/3", "quick/1"]),
    "numbers that are not there": ({"numbers": [7, 2]}, ["quick/2"]),
    "numbers and reason": ({"numbers": [1, 2], "reason": "malformed"}, ["quick/2"]),
}


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize(("filters", "expected"), FILTERS.values(), ids=FILTERS)
def test_letters_are_read_by_all_that_is_asked(
    redis: Any, quick: Lane, filters: dict[str, Any], expected: list[str]
) -> None:
    assert ids(deadletters.read(redis, quick, **filters)) == expected


def test_more_than_one_batch_is_read_oldest_first(
    redis: Any, quick: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_BATCH", 2)
    for number in range(5):
        set_aside(redis, quick, "failed", str(number).encode())
    assert [letter.message for letter in deadletters.read(redis, quick)] == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
    ]


def test_retry_puts_messages_back_byte_for_byte(
    redis: Any, quick: Lane, letters: list[DeadLetter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletters, "_BATCH", 1)
    moved: list[int] = []
    assert deadletters.retry(redis, quick, letters[:2], moved.append) == 2
    assert moved == [1, 1]
    assert redis.lrange("quick_tasks", 0, -1)[::-1] == [letters[0].message, GARBAGE]
    assert ids(deadletters.read(redis, quick)) == ["quick/3"]
    assert redis.hkeys("lanes:quick:dead:messages") == [b"3"]
    assert redis.hkeys("lanes:quick:dead:reports") == [b"3"]


def test_a_letter_is_retried_once(redis: Any, quick: Lane, letters: list[DeadLetter]) -> None:
    moved: list[int] = []
    for _ in range(2):
        deadletters.retry(redis, quick, letters[:1], moved.append)
    assert moved == [1, 0]
    assert redis.llen("quick_tasks") == 1


@pytest.mark.parametrize("number", [1, 3], ids=["failed", "expired"])
def test_one_that_has_expired_gets_a_fresh_expiry_and_no_more_is_changed(
    redis: Any, quick: Lane, letters: list[DeadLetter], number: int
) -> None:
    """Seen before: one that failed, tried again after its expiry, was set aside for that."""
    expired = json.loads(letters[number - 1].message)
    expired["headers"]["expires"] = expired["headers"]["lane_expires"] = "2001-01-01T00:00:00+00:00"
    expired["headers"][SENT_AT] = 1.0
    redis.hset("lanes:quick:dead:messages", str(number), json.dumps(expired))
    found = deadletters.read(redis, quick, numbers=[number])
    assert deadletters.retry(redis, quick, found, lambda _count: None) == 1

    again = json.loads(redis.lindex("quick_tasks", 0))
    expires = datetime.fromisoformat(again["headers"].pop("expires"))
    assert (expires - datetime.now(UTC)).total_seconds() == pytest.approx(600, abs=60)
    assert datetime.fromisoformat(again["headers"].pop("lane_expires")) == expires
    now = datetime.now(UTC).timestamp()
    assert again["headers"].pop(SENT_AT) == pytest.approx(now, abs=60)
    for name in ("expires", "lane_expires", SENT_AT):
        del expired["headers"][name]
    assert again == expired


def test_purge_deletes_for_good_and_no_more_than_asked(
    redis: Any, quick: Lane, letters: list[DeadLetter]
) -> None:
    gone: list[int] = []
    assert deadletters.purge(redis, quick, letters[:2], gone.append) == 2
    assert deadletters.purge(redis, quick, letters[:2], gone.append) == 0
    assert gone == [2, 0]
    assert ids(deadletters.read(redis, quick)) == ["quick/3"]
    assert redis.hkeys("lanes:quick:dead:messages") == [b"3"]
    assert redis.hkeys("lanes:quick:dead:reports") == [b"3"]
    assert not redis.exists("quick_tasks")


# The command.


def dead(*arguments: str, typed: str | None = None) -> Result:
    project = deploy.Project(slug="acme", package=PACKAGE, process_managers=("systemd",))
    return CliRunner().invoke(
        cli._main, ["dead", *arguments], prog_name="acme", obj=project, input=typed
    )


def outcome(told: Result) -> tuple[int, str, str]:
    return told.exit_code, told.stdout, told.stderr


def left(redis: Any, app: Celery) -> list[str]:
    return [id_ for lane in app.lanes for id_ in ids(deadletters.read(redis, lane))]


@pytest.mark.usefixtures("letters")
def test_list_shows_a_line_for_each() -> None:
    told = dead("list")
    assert (told.exit_code, told.stderr) == (0, "")
    head, _, *rows = told.stdout.strip().splitlines()
    assert head.split() == ["id", "age", "reason", "task", "deliveries", "error"]
    cells = [row.split() for row in rows]
    assert [row[0] for row in cells] == ["slow/1", "quick/3", "quick/2", "quick/1"]
    assert [row[3:] for row in cells] == [
        ["failed", "report", "1", "ValueError:", "[no]"],
        ["expired", "mail.send", "1", "ValueError:", "[no]"],
        ["malformed", "-", "1", "no"],
        ["failed", "mail.send", "1", "ValueError:", "[no]"],
    ]


CHOICES = {
    "all": ([], ["slow/1", "quick/3", "quick/2", "quick/1"]),
    "lane": (["--lane", "slow"], ["slow/1"]),
    "reason": (["--reason", "failed"], ["slow/1", "quick/1"]),
    "task": (["--task", "mail.send"], ["quick/3", "quick/1"]),
    "some": (["--limit", "2"], ["slow/1", "quick/3"]),
    "ids": (["quick/3", "slow/1", "quick/1"], ["quick/3", "quick/1", "slow/1"]),
    "nothing": (["--lane", "slow", "--reason", "poison"], []),
}


def many(redis: Any, lane: Lane, count: int) -> None:
    """As if `count` tasks had failed, one a second, long ago; the last in another way."""
    with redis.pipeline(transaction=False) as pipe:
        for number in range(1, count + 1):
            error = f"ValueError: user {number:#x} not found" if number < count else "KeyError: 1"
            report = {"at": number, "deliveries": 1, "reason": "failed", "error": error}
            report |= {"task": "mail.send", "traceback": "t" * 2000}
            pipe.zadd(f"lanes:{lane.name}:dead", {str(number): number})
            pipe.hset(f"lanes:{lane.name}:dead:reports", str(number), json.dumps(report))
            pipe.hset(f"lanes:{lane.name}:dead:messages", str(number), "m" * 2000)
        pipe.execute()


def test_list_shows_the_newest_and_says_how_many_more_there_are(redis: Any, quick: Lane) -> None:
    """Seen before: all of 100,000, oldest first, in 42 s and with 529 MB."""
    many(redis, quick, 2345)
    *rows, said = dead("list").stdout.strip().splitlines()
    assert [row.split()[0] for row in rows[2:-1]] == [f"quick/{2345 - row}" for row in range(50)]
    hint = "the newest first; --limit shows more, --group counts them by task and error"
    assert said == f"50 of 2,345 dead letters, {hint}"
    *rows, said = dead("list", "--limit", "3", "--task", "mail.send").stdout.strip().splitlines()
    assert [row.split()[0] for row in rows[2:-1]] == ["quick/2345", "quick/2344", "quick/2343"]
    assert said == f"3 of 2,345 dead letters, {hint}"
    shown = dead("list", "--limit", "5000").stdout
    assert shown.count("quick/") == 2345
    assert "--limit" not in shown
    assert len(json.loads(dead("list", "--json").stdout)) == 2345
    assert outcome(dead("list", "--task", "nothing")) == (0, "no dead letters\n", "")
    assert outcome(dead("list", "--task", "nothing", "--json")) == (0, "[]\n", "")


def test_letters_are_grouped_by_task_and_error_numbers_aside(redis: Any, quick: Lane) -> None:
    many(redis, quick, 300)
    head, _, *rows = dead("list", "--group").stdout.strip().splitlines()
    assert len(rows) == 2
    assert head.split() == [
        *("count", "lane", "reason", "task", "newest", "oldest", "newest's", "id", "error")
    ]
    first, second = (row.split() for row in rows)
    assert first[:4] == ["299", "quick", "failed", "mail.send"]
    assert first[8:] == ["quick/299", "ValueError:", "user", "0x12b", "not", "found"]
    assert second[0] == "1"
    largest, _ = json.loads(dead("list", "--group", "--json").stdout)
    assert largest == {
        "lane": "quick",
        "reason": "failed",
        "task": "mail.send",
        "error": "ValueError: user 0x12b not found",
        "count": 299,
        "oldest": "1970-01-01T00:00:01+00:00",
        "newest": "1970-01-01T00:04:59+00:00",
        "id": "quick/299",
    }
    *_, said = dead("list", "--group", "--limit", "1").stdout.strip().splitlines()
    assert said == "1 of 2 groups, the largest first; --limit shows more"


@pytest.mark.parametrize(
    ("verb", "said"), [("retry", "back in their queues"), ("purge", "deleted")]
)
@pytest.mark.usefixtures("letters")
def test_a_dry_run_counts_and_does_nothing(redis: Any, app: Celery, verb: str, said: str) -> None:
    told = dead(verb, "--dry-run", "quick/1", "quick/2", "quick/9")
    assert (told.exit_code, told.stderr) == (1, "no such dead letter: quick/9\n")
    _, _, *rows, last = filter(str.strip, told.stdout.splitlines())
    assert [row.split()[:3] for row in rows] == [
        ["1", "quick", "failed"],
        ["1", "quick", "malformed"],
    ]
    assert last == f"2 messages would be {said}"
    assert len(left(redis, app)) == 4
    assert not redis.exists("quick_tasks")


@pytest.mark.parametrize(
    "command", [["list", "--json"], ["list", "--group"], ["retry", "--all"], ["purge", "--all"]]
)
def test_what_is_chosen_is_not_held_in_memory(redis: Any, quick: Lane, command: list[str]) -> None:
    """Seen before: all that was chosen, with its messages; here that is 40 MB."""
    many(redis, quick, 10_000)
    with contextlib.redirect_stdout(_Sink()):
        tracemalloc.start()
        try:
            project = deploy.Project(slug="acme", package=PACKAGE, process_managers=("systemd",))
            cli._main(
                ["dead", *command, *(["--yes"] if "purge" in command else [])],
                obj=project,
                standalone_mode=False,
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 20_000_000


class _Sink(io.TextIOWrapper):
    """Takes what is printed, and forgets it."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def write(self, text: str) -> int:
        return len(text)


@pytest.mark.usefixtures("letters")
@pytest.mark.parametrize(("choice", "expected"), CHOICES.values(), ids=CHOICES)
def test_list_for_scripts_has_those_that_were_asked_for(
    choice: list[str], expected: list[str]
) -> None:
    told = dead("list", "--json", *choice)
    assert (told.exit_code, told.stderr) == (0, "")
    assert [letter["id"] for letter in json.loads(told.stdout)] == expected


def test_list_for_scripts_has_all_that_is_known(letters: list[DeadLetter]) -> None:
    first, second = json.loads(dead("list", "--json", "quick/1", "quick/2").stdout)
    at = datetime.fromtimestamp(letters[0].at, UTC).isoformat(timespec="seconds")
    assert first == {
        "id": "quick/1",
        "lane": "quick",
        "number": 1,
        "at": at,
        "reason": "failed",
        "error": "ValueError: [no]\nmore",
        "task": "mail.send",
        "task_id": letters[0].task_id,
        "key": None,
        "deliveries": 1,
        "traceback": "trace",
        "message": letters[0].message.decode(),
    }
    assert second["message"] == "\\udcff\x00 no text"


def test_show_tells_all_of_one(letters: list[DeadLetter]) -> None:
    told = dead("show", "quick/2")
    at = datetime.fromtimestamp(letters[1].at, UTC).isoformat(timespec="seconds")
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout.split("\n") == [
        "id: quick/2",
        "lane: quick",
        "number: 2",
        f"at: {at}",
        "reason: malformed",
        "error: no",
        "task: None",
        "task_id: None",
        "key: None",
        "deliveries: 1",
        "traceback: None",
        "message: \\udcff\x00 no text",
        "",
        "",
    ]


@pytest.mark.usefixtures("letters")
def test_show_says_which_are_not_there_and_exits_1() -> None:
    told = dead("show", "quick/7", "quick/1", "slow/9", "--json")
    assert told.exit_code == 1
    assert [letter["id"] for letter in json.loads(told.stdout)] == ["quick/1"]
    assert told.stderr == "no such dead letter: quick/7, slow/9\n"


def test_retry_says_how_many(redis: Any, app: Celery, letters: list[DeadLetter]) -> None:
    assert outcome(dead("retry", "quick/1")) == (0, "1 message back in their queues\n", "")
    assert redis.lrange("quick_tasks", 0, -1) == [letters[0].message]
    # Seen before: exit code 0, as if they had been there.
    said = "no such dead letter: quick/1, slow/9\n"
    told = (1, "1 message back in their queues\n", said)
    assert outcome(dead("retry", "quick/1", "quick/2", "slow/9")) == told
    assert outcome(dead("retry", "--all")) == (0, "2 messages back in their queues\n", "")
    assert left(redis, app) == []
    assert (redis.llen("quick_tasks"), redis.llen("slow_tasks")) == (3, 1)


@pytest.mark.usefixtures("letters")
def test_retry_without_any_choice_refuses(redis: Any, app: Celery) -> None:
    assert outcome(dead("retry")) == (
        2,
        "",
        "retry which? name ids, or --lane, --reason, --task, --key, or --all\n",
    )
    assert len(left(redis, app)) == 4


@pytest.mark.parametrize("verb", ["retry", "purge"])
def test_without_any_choice_a_project_of_one_lane_refuses_too(
    redis: Any, app: Celery, lanes_file: Callable[[str], Path], verb: str
) -> None:
    set_aside(redis, app.lanes.get("quick"), "failed", b"a")
    lanes_file('default_lane = "quick"\n[lanes.quick]\n')
    told = dead(verb, *(["--yes"] if verb == "purge" else []))
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == f"{verb} which? name ids, or --lane, --reason, --task, --key, or --all\n"
    assert left(redis, app) == ["quick/1"]


@pytest.mark.usefixtures("letters")
def test_purge_asks_and_takes_no_for_an_answer(redis: Any, app: Celery) -> None:
    told = dead("purge", "--all", typed="n\n")
    assert told.exit_code == 1
    assert told.stdout == "Delete these dead letters for good? [y/N]: n\n"
    assert told.stderr == "Aborted!\n"
    assert len(left(redis, app)) == 4


@pytest.mark.usefixtures("letters")
def test_purge_deletes_after_a_yes(redis: Any, app: Celery) -> None:
    told = dead("purge", "--lane", "quick", typed="y\n")
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout.splitlines()[-1] == "3 messages deleted"
    assert left(redis, app) == ["slow/1"]


@pytest.mark.usefixtures("letters")
def test_purge_does_not_ask_when_told_so(redis: Any, app: Celery) -> None:
    told = dead("purge", "--reason", "expired", "--yes")
    assert outcome(told) == (0, "1 message deleted\n", "")
    assert left(redis, app) == ["slow/1", "quick/1", "quick/2"]


@pytest.mark.usefixtures("letters")
def test_purge_without_any_choice_refuses(redis: Any, app: Celery) -> None:
    assert outcome(dead("purge", "--yes")) == (
        2,
        "",
        "purge which? name ids, or --lane, --reason, --task, --key, or --all\n",
    )
    assert len(left(redis, app)) == 4


WRONG = {
    "no number": (["list", "quick"], "'quick' is no dead letter (expected one such as quick/12)"),
    "a number alone": (["retry", "12"], "'12' is no dead letter (expected one such as quick/12)"),
    "no number after all": (
        ["show", "quick/x"],
        "'quick/x' is no dead letter (expected one such as quick/12)",
    ),
    "an unknown lane": (["list", "--lane", "q"], 'no lane is called "q" (lanes: slow, quick)'),
    "an unknown lane's letter": (
        ["show", "quik/1"],
        'no lane is called "quik"; did you mean "quick"? (lanes: slow, quick)',
    ),
}


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_meant_is_exit_2(arguments: list[str], said: str) -> None:
    assert outcome(dead(*arguments)) == (2, "", f"{said}\n")


@pytest.mark.usefixtures("app")
def test_an_unknown_reason_is_told_those_there_are() -> None:
    told = dead("list", "--reason", "bad")
    assert told.exit_code == 2
    known = "'poison', 'failed', 'expired', 'unknown', 'malformed', 'worker'"
    assert f"'bad' is not one of {known}." in told.stderr


ODD_TASKS = {
    "a number": 5,
    "a list": ["echo"],
    "half a character": "\ud800",
    "markup": "[red]echo[/nothing]",
}


@pytest.mark.parametrize("task", ODD_TASKS.values(), ids=ODD_TASKS)
@pytest.mark.parametrize("command", ["list", "show"])
def test_any_message_can_be_looked_at(redis: Any, quick: Lane, task: Any, command: str) -> None:
    message = json.dumps({"headers": {"task": task, "id": 7}}).encode()
    set_aside(redis, quick, "malformed", message)
    told = dead(command, *(["quick/1"] if command == "show" else []))
    assert told.exception is None, repr(told.exception)
    assert told.exit_code == 0
    assert "quick/1" in told.stdout
