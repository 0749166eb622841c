"""What docs/sentry.md and docs/opentelemetry.md show, done: with the real SDKs."""

import gzip
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from processes import Process, broker, eventually, fleet
from support import succeed

# Each page's tests share its processes; `--dist loadfile` gives them one process.
pytestmark = pytest.mark.slow

Baked = Callable[[str], Path]

# Beside what the pages show, for tests alone.
TASKS = """

import os
import signal
from typing import Any


@app.task(lane="quick", bind=True, max_retries=2)
def fails(self: Any) -> None:
    try:
        raise ValueError("on purpose")
    except ValueError as error:
        raise self.retry(exc=error, countdown=0)


@app.task(lane="quick", time_limit=1)
def hangs() -> None:
    time.sleep(60)


@app.task(lane="quick")
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A server for what an SDK sends: its URL, and the bodies that it has got."""
    bodies: list[bytes] = []

    class Collect(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_gzip = self.headers["Content-Encoding"] == "gzip"
            bodies.append(gzip.decompress(body) if is_gzip else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Collect) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}", bodies
        finally:
            server.shutdown()


@dataclass(slots=True)
class Site:
    """A project as a page changes it, its workers, and where they report."""

    folder: Path
    env: dict[str, str]
    redis: Any
    bodies: list[bytes]
    start: Callable[..., Process]
    workers: list[Process] = field(default_factory=list)

    def run_workers(self, *lanes: str) -> None:
        """A worker for each of these, consuming."""
        for lane in lanes:
            command = (sys.executable, "-m", "acme_tasks", "worker", lane)
            self.workers.append(self.start(lane, *command))
        for worker in self.workers:
            worker.await_log(" ready.")

    def end_workers(self) -> None:
        """So that nothing is left to be sent."""
        for worker in self.workers:
            worker.end()
        self.workers.clear()

    def send(self, code: str) -> dict[str, str]:
        """What `code` prints, an object in JSON."""
        printed = succeed(sys.executable, "-c", code, cwd=self.folder, env=self.env)
        sent: dict[str, str] = json.loads(printed)
        return sent


