"""What docs/django.md of a project shows, done: a Django site, its lanes, and requests to it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import eventually
from support import succeed
from webapps import Site, beside

# They share one site, in this order; `--dist loadfile` gives them one process.
pytestmark = pytest.mark.slow

FLOOD = (
    'python manage.py shell -c "from acme_tasks.tasks import slow_task; '
    'slow_task.send_many([(1,)] * 2000)"'
)
SEND_AGAIN = (
    'python manage.py shell -c "from orders.models import Order; from orders.tasks import confirm; '
    '[confirm.delay(order.pk) for order in Order.objects.filter(confirmed=False)]"'
)
# Beside what the page shows, for tests alone: a witness, and somebody else's app.
WITNESS = """
from django.db.backends.signals import connection_created

connection_created.connect(lambda **_: print("opened a connection"), weak=False)
"""
OTHER_TASKS = """
from celery import shared_task


@shared_task(lane="slow")
def archive() -> None: ...


@shared_task
def tidy() -> None: ...
"""


@pytest.fixture(scope="module")
def site(
    baked: Callable[[str], Path], env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Made and started as the page says."""
    folder = tmp_path_factory.mktemp("django")
    with beside(baked("default"), folder, "django.md", env) as site:
        site.type("django-admin startproject mysite .")
        site.type("python manage.py startapp orders")
        site.write_files()
        with (site.folder / "orders/models.py").open("a") as models:
            models.write(WITNESS)
        (site.folder / "other").mkdir()
        (site.folder / "other/tasks.py").write_text(OTHER_TASKS)
        with (site.folder / "mysite/settings.py").open("a") as settings:
            settings.write('INSTALLED_APPS += ["other"]\n')
        site.type("python manage.py makemigrations orders")
        site.type("python manage.py migrate")
        site.must_show("export DJANGO_SETTINGS_MODULE=mysite.settings")
        site.env["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
        site.must_show("acme-tasks workers")
        site.run_workers()
        site.must_show("python manage.py runserver")
        site.run("site", "python", "manage.py", "runserver", "--noreload", str(site.port))
        site.await_listening("site")
        yield site


def order(site: Site, pieces: object = 2) -> tuple[int, int]:
    """The status of the answer to an order, and the order's number."""
    status, answer = site.ask("POST", "/orders/", {"item": "book", "pieces": pieces})
    return status, answer["order"]


def await_confirmed(site: Site, number: int) -> None:
    confirmed = (200, {"order": number, "confirmed": True})
    eventually(lambda: site.ask("GET", f"/orders/{number}/") == confirmed, f"{number} is confirmed")


def received(site: Site, lane: str, task: str) -> int:
    """How many of a task the lane's worker has fetched so far."""
    line = rf"^{lane} \| .* Task {task}\[\S+\] received$"
    return len(re.findall(line, site.log(lane), re.MULTILINE))


def test_an_order_is_confirmed_by_the_worker_of_its_lane(site: Site) -> None:
    status, number = order(site)
    assert status == 202
    await_confirmed(site, number)
    assert received(site, "quick", "orders.tasks.confirm") == 1
    assert received(site, "slow", "orders.tasks.confirm") == 0


def test_a_request_that_is_rolled_back_sends_nothing(site: Site) -> None:
    """With `delay` in the view, the task ran, and ended with Order.DoesNotExist."""
    before = received(site, "quick", "orders.tasks.confirm")
    status, _ = site.ask("POST", "/orders/", {"item": "book", "pieces": "many"})
    assert status == 500
    status, number = order(site)
    assert status == 202
    # The queue is first in, first out: what the failed request sent would come before this.
    await_confirmed(site, number)
    assert received(site, "quick", "orders.tasks.confirm") == before + 1
    assert "DoesNotExist" not in site.log("quick")


def test_each_task_has_a_database_connection_of_its_own(site: Site) -> None:
    """More tasks than child processes, so that one that was kept open would be used again."""
    before = site.log("quick").count("opened a connection")
    numbers = [order(site)[1] for _ in range(6)]
    for number in numbers:
        await_confirmed(site, number)
    assert site.log("quick").count("opened a connection") == before + 6


def test_celery_finds_the_app_and_every_worker_answers(site: Site) -> None:
    site.must_show("celery -A acme_tasks inspect ping")
    answers = re.findall(r"^->  (quick|slow)-1@\S+: OK$", site.ping(), re.MULTILINE)
    assert sorted(answers) == ["quick", "slow"]


def shell(site: Site, code: str) -> str:
    """What `code` prints in Django's shell."""
    command = ["python", "manage.py", "shell", "--no-imports", "-c", code]
    return succeed(*command, cwd=site.folder, env=site.env)


def test_a_site_that_only_sends_needs_no_more_than_the_tasks(site: Site) -> None:
    (shown,) = re.findall(r"^```python\n(from .*?)^```", site.page, re.MULTILINE | re.DOTALL)
    shell(site, shown)
    eventually(lambda: received(site, "quick", "acme_tasks.tasks.quick_task") == 1, "it arrives")


def test_a_shared_task_goes_to_its_lane_or_to_the_default_one(site: Site) -> None:
    shell(site, "from other.tasks import archive, tidy; archive.delay(); tidy.delay()")
    eventually(lambda: received(site, "slow", "other.tasks.archive") == 1, "it arrives")
    eventually(lambda: received(site, "quick", "other.tasks.tidy") == 1, "it arrives")


def test_an_order_is_confirmed_while_a_flood_waits_in_another_lane(site: Site) -> None:
    site.type(FLOOD)
    status, number = order(site)
    assert status == 202
    await_confirmed(site, number)
    assert site.waiting("slow") > 1000


def test_an_order_that_was_saved_while_the_broker_was_away_is_sent_again(site: Site) -> None:
    site.stop_broker()
    status, number = order(site)
    assert status == 503
    assert site.ask("GET", f"/orders/{number}/") == (200, {"order": number, "confirmed": False})
    site.start_broker()
    status, other = order(site)
    assert status == 202
    await_confirmed(site, other)
    site.type(SEND_AGAIN)
    await_confirmed(site, number)
