"""Connections that use our transport, in a lane or in none: as a pytest plugin, all of kombu's."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from acme_tasks.lanes import config
from acme_tasks.lanes.redis import transport
from acme_tasks.lanes.redis.connect import Server
from acme_tasks.lanes.redis.store import EXCHANGE
from acme_tasks.lanes.serving import _lease_options
from acme_tasks.lanes.settings import parse

LANE = config.load(Path(__file__).with_name("lanes.toml")).default
RUN = os.environ["CELERY_SUITE_RUN"]
IN_LANE = RUN in ("celery/worker", "kombu/lane")


class Connection(kombu.Connection):
    """A connection whose transport has what `bind` gives it: the server of the URL, and a lane."""

    def __init__(
        self, hostname: Any = None, *args: Any, transport_options: Any = None, **more: Any
    ) -> None:
        """As kombu's."""
        if str(hostname).startswith(("redis://", "rediss://")):
            own = {"server": Server(parse("BROKER_URL", hostname, {})), "lane_by_queue": {}}
            if IN_LANE:
                # Which lane it is, a channel finds out when it gets messages.
                own |= _lease_options(LANE, "kombu@localhost") | {"lane": None}
            transport_options = (transport_options or {}) | own
            more.setdefault("transport", LaneTransport if IN_LANE else transport.Transport)
        more["transport_options"] = transport_options
        super().__init__(hostname, *args, **more)


class LaneChannel(transport.LeasedChannel):  # type: ignore[misc]
    """A channel that becomes a worker's, of a lane with this queue, when it gets messages."""

    lane: str | None

    def basic_consume(self, queue: str, *args: Any, **options: Any) -> Any:
        """As kombu's."""
        self._serve(queue)
        return super().basic_consume(queue, *args, **options)

    def basic_get(self, queue: str, **options: Any) -> Any:
        """As kombu's."""
        self._serve(queue)
        return super().basic_get(queue, **options)

    def _serve(self, queue: str) -> None:
        if self.lane is None and queue not in self._fanout_queues:
            self.lane = f"lane-{queue}"
            self.lane_by_queue = {queue: self.lane}
            prefetch = self.qos.prefetch_count
            self.QoS, self._qos = transport.QoS, None
            self.qos.prefetch_count = prefetch
            # A round that finds no script loads it, and ends without a message. kombu's event loop
            # goes on then, and a test that turns it by hand does not.
            self.server.client.script_load(EXCHANGE)


class LaneTransport(transport.Transport):  # type: ignore[misc]
    """Our transport, with such channels."""

    Channel = LaneChannel


@pytest.fixture(autouse=True)
def _no_leases_of_earlier_tests() -> Iterator[None]:
    """Each test is another process, as far as leases are concerned."""
    yield
    transport.end_all()
    transport._leases.clear()  # noqa: SLF001


if RUN.startswith("kombu/"):
    kombu.Connection = Connection  # type: ignore[misc]
