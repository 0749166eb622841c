"""Tasks with keys and locks: how the tests make them, and what they see of them in Redis."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from acme_tasks.lanes.errors import RoutingError
from acme_tasks.lanes.redis.store import KEY, ONCE

LANES = """
default_lane = "quick"

[lanes.quick]
[lanes.slow]
"""
WORKED = """
default_lane = "quick"

[lanes.quick]
concurrency = 2
[lanes.slow]
"""


def thumbnail(customer_id: Any, image: str = "a.png", *, size: int = 1) -> None: ...


def made(app: Any, task: Any = thumbnail, **options: Any) -> Any:
    """A task of this app."""
    return app.task(task, name=options.pop("name", task.__name__), **options)


def marks(task: Any, *args: Any, kwargs: Any = None, **options: Any) -> dict[str, Any]:
    """What the router makes of a call's options."""
    app = task.app
    routed = app.amqp.router.route(options, task.name, args, kwargs or {}, task)
    return {name: routed[name] for name in (KEY, ONCE) if name in routed}


def refusal(send: Callable[[], Any]) -> str:
    with pytest.raises(RoutingError) as caught:
        send()
    return str(caught.value)


def messages(broker: Any, queue: str = "quick_tasks") -> list[Any]:
    """What is in the queue, the next first."""
    return [json.loads(message) for message in reversed(broker.redis.lrange(queue, 0, -1))]


def of_key(broker: Any, name: str, lane: str = "quick") -> list[Any]:
    """What waits of a key, likewise."""
    waiting = broker.redis.lrange(f"lanes:{lane}:keyed:messages:{name}", 0, -1)
    return [json.loads(message) for message in reversed(waiting)]
