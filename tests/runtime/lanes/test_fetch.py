"""The conversation of a worker with its lane, by a plain connection to a real Valkey: no kombu."""

from typing import Any

import pytest
import redis as redis_py
from harness import wait_until
from redis.exceptions import NoPermissionError, ResponseError

from acme_tasks.lanes.redis import fetch as module
from acme_tasks.lanes.redis.fetch import Fetch, Fetched, Mode
from acme_tasks.lanes.redis.store import EXCHANGE, Keys, Store
from acme_tasks.lanes.timeouts import FETCH, REPLY

OWNER = "quick-1@host#1"
LEASE = 60.0  # seconds
KEYS = Keys("quick", "quick_tasks")
DAY = 86400.0  # seconds


class Line:
    """A connection, and what a worker asks on it; `turn` is one round."""

    def __init__(self, port: int) -> None:
        self.connection = redis_py.Connection(port=port)
        self.fetch = Fetch(KEYS, owner=OWNER, lease=LEASE)

    def begin(self, wanted: int = 4, *acks: str) -> list[str]:
        """Send a round; the names of its commands."""
        commands = self.fetch.begin(wanted, acks)
        self.connection.send_packed_command(self.connection.pack_commands(commands))
        return [command[0] for command in commands]

    def read(self) -> Fetched:
        replies: list[Any] = []
        assert self.fetch.round
        for _ in self.fetch.round.commands:
            try:
                replies.append(self.connection.read_response())
            except ResponseError as error:
                replies.append(error)
        return self.fetch.end(replies)

    def turn(self, wanted: int = 4, *acks: str) -> Fetched:
        self.begin(wanted, *acks)
        return self.read()

    @property
    def mode(self) -> Mode:
        return self.fetch._mode


@pytest.fixture
def line(server: Any, redis: Any) -> Any:
    redis.script_load(EXCHANGE)
    line = Line(server.port)
    yield line
    line.connection.disconnect()


@pytest.fixture
def store(redis: Any) -> Store:
    return Store(redis, KEYS)


def send(store: Store, *messages: str) -> None:
    for message in messages:
        store.redis.lpush("quick_tasks", message)


def bodies(fetched: Fetched) -> list[bytes]:
    return [each.message for each in fetched.messages]


def ids(fetched: Fetched) -> list[str]:
    return [each.id for each in fetched.messages]


def test_it_waits_for_the_queue_without_taking_anything_from_it(line: Line, store: Store) -> None:
    assert line.begin() == ["BLMOVE", "EVALSHA"]
    waits = lambda: store.redis.info("clients")["blocked_clients"] == 1  # noqa: E731
    wait_until(waits, "it to wait")
    send(store, "a")
    fetched = line.read()
    assert bodies(fetched) == [b"a"]
    assert ids(fetched) == [f"1@{OWNER}"]
    assert fetched.now == pytest.approx(store.now(), abs=60)
    assert (fetched.refused, fetched.untold, fetched.unknown_script) == (None, (), False)
    assert store.redis.hlen(KEYS("leased")) == 1


def test_a_wait_for_the_queue_moves_nothing(line: Line, store: Store) -> None:
    send(store, "a", "b", "c")
    store.pause(paused=True)
    assert line.turn().messages == ()
    assert store.redis.lrange("quick_tasks", 0, -1) == [b"c", b"b", b"a"]


def test_a_wait_for_nothing_ends(line: Line) -> None:
    fetched = line.turn()
    assert fetched.messages == ()
    assert FETCH <= fetched.took < FETCH + REPLY
    assert line.mode is Mode.QUEUE


def test_after_a_full_round_the_next_does_not_wait_and_tells_what_is_done(
    line: Line, store: Store
) -> None:
    send(store, *"abcdef")
    assert line.fetch.waits
    first = line.turn(4)
    assert not line.fetch.waits
    assert line.begin(4, *ids(first)) == ["EVALSHA"]
    assert bodies(line.read()) == [b"e", b"f"]
    assert store.redis.hlen(KEYS("leased")) == 2
    assert line.fetch.waits


def test_a_round_asks_for_a_hundred_at_most_and_knows_when_it_got_them(
    line: Line, store: Store
) -> None:
    send(store, *map(str, range(module.MOST + 1)))
    assert len(line.turn(1000).messages) == module.MOST
    assert line.mode is Mode.NOTHING


def test_the_last_number_that_the_owner_knows_is_not_given_again(line: Line, store: Store) -> None:
    """The server may have lost its data."""
    send(store, "a")
    commands = line.fetch.begin(1, last=41)
    line.connection.send_packed_command(line.connection.pack_commands(commands))
    assert ids(line.read()) == [f"42@{OWNER}"]


