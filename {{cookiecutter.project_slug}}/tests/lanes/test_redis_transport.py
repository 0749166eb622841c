"""What a channel does when replies are late, lost or refused: its loop is turned by hand."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import kombu
import pytest
from harness import wait_until
from redis.exceptions import RedisError

from {{ cookiecutter.package_name }}.lanes.bind import _register_transports
from {{ cookiecutter.package_name }}.lanes.errors import UsageError
from {{ cookiecutter.package_name }}.lanes.redis import transport
from {{ cookiecutter.package_name }}.lanes.redis.leases import Leases
from {{ cookiecutter.package_name }}.lanes.redis.store import Keys

OWNER = "quick-1@host"
KEYS = Keys("quick", "quick_tasks")


class Worker:
    """The main loop of a worker, stopped between any two steps."""

    def __init__(self, url: str, lease: float) -> None:
        options = {
            "lane_by_queue": {KEYS.queue: KEYS.lane},
            "lane": KEYS.lane,
            "owner": OWNER,
            "concurrency": 2,
            "lease": lease,
            "max_deliveries": 3,
            "dead_cap": 9,
            "dead_age": 99.0,
        }
        self.connection = kombu.Connection(url, transport="lanes", transport_options=options)
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


MakeWorker = Callable[..., Worker]


@pytest.fixture
def make_worker(broker: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeWorker]:
    """Its leases are looked after by `leases._tend()` alone, which others of the lane do too."""
    monkeypatch.setattr(Leases, "_keep", lambda _self: None)
    monkeypatch.setattr(transport, "_leases", {})
    _register_transports()
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
    _register_transports()
    options = {"global_keyprefix": "x:"}
    with (
        kombu.Connection(broker.url, transport="lanes", transport_options=options) as connection,
        pytest.raises(UsageError, match="global_keyprefix"),
    ):
        connection.channel()


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
    assert not broker.redis.exists(KEYS("deliveries"))
    worker.turn()
    assert [message.headers["id"] for message in worker.got] == ["a", "b"]
