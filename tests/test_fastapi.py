"""What docs/fastapi.md of a project shows, done: a FastAPI site, its lanes, and requests to it."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import eventually
from support import succeed
from webapps import Site, beside

# They share one site, in this order; `--dist loadfile` gives them one process.
pytestmark = pytest.mark.slow

PENDING = (202, {"state": "PENDING"})
AWAY = (503, {"detail": "try again"})


@pytest.fixture(scope="module")
def site(
    baked: Callable[[str], Path], env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Made and started as the page says."""
    folder = tmp_path_factory.mktemp("fastapi")
    with beside(baked("default"), folder, "fastapi.md", env) as site:
        site.write_files()
        site.must_show("acme-tasks workers")
        site.run_workers()
        site.must_show("uvicorn main:app")
        site.run("site", "uvicorn", "--port", str(site.port), "main:app")
        site.await_listening("site")
        yield site


def send(site: Site, x: int, path: str = "/tasks") -> str:
    """The id of a task that was accepted."""
    status, answer = site.ask("POST", f"{path}?x={x}")
    assert status == 202
    assert list(answer) == ["id"]
    return str(answer["id"])


def await_end(site: Site, task_id: str) -> tuple[int, object]:
    """What is answered once the task has ended."""

    def ended() -> tuple[int, object] | None:
        answer = site.ask("GET", f"/tasks/{task_id}")
        return None if answer == PENDING else answer

    answer: tuple[int, object] = eventually(ended, f"{task_id} ends")
    return answer


def in_python(site: Site, code: str) -> str:
    """What another sender beside the site prints."""
    return succeed(sys.executable, "-c", code, cwd=site.folder, env=site.env).strip()


@pytest.mark.parametrize("path", ["/tasks", "/tasks/async"])
def test_a_task_runs_in_its_lane_and_its_result_is_read_by_its_id(site: Site, path: str) -> None:
    task_id = send(site, 100, path)
    assert await_end(site, task_id) == (200, {"result": 100})
    line = rf"^{{}} \| .* Task acme_tasks\.tasks\.quick_task\[{task_id}\] received$"
    assert re.search(line.format("quick"), site.log("quick"), re.MULTILINE)
    assert task_id not in site.log("slow")


@pytest.mark.parametrize(
    ("sending", "reason"),
    [
        ("slow_task.delay(-1)", "failed"),
        ("quick_task.apply_async((1,), expires=-60)", "expired"),
    ],
    ids=["failed", "expired"],
)
def test_a_task_that_did_not_end_well_is_answered_with_500_and_is_a_dead_letter(
    site: Site, sending: str, reason: str
) -> None:
    code = f"from acme_tasks.tasks import quick_task, slow_task; print({sending}.id)"
    assert await_end(site, in_python(site, code)) == (500, {"detail": "the task failed"})
    dead = "acme-tasks dead list"
    assert f"`{dead}`" in site.page
    shown = dead.replace("acme-tasks", f"{sys.executable} -m acme_tasks")
    # The result is stored first, then the dead letter.
    eventually(
        lambda: f" {reason} " in succeed("sh", "-c", shown, cwd=site.folder, env=site.env),
        "a dead letter",
    )


def test_an_id_that_nobody_knows_is_pending(site: Site) -> None:
    assert site.ask("GET", "/tasks/no-such-id") == PENDING


def test_a_quick_answer_arrives_while_a_flood_waits_in_another_lane(site: Site) -> None:
    in_python(site, "from acme_tasks.tasks import slow_task; slow_task.send_many([(1,)] * 2000)")
    assert await_end(site, send(site, 7)) == (200, {"result": 7})
    assert site.waiting("slow") > 1000


def test_the_workers_answer_celery(site: Site) -> None:
    assert site.ping().count(": OK") == 2


def test_requests_fail_while_the_broker_is_away_and_the_next_ones_do_not(site: Site) -> None:
    task_id = send(site, 1)
    site.stop_broker()
    assert site.ask("POST", "/tasks?x=1") == AWAY
    assert site.ask("POST", "/tasks/async?x=1") == AWAY
    assert site.ask("GET", f"/tasks/{task_id}") == AWAY
    site.start_broker()
    assert await_end(site, send(site, 2)) == (200, {"result": 2})
