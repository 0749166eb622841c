"""The job of four lanes that docs/tasks.md of a project writes, built from that page alone.

Thumbnails, mail with retries, webhooks with backoff, a nightly report.
"""

import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from processes import Process, broker, eventually, fleet, free_port
from support import BIN, run, succeed

# They share one project, in this order; `--dist loadfile` gives them one process.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LANES = ("thumbnails", "mail", "webhooks", "reports")
FENCE = re.DOTALL | re.MULTILINE


@pytest.fixture(scope="module")
def project(
    baked: Callable[[str], Path], env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What somebody has who did what the page says, from top to bottom."""
    folder = tmp_path_factory.mktemp("four") / "acme-tasks"
    shutil.copytree(baked("default"), folder)
    page = (folder / "docs/tasks.md").read_text()
    with (folder / "src/acme_tasks/lanes.toml").open("a") as file:
        for toml in re.findall(r"^```toml\n# \S+, at the end\n(.*?)^```", page, FENCE):
            file.write(f"\n{toml}")
    (commands,) = re.findall(r"^```sh\n(.*?)^```", page, FENCE)
    succeed("sh", "-ec", commands, cwd=folder, env=env)
    for name, code in re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", page, FENCE):
        (folder / name).write_text(code)
    source = env | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"}
    succeed(sys.executable, "-m", "acme_tasks", "units", cwd=folder, env=source)
    return folder


def test_its_checks_are_green(project: Path, env: dict[str, str]) -> None:
    """What `make check` runs; on README's own lines it once went red."""
    succeed(BIN / "ruff", "check", "--no-cache", cwd=project, env=env)
    succeed(BIN / "ruff", "format", "--check", "--no-cache", cwd=project, env=env)
    succeed(sys.executable, "-m", "mypy", f"--cache-dir={env['HOME']}/mypy", cwd=project, env=env)


def test_its_tests_pass(project: Path, env: dict[str, str]) -> None:
    """A real worker of each of the six lanes among them, each lane flooded by the five others."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no"]
    done = run(*command, cwd=project, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_deployed_lane_by_lane(project: Path) -> None:
    for lane in LANES:
        assert (project / f"deploy/systemd/acme-tasks-{lane}@.service").is_file()
    programs = (project / "deploy/supervisor/acme-tasks.conf").read_text()
    assert all(f"[program:acme-tasks-{lane}]" in programs for lane in LANES)


class Hooks(BaseHTTPRequestHandler):
    """Somebody's server: it fails at first, and takes what comes after."""

    taken: list[tuple[str, str]] = []  # noqa: RUF012 - a handler is made for each request
    failures = 1

    def do_POST(self) -> None:
        """Keep the path and the body, or fail."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        failed = Hooks.failures > 0
        Hooks.failures -= 1
        if not failed:
            self.taken.append((self.path, body))
        self.send_response(503 if failed else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def hooks() -> Iterator[int]:
    """The port of such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hooks) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def test_what_the_page_sends_is_done(project: Path, env: dict[str, str], tmp_path: Path) -> None:
    """The mail server is away at first, and the others' server fails once."""
    page = (project / "docs/tasks.md").read_text()
    (code,) = re.findall(r"^```python\n(from acme_tasks\.tasks\.mail import .*?)^```", page, FENCE)
    Image.new("RGB", (600, 300)).save(tmp_path / "cat.png")
    smtp = free_port()
    with broker() as (url, _), hooks() as port:
        own = env | {
            "BROKER_URL": url,
            "PYTHONPATH": str(project / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(smtp),
        }
        code = re.sub(r"/tmp\b", str(tmp_path), code)  # noqa: S108 - as the page says
        code = re.sub(r":800[01]\b", f":{port}", code)
        with fleet(tmp_path, own) as start:
            workers: dict[str, Process] = {
                lane: start(lane, sys.executable, "-m", "acme_tasks", "worker", lane)
                for lane in LANES
            }
            for worker in workers.values():
                worker.await_log(" ready.")
            succeed(sys.executable, "-c", code, cwd=tmp_path, env=own)
            with Image.open(tmp_path / "cat-200.png") as small:
                assert small.size == (200, 100)
            workers["mail"].await_log("retry: Retry in 5s: ConnectionRefusedError(111, ")
            server = start("smtp", "aiosmtpd", "-n", "-l", f"127.0.0.1:{smtp}")
            workers["mail"].await_log("] succeeded in ")
            assert "Subject: Your picture" in server.log
            assert re.search(
                r"^Message-ID: <[0-9a-f-]{36}@example\.com>$", server.log, re.MULTILINE
            )
            workers["webhooks"].await_log("HTTPError 503: 'Service Unavailable'")
            eventually(lambda: len(Hooks.taken) == 2, "both webhooks to be taken")
            assert {path for path, _ in Hooks.taken} == {"/hook"}
            report = tmp_path / "2026-11-29.txt"
            eventually(report.is_file, "the report to be written")
            assert len(report.read_text().splitlines()) == 24
            command = (sys.executable, "-m", "acme_tasks", "schedule")
            shown = succeed(*command, cwd=tmp_path, env=own)
            assert re.search(r"nightly +0 3 \* \* \* +\d{4}-", shown)
            assert "No worker" not in shown
        assert "Traceback" not in "".join(workers[lane].log for lane in ("thumbnails", "reports"))