def test_a_paused_lane_is_asked_again_after_a_while_whatever_waits_in_it(
    line: Line, store: Store
) -> None:
    """A wait for its queue would end at once, and a worker would ask without a pause."""
    send(store, "a")
    store.pause(paused=True)
    assert line.turn().messages == ()
    assert line.mode is Mode.TIME
    assert line.begin() == ["BRPOP", "EVALSHA"]
    again = line.read()
    assert again.messages == ()
    assert again.took >= FETCH
    store.pause(paused=False)
    assert bodies(line.turn()) == [b"a"]
    assert line.mode is Mode.QUEUE


def test_what_is_done_is_told_to_a_paused_lane(line: Line, store: Store) -> None:
    send(store, "a")
    fetched = line.turn()
    store.pause(paused=True)
    assert line.turn(4, *ids(fetched)).untold == ()
    assert not store.redis.exists(KEYS("leased"))


def test_a_server_that_lost_the_script_is_told_it_again_and_nothing_is_forgotten(
    line: Line, store: Store
) -> None:
    send(store, "a", "b", "c")
    done = ids(line.turn(1))
    store.redis.script_flush()
    fetched = line.turn(2, *done)
    assert fetched.unknown_script
    assert (fetched.untold, fetched.messages, fetched.refused) == (tuple(done), (), None)
    assert fetched.now is None
    assert store.redis.script_load(EXCHANGE) == module.EXCHANGE_SHA
    assert line.begin(2, *done) == ["EVALSHA"]  # at once
    assert bodies(line.read()) == [b"b", b"c"]


def test_a_round_that_is_lost_gives_back_what_it_was_to_acknowledge(
    line: Line, store: Store
) -> None:
    send(store, *"abcd")
    done = ids(line.turn(1))
    line.begin(1, *done)
    line.connection.disconnect()
    assert line.fetch.lost() == tuple(done)
    assert line.fetch.round is None
    assert line.fetch.lost() == ()  # once
    assert line.begin() == ["BLMOVE", "EVALSHA"]


def test_where_no_round_is_lost_the_next_is_what_it_would_have_been(
    line: Line, store: Store
) -> None:
    """The channel says so before each round, whether there was one in flight or not."""
    send(store, *"abc")
    line.turn(1)
    assert line.fetch.lost() == ()
    assert line.begin(1) == ["EVALSHA"]
    line.read()
    store.pause(paused=True)
    line.turn(1)
    assert line.fetch.lost() == ()
    assert line.begin(1) == ["BRPOP", "EVALSHA"]


def test_a_reply_to_nothing_that_was_asked_is_an_error(line: Line) -> None:
    with pytest.raises(RuntimeError, match="nothing that was asked"):
        line.fetch.end([[b"1.0"]])


def test_a_round_is_late_when_a_server_that_is_there_would_have_replied(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    line.fetch.begin(1)
    asked = line.fetch.round
    assert asked
    now += FETCH + REPLY - 0.1
    assert not asked.is_late()
    now += 0.2
    assert asked.is_late()


@pytest.fixture
def allow(redis: Any) -> Any:
    """Changes what the line's user may do; for this test alone."""
    yield lambda *rules: redis.execute_command("ACL SETUSER", "default", *rules)
    redis.execute_command("ACL SETUSER", "default", "+@all")


def test_where_it_may_not_wait_for_the_queue_it_lets_time_pass_and_fetches_all_the_same(
    line: Line, store: Store, allow: Any
) -> None:
    allow("-blmove")
    send(store, "a", "b")
    assert bodies(line.turn()) == [b"a", b"b"]
    assert line.begin() == ["BRPOP", "EVALSHA"]
    assert line.read().took >= FETCH
    # It tries the queue again: a server that had no memory to move may have some now.
    assert line.begin() == ["BLMOVE", "EVALSHA"]


def test_where_it_may_not_wait_at_all_it_says_so_and_what_it_took_is_to_be_handed_back(
    line: Line, store: Store, allow: Any
) -> None:
    allow("-blmove", "-brpop")
    assert line.turn().refused is None
    send(store, "a")
    fetched = line.turn()
    assert isinstance(fetched.refused, NoPermissionError)
    assert bodies(fetched) == [b"a"]
    assert fetched.untold == ()


def test_a_server_that_refuses_the_script_is_asked_again_after_a_while(
    line: Line, store: Store, allow: Any
) -> None:
    send(store, "a", "b")
    done = ids(line.turn(1))
    allow("-evalsha")
    fetched = line.turn(1, *done)
    assert isinstance(fetched.refused, NoPermissionError)
    assert (fetched.untold, fetched.messages, fetched.now) == (tuple(done), (), None)
    assert line.mode is Mode.TIME
    allow("+@all")
    assert bodies(line.turn(1, *done)) == [b"b"]


def test_what_is_due_is_found_when_the_wait_for_the_queue_ends(line: Line, store: Store) -> None:
    store.delay({"due": store.now() + FETCH / 2, "later": store.now() + DAY})
    fetched = line.turn()
    assert bodies(fetched) == [b"due"]
    assert FETCH <= fetched.took < FETCH + REPLY
