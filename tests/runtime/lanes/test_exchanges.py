"""Each lane has an exchange and a routing key of its own, for senders that know Celery alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery import Celery
from harness import Project, wait_until

LANES = """
default_lane = "quick"
[lanes.quick]
concurrency = 1
[lanes.slow]
concurrency = 1
"""
SEP = "\x06\x16"


@pytest.fixture(scope="module")
def project(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Workers of both lanes, which start where an older release has run before."""
    project = Project(tmp_path_factory.mktemp("project"), LANES, server.url)
    for key in ("_kombu.binding.quick_tasks", "_kombu.binding_permanent.quick_tasks"):
        for queue in ("quick_tasks", "slow_tasks"):  # as it bound them
            server.redis.sadd(key, f"quick_tasks{SEP}{SEP}{queue}")
        server.redis.sadd(key, f"key.of.yours{SEP}{SEP}slow_tasks")
    with project.workers("quick", "slow"):
        yield project


def plain(server: Any) -> Celery:
    app = Celery("plain", broker=server.url, set_as_current=False)
    app.conf.task_ignore_result = True
    return app


def publish(server: Any, message: dict[str, Any], **where: Any) -> None:
    """By kombu, past Celery."""
    with kombu.Connection(server.url) as connection, connection.Producer() as producer:
        producer.publish(message["body"], headers=message["headers"], **where)


def message(path: Path) -> dict[str, Any]:
    headers = {"task": "light.note", "id": path.name, "lang": "py", "ignore_result": True}
    return {"headers": headers, "body": [[str(path)], {}, {}]}


#: By what a plain sender says where to.
WAYS: dict[str, Callable[[Any, str, Path], Any]] = {
    "queue": lambda server, queue, path: plain(server).send_task(
        "light.note", (str(path),), queue=queue
    ),
    "exchange and routing key": lambda server, queue, path: plain(server).send_task(
        "light.note", (str(path),), exchange=queue, routing_key=queue
    ),
    "the default exchange": lambda server, queue, path: publish(
        server, message(path), exchange="", routing_key=queue
    ),
    "an exchange by name": lambda server, queue, path: publish(
        server, message(path), exchange=queue, routing_key=queue
    ),
    "a queue of its own making": lambda server, queue, path: publish(
        server,
        message(path),
        exchange=kombu.Exchange(queue),
        routing_key=queue,
        declare=[kombu.Queue(queue, kombu.Exchange(queue), queue)],
    ),
}


@pytest.mark.parametrize("lane", ["quick", "slow"])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_plain_sender_sends_to_one_lane_runs_there_and_once(
    project: Project, server: Any, tmp_path: Path, way: str, lane: str
) -> None:
    """Seen before: sent to the default lane's exchange, it ran in both."""
    other = {"quick": "slow", "slow": "quick"}[lane]
    ran, elsewhere = (project.started[each] for each in (lane, other))
    before, others = ran.log.count(" succeeded in"), elsewhere.log.count(" received")
    path = tmp_path / "ran"
    WAYS[way](server, f"{lane}_tasks", path)
    wait_until(path.exists, "the task")
    wait_until(lambda: ran.log.count(" succeeded in") > before, "its lane's worker")
    # What follows it, in the other lane, would run behind a copy of it.
    behind = tmp_path / "behind"
    plain(server).send_task("light.note", (str(behind),), queue=f"{other}_tasks")
    wait_until(behind.exists, "the other lane")
    assert elsewhere.log.count(" received") == others + 1
    assert path.read_text(encoding="utf-8") == "run\n"


@pytest.mark.usefixtures("project")
def test_bindings_of_an_older_release_are_removed_and_the_owners_are_not(server: Any) -> None:
    """Seen before: quick_tasks and slow_tasks stayed bound to the key quick_tasks."""
    for kind in ("binding", "binding_permanent"):
        assert set(server.redis.smembers(f"_kombu.{kind}.quick_tasks")) == {
            f"quick_tasks{SEP}{SEP}quick_tasks".encode(),
            f"key.of.yours{SEP}{SEP}slow_tasks".encode(),
        }
        assert set(server.redis.smembers(f"_kombu.{kind}.slow_tasks")) == {
            f"slow_tasks{SEP}{SEP}slow_tasks".encode()
        }
