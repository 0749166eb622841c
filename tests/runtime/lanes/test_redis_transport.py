"""What a channel does when replies are late, lost or refused: its loop is turned by hand."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import kombu
import pytest
from harness import server_of, wait_until
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as LateError

from acme_tasks.lanes.bind import _register_transport
from acme_tasks.lanes.errors import UsageError
from acme_tasks.lanes.redis import transport
from acme_tasks.lanes.redis.leases import Leases
from acme_tasks.lanes.redis.store import Keys
from acme_tasks.lanes.timeouts import FETCH, REPLY

NODE = "quick-1@host"
KEYS = Keys("quick", "quick_tasks")


class Worker:
    """The main loop of a worker, stopped between any two steps."""

    def __init__(self, url: str, lease: float) -> None:
        options = {
            "server": server_of(url),
            "lane_by_queue": {KEYS.queue: KEYS.lane},
            "lane": KEYS.lane,
            "node": NODE,
            "concurrency": 2,
            "lease": lease,
            "max_deliveries": 3,
            "latency_slo": 1.0,
            "dead_cap": 9,
            "dead_size": 1 << 20,
            "dead_age": 99.0,
        }
        self.connection = kombu.Connection(transport="lanes", transport_options=options)
        self.channel: Any = self.connection.default_channel
        self.channel.basic_qos(0, 4, False)
        self.got: list[Any] = []
        queues = [kombu.Queue(KEYS.queue)]
        kombu.Consumer(self.channel, queues, on_message=self.got.append).consume()
        self.turn()  # the server does not know the script yet
        self.turn()  # and now there is nothing: the next turn waits

    def begin(self) -> None:
        """Send what waits for messages and fetches them."""
        self.connection.transport.cycle.on_poll_start()

    def read(self) -> None:
        """Read the replies, and deliver; an error is the loop's, which goes on."""
        with suppress(transport.Empty, RedisError):
            self.channel._brpop_read()

    def turn(self) -> None:
        self.begin()
        self.read()

    def later(self) -> None:
        """It has been a while since the last round."""
        self.channel.fetch.ended_at = 0.0


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(broker: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    """Its leases are looked after by `leases._tend()` alone, which others of the lane do too."""
    monkeypatch.setattr(Leases, "_keep", lambda _self: None)
    monkeypatch.setattr(transport, "_leases", {})
    _register_transport()
    workers: list[Worker] = []

    def make(lease: float = 60.0) -> Worker:
        workers.append(Worker(broker.url, lease))
        return workers[-1]

    yield make
    for worker in workers:
        worker.connection.release()


def send(redis: Any, *names: str) -> None:
    for name in names:
        message = {"body": "", "headers": {"id": name}, "properties": {"delivery_info": {}}}
        redis.lpush(KEYS.queue, json.dumps(message))


def waiting(redis: Any) -> list[str]:
    """Names of the messages in the queue, the next first."""
    messages = reversed(redis.lrange(KEYS.queue, 0, -1))
    return [json.loads(message)["headers"]["id"] for message in messages]


def leased(redis: Any) -> int:
    return int(redis.hlen(KEYS("leased")))


def test_a_prefix_for_keys_is_refused(broker: Any) -> None:
    """Seen before: what was sent with one was never fetched, and nothing said so."""
    _register_transport()
    options = {"global_keyprefix": "x:", "server": server_of(broker.url)}
    with (
        kombu.Connection(transport="lanes", transport_options=options) as connection,
        pytest.raises(UsageError, match="global_keyprefix"),
    ):
        connection.channel()


def test_a_workers_connection_gets_no_message_without_a_lease(
    broker: Any, make_worker: MakeWorker
) -> None:
    """Seen before: it had none, and a requeue lost it."""
    channel = make_worker().channel
    broker.redis.lpush("other", json.dumps({"body": "", "properties": {"delivery_tag": "a"}}))
    with pytest.raises(UsageError, match=r"^basic_get: .* gets nothing from other by itself"):
        channel.basic_get("other")
    assert broker.redis.llen("other") == 1
    assert channel.basic_get("other", no_ack=True).delivery_tag == "a"


def test_a_server_that_lost_its_data_gives_no_lease_of_an_id_that_is_still_at_work(
    make_worker: MakeWorker, broker: Any
) -> None:
    """Seen before: the end of the old task acknowledged the new one, which a kill then lost."""
    worker = make_worker()
    send(broker.redis, "old")
    worker.turn()
    broker.redis.flushdb()
    send(broker.redis, "new")
    worker.turn()
    old, _new = worker.got
    old.ack()
    assert leased(broker.redis) == 1


def test_a_reply_that_is_read_when_others_have_its_message_is_not_delivered(
    broker: Any, make_worker: MakeWorker
) -> None:
    """The loop was busy for longer than the lease: a result backend was away, say.

    Seen before: it was delivered, and was in the queue for another worker as well.
    """
    worker = make_worker(lease=0.5)
    worker.begin()
    send(broker.redis, "late")
    wait_until(lambda: leased(broker.redis) == 1, "the lease")

    def taken_back() -> bool:
        worker.channel.leases._tend()  # as another worker's thread does
        return not leased(broker.redis)

    wait_until(taken_back, "the lease to end")
    worker.read()
    assert [message.headers["id"] for message in worker.got] == []
    assert waiting(broker.redis) == ["late"]
    assert not worker.channel.leases.held
    worker.turn()
    assert [message.headers["id"] for message in worker.got] == ["late"]


def test_a_reply_that_is_read_late_but_in_time_is_delivered_and_renewed(
    broker: Any, make_worker: MakeWorker
) -> None:
    """Nobody else has looked for it: the lease is over, and the message still ours.

    Seen before: delivered, and overdue until the thread's next round.
    """
    worker = make_worker(lease=0.5)
    send(broker.redis, "late")
    worker.begin()
    ended = wait_until(
        lambda: broker.redis.zrange(KEYS("leases"), 0, time.time(), byscore=True, withscores=True),
        "the lease to end",
    )
    worker.read()
    renewed = broker.redis.zrange(KEYS("leases"), 0, -1, withscores=True)
    assert [message.headers["id"] for message in worker.got] == ["late"]
    assert list(worker.channel.leases.held) == [id_.decode() for id_, _ in renewed]
    assert renewed > ended


def test_acknowledgements_of_an_exchange_whose_connection_is_dropped_are_told_later(
    broker: Any, make_worker: MakeWorker
) -> None:
    """As kombu's health check drops it, and connects anew without a word to the channel.

    Seen before: told to nobody, so the task was run again when its lease was over.
    """
    worker = make_worker()
    send(broker.redis, *"abcdefgh")
    worker.turn()
    first = worker.got[0]
    worker.channel.connection.looped = True  # so that the next exchange tells
    first.ack()
    worker.later()
    connection = worker.channel.client.connection
    with pytest.MonkeyPatch.context() as network:
        network.setattr(connection, "send_packed_command", lambda *_args, **_options: None)
        worker.begin()
    assert broker.redis.hexists(KEYS("leased"), first.delivery_tag)
    connection.disconnect()
    worker.channel._in_poll = None
    worker.turn()
    worker.channel.leases._tend()
    assert not broker.redis.hexists(KEYS("leased"), first.delivery_tag)


def test_what_was_fetched_behind_a_wait_that_the_server_refused_is_handed_back(
    broker: Any, make_worker: MakeWorker
) -> None:
    """Seen before: leased and held by nobody, until it was overdue and counted as delivered."""
    worker = make_worker()
    broker.redis.execute_command("ACL SETUSER", "default", "-blmove", "-brpop")
    worker.turn()  # where it may not wait by the first, it does by the second
    send(broker.redis, "a", "b")
    worker.turn()
    broker.redis.execute_command("ACL SETUSER", "default", "+@all")
    assert not worker.got
    assert waiting(broker.redis) == ["a", "b"]
    assert leased(broker.redis) == 0
    assert not worker.channel.leases.held
    assert set(broker.redis.hvals(KEYS("deliveries"))) == {b"0"}
    worker.turn()
    assert [message.headers["id"] for message in worker.got] == ["a", "b"]


def test_a_paused_lane_with_messages_is_not_asked_all_the_time(
    broker: Any, make_worker: MakeWorker
) -> None:
    """A wait for its queue ends at once: the worker lets time pass instead."""
    worker = make_worker()
    send(broker.redis, "a")
    broker.redis.set(KEYS("paused"), "1")
    worker.turn()
    began = time.monotonic()
    for _ in range(3):
        worker.turn()
    assert time.monotonic() - began >= 3 * FETCH
    assert not worker.got
    broker.redis.delete(KEYS("paused"))
    worker.turn()
    assert [message.headers["id"] for message in worker.got] == ["a"]


def test_after_a_full_round_what_is_done_is_told_with_the_next(
    broker: Any, make_worker: MakeWorker
) -> None:
    """One round trip for both: throughput is part of the design."""
    worker = make_worker()
    send(broker.redis, *"abcdefgh")
    worker.turn()
    worker.channel.connection.looped = True
    for message in worker.got[:4]:
        message.ack()
    scripts = broker.redis.info("commandstats")["cmdstat_evalsha"]["calls"]
    worker.turn()
    assert broker.redis.info("commandstats")["cmdstat_evalsha"]["calls"] == scripts + 1
    assert [message.headers["id"] for message in worker.got] == list("abcdefgh")
    assert leased(broker.redis) == 4


def test_where_each_slot_has_its_next_message_a_round_waits_for_more_to_be_free(
    broker: Any, make_worker: MakeWorker
) -> None:
    """But for a moment only, and only in an event loop, which has a timer for its end."""
    worker = make_worker()
    send(broker.redis, *"abcdefgh")
    worker.turn()
    assert len(worker.got) == 4
    worker.got[0].ack()
    worker.channel.connection.looped = True
    assert worker.channel.acknowledges_soon
    worker.turn()
    assert worker.channel.fetch.round is None
    for message in worker.got[1:3]:
        message.ack()
    worker.turn()  # one is left for two slots
    assert [message.headers["id"] for message in worker.got] == list("abcdefg")
    worker.got[3].ack()
    worker.turn()
    assert len(worker.got) == 7
    worker.later()
    worker.turn()
    assert len(worker.got) == 8
    worker.channel.connection.looped = False
    assert not worker.channel.has_enough


def test_a_reply_that_does_not_come_is_given_up_in_time(
    broker: Any, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop waits for a socket that has nothing to read: no time-out of that sees it.

    Seen before: nobody looked, and a worker of a frozen broker waited for it to go on.
    """
    worker = make_worker()
    send(broker.redis, *"abcdefgh")
    worker.turn()
    worker.channel.connection.looped = True
    first = worker.got[0]
    first.ack()
    worker.later()
    connection = worker.channel.client.connection
    with monkeypatch.context() as network:
        network.setattr(connection, "send_packed_command", lambda *_args, **_options: None)
        worker.begin()
    worker.channel.check_round()  # in time
    asked = worker.channel.fetch.round
    late = dataclasses.replace(asked, sent_at=asked.sent_at - FETCH - REPLY)
    monkeypatch.setattr(worker.channel.fetch, "round", late)
    with pytest.raises(LateError, match="has not answered in time"):
        worker.channel.check_round()
    assert connection._sock is None
    assert list(worker.channel.leases._pending) == [first.delivery_tag]
    worker.channel.leases._tend()
    assert not broker.redis.hexists(KEYS("leased"), first.delivery_tag)


def test_all_that_is_not_due_is_got_past_in_full_rounds(
    broker: Any, make_worker: MakeWorker
) -> None:
    """A Celery without this transport sent them to the queue, in front of what can be run.

    As many at a time as there are free slots would take for ever.
    """
    worker = make_worker()
    later = {"eta": datetime.fromtimestamp(time.time() + 3600, UTC).isoformat()}
    for number in range(150):
        headers = {"id": str(number)} | later
        message = {"body": "", "headers": headers, "properties": {"delivery_info": {}}}
        broker.redis.lpush(KEYS.queue, json.dumps(message))
    send(broker.redis, "ready")
    for _ in range(4):  # 4, 100, and the rest
        worker.turn()
    assert [message.headers["id"] for message in worker.got] == ["ready"]
    assert broker.redis.zcard(KEYS("delayed")) == 150
    assert leased(broker.redis) == 1


def test_what_is_due_by_the_server_is_delivered_whatever_this_hosts_clock_says(
    broker: Any, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: it was postponed again and again by a host that was an hour behind."""
    worker = make_worker()
    at = time.time()
    monkeypatch.setattr(time, "time", lambda: at - 3600)
    eta = datetime.fromtimestamp(at - 60, UTC).isoformat()
    message = {"body": "", "headers": {"id": "a", "eta": eta}, "properties": {"delivery_info": {}}}
    broker.redis.zadd(KEYS("delayed"), {json.dumps(message): at - 60})
    worker.turn()
    assert [message.headers["id"] for message in worker.got] == ["a"]