@contextmanager
def changed(
    baked: Path, into: Path, page: str, env: dict[str, str], **variables: str
) -> Iterator[Site]:
    """A copy of the project `baked` with the page's Python blocks as the files that they name."""
    folder = Path(shutil.copytree(baked, into / baked.name))
    text = (folder / "docs" / page).read_text()
    for name, code in re.findall(
        r"^```python\n# (\S+\.py)\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        (folder / name).write_text(code)
    with (folder / "src/acme_tasks/tasks.py").open("a") as tasks:
        tasks.write(TASKS)
    lanes = folder / "src/acme_tasks/lanes.toml"
    lanes.write_text(re.sub(r"(\[lanes\.quick\])", r"\1\nmax_deliveries = 1", lanes.read_text()))
    with collector() as (address, bodies), broker() as (url, redis):
        own = env | {
            "BROKER_URL": url,
            "PYTHONPATH": f"{folder / 'src'}:{folder}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        own |= {key: value.format(address) for key, value in variables.items()}
        with fleet(folder, own) as start:
            yield Site(folder, own, redis, bodies, start)


REQUEST = """
import json
import sentry_sdk
from acme_tasks.tasks import dies, fails, hangs, quick_task

sentry_sdk.init(traces_sample_rate=1.0)
with sentry_sdk.start_transaction(name="request") as request:
    quick_task.send_many([(5,)])
    sent = {
        "fails": fails.delay().id,
        "elsewhere": fails.apply_async(lane="slow").id,
        "hangs": hangs.delay().id,
        "expired": quick_task.apply_async((1,), expires=-60).id,
        "dies": dies.delay().id,
        "trace": request.trace_id,
    }
print(json.dumps(sent))
"""


@dataclass(slots=True)
class Reported:
    """What Sentry was sent."""

    sent: dict[str, str]  # ids by what was sent, and the request's trace
    items: list[dict[str, Any]]  # events and transactions

    def about(self, what: str) -> list[dict[str, Any]]:
        """Its events."""
        return [each for each in self.events if self.task_id(each) == self.sent[what]]

    @property
    def events(self) -> list[dict[str, Any]]:
        """All of them, without the transactions."""
        return [each for each in self.items if each.get("type") != "transaction"]

    @staticmethod
    def task_id(item: dict[str, Any]) -> object:
        """Of the task that it is about; None when it is about none."""
        return item.get("tags", {}).get("celery_task_id")


def items(bodies: list[bytes]) -> list[dict[str, Any]]:
    """What envelopes hold: after their header, an item's header and the item, in turn."""
    lines = [line for body in bodies for line in body.splitlines()[1:]]
    parsed = [json.loads(line) for line in lines]
    return [
        item
        for header, item in zip(parsed[::2], parsed[1::2], strict=True)
        if header["type"] in ("event", "transaction")
    ]


@pytest.fixture(scope="module")
def reported(
    baked: Baked, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reported]:
    folder = tmp_path_factory.mktemp("sentry")
    dsn = {"SENTRY_DSN": "http://key@{}/1"}
    with changed(baked("default"), folder, "sentry.md", env, **dsn) as site:
        site.run_workers("quick", "slow")
        sent = site.send(REQUEST)
        site.redis.lpush("quick_tasks", "rubbish")
        reported = Reported(sent, [])

        def all_came() -> bool:
            reported.items = items(list(site.bodies))
            seen = {reported.task_id(each) for each in reported.events}
            return seen >= {id_ for what, id_ in sent.items() if what != "trace"} | {None}

        eventually(all_came, "an event for each")
        site.end_workers()
        yield Reported(sent, items(site.bodies))


@pytest.mark.parametrize(("what", "lane"), [("fails", "quick"), ("elsewhere", "slow")])
def test_a_task_that_failed_after_retries_is_one_event_with_its_lane(
    reported: Reported, what: str, lane: str
) -> None:
    """Without the page's `before_send` there were two: the dead letter's was the other."""
    (event,) = reported.about(what)
    (raised,) = event["exception"]["values"][-1:]
    assert (raised["type"], raised["value"]) == ("ValueError", "on purpose")
    assert event["transaction"] == "acme_tasks.tasks.fails"
    assert event["tags"]["lane"] == lane


@pytest.mark.parametrize(
    ("what", "task", "why"),
    [
        ("hangs", "hangs", "failed, time limit of 1 s exceeded"),
        ("dies", "dies", "poison, delivered 1 times, and never acknowledged"),
        ("expired", "quick_task", "expired, expired at "),
    ],
)
def test_what_no_task_could_raise_is_one_event_of_its_dead_letter(
    reported: Reported, what: str, task: str, why: str
) -> None:
    (event,) = reported.about(what)
    assert f": {why}" in event["logentry"]["formatted"]
    assert event["transaction"] == f"acme_tasks.tasks.{task}"
    assert event["tags"]["lane"] == "quick"
    assert event["fingerprint"][1] == event["transaction"]


def test_what_is_no_task_is_an_event_too_and_there_are_no_others(reported: Reported) -> None:
    (event,) = [each for each in reported.events if reported.task_id(each) is None]
    assert ": malformed, " in event["logentry"]["formatted"]
    assert len(reported.events) == 6


def test_the_trace_of_the_request_goes_on_in_its_tasks_those_of_send_many_too(
    reported: Reported,
) -> None:
    runs = [each for each in reported.items if each.get("type") == "transaction"]
    traced: dict[str, set[str]] = {}
    for each in [*runs, *reported.about("fails")]:
        traced.setdefault(each["transaction"], set()).add(each["contexts"]["trace"]["trace_id"])
    wanted = ("acme_tasks.tasks.fails", "acme_tasks.tasks.quick_task")
    assert [traced[name] for name in wanted] == [{reported.sent["trace"]}] * 2


@dataclass(frozen=True, slots=True)
class Span:
    """What was exported of one."""

    name: str
    trace: bytes
    id: bytes
    parent: bytes
    links: tuple[bytes, ...]  # the traces of what it is linked to
    failed: bool
    says: dict[str, str]  # its attributes that are texts


def spans(bodies: list[bytes]) -> list[Span]:
    found = []
    for body in bodies:
        request = ExportTraceServiceRequest.FromString(body)
        for each in request.resource_spans:
            for scope in each.scope_spans:
                found += [
                    Span(
                        name=span.name.replace("acme_tasks.tasks.", ""),
                        trace=span.trace_id,
                        id=span.span_id,
                        parent=span.parent_span_id,
                        links=tuple(link.trace_id for link in span.links),
                        failed=any(event.name == "exception" for event in span.events),
                        says={each.key: each.value.string_value for each in span.attributes},
                    )
                    for span in scope.spans
                ]
    return found


VIEW = "import web; web.view(); web.fails.delay(); web.provider.shutdown(); print({})"


def traced(site: Site) -> list[Span]:
    """The spans of one view and of what it sent."""
    site.bodies.clear()
    with (site.folder / "web.py").open("a") as web:
        web.write("\nfrom acme_tasks.tasks import fails\n")
    site.run_workers("quick")
    site.send(VIEW)
    site.workers[0].await_log("raised unexpected")
    eventually(lambda: site.workers[0].log.count("] succeeded in") == 3, "all have run")
    site.end_workers()
    return spans(site.bodies)


@pytest.fixture(scope="module")
def site(
    baked: Baked, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("opentelemetry")
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://{}"}
    with changed(baked("default"), folder, "opentelemetry.md", env, **endpoint) as site:
        yield site


def test_the_trace_goes_from_the_request_to_each_task_that_it_sent(site: Site) -> None:
    """Seen before: of `send_many`, each span was the child of the one before."""
    found = traced(site)
    (request,) = [each for each in found if each.name == "GET /"]
    own = [each for each in found if each.trace == request.trace and each is not request]
    sent = {each.id: each for each in own if each.name == "apply_async/quick_task"}
    runs = [each for each in own if each.name == "run/quick_task"]
    assert len(own) == 6
    assert {each.parent for each in sent.values()} == {request.id}
    assert {each.parent for each in runs} == set(sent)
    for each in runs:
        assert each.says["celery.task_name"] == "acme_tasks.tasks.quick_task"
        assert each.says["messaging.message.id"] == sent[each.parent].says["messaging.message.id"]
        assert each.says["messaging.destination"] == "quick_tasks"
    # Three runs, of which two were retried.
    failing = [each for each in found if each.name == "run/fails"]
    assert sorted(each.failed for each in failing) == [False, False, True]
    assert len({each.trace for each in failing}) == 1
    assert request.trace != failing[0].trace


def test_with_span_links_each_run_has_a_trace_of_its_own(site: Site) -> None:
    page = (site.folder / "docs/opentelemetry.md").read_text()
    assert "CeleryInstrumentor().instrument(use_span_links=True)" in page
    tracing = site.folder / "src/acme_tasks/tracing.py"
    code = tracing.read_text()
    tracing.write_text(code.replace(".instrument()", ".instrument(use_span_links=True)"))
    found = traced(site)
    (request,) = [each for each in found if each.name == "GET /"]
    runs = [each for each in found if each.name == "run/quick_task"]
    assert [each.links for each in runs] == [(request.trace,)] * 3
    assert request.trace not in {each.trace for each in runs}
    assert {each.parent for each in runs} == {b""}
