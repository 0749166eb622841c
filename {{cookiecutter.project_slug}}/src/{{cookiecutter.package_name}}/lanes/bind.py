"""Configure a Celery app for its lanes: every setting that is not Celery's default is here."""

import functools
import importlib
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, cast

from celery import Celery
from celery.signals import celeryd_after_setup, celeryd_init, worker_shutdown, worker_shutting_down
from kombu import Connection, Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.imports import symbol_by_name

from . import (
    config,
    descriptors,
    discovery,
    drain,
    excerpt,
    groups,
    keyed,
    logs,
    notify,
    parent,
    settings,
    timeouts,
)
from .config import Lane, Lanes
from .consumer import Consumer
from .errors import (
    BrokerError,
    ContractError,
    LanesError,
    RoutingError,
    SettingsError,
    UsageError,
)
from .redis.connect import Server
from .redis.refusals import is_final
from .redis.store import Keys
from .routing import AMQP, FIRST
from .settings import Settings
from .task import Task

if TYPE_CHECKING:
    from .typed import App
else:
    App = Celery


def bind(celery_app: Celery) -> App:
    """Give an app the lanes of lanes.toml and the broker of the environment; returns the app.

    Raises:
        ConfigError: when lanes.toml cannot be used.
        SettingsError: when the environment cannot be used.
        SystemExit: in either case, when this is a command of Celery's, which would make a page of
            tracebacks of it; what is wrong has been said in a line.
    """
    try:
        return _bind(celery_app)
    except LanesError as error:
        if logs.celery_command() is None:
            raise
        logs.say(str(error), level=logging.ERROR, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _bind(celery_app: Celery) -> App:
    log = settings.load_log()
    if logs.celery_command() in ("worker", "beat"):
        logs.begin(log)
    environment = settings.load()
    lanes = config.load(environment.lanes_file)
    app = cast("App", celery_app)  # which it is from here on
    app.lanes = lanes
    app.lease_options = {}  # until the app is a worker's
    app.worker_limits = (None, None)  # likewise
    app.worker_log = log
    app.amqp_cls = AMQP  # type: ignore[assignment]  # a name or a class
    app.events_cls = f"{__package__}.remote:Events"
    app.control_cls = f"{__package__}.remote:Control"
    app.task_cls = _task_class(celery_app)  # type: ignore[assignment]
    _register_transport()
    groups.send_together()
    app.task = _checking_at_the_line(app.task, lanes)
    app.own_send_task = _returning_the_first(app.send_task, app)
    app.send_task = app.own_send_task  # type: ignore[method-assign]
    connect(app, environment)
    app.conf.update(
        task_ignore_result=environment.results is None,
        broker_transport="lanes",
        # A send that cannot get through is an error within seconds; see timeouts.py.
        broker_connection_timeout=timeouts.CONNECT,
        broker_pool_acquire_timeout=timeouts.POOL,
        worker_consumer=Consumer,
        # An outage of any length is waited out; Celery's default gives up after 100 tries.
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        # So is a broker that refuses to write, for want of memory, disk or replicas.
        broker_channel_error_retry=True,
        # A queue that no lane consumes would keep its messages for ever.
        task_create_missing_queues=False,
        # As Celery makes a queue that nobody has declared; else all would have the default one's
        # exchange and routing key, and a message that is sent to these would run in each lane.
        task_queues=[Queue(lane.queue, Exchange(lane.queue), lane.queue) for lane in lanes],
        task_default_queue=lanes.default.queue,
        # Acknowledge when the task has ended, so that a killed worker's tasks run again.
        task_acks_late=True,
        # A task whose child process died is delivered again. Celery does so without a bound; the
        # leased transport counts, and sets it aside after max_deliveries.
        task_reject_on_worker_lost=True,
        # Celery accepts JSON alone already; a result may not bring anything else either.
        accept_content=["json"],
        result_accept_content=["json"],
        # 4 s by default: a child that imports for longer is killed, and the next, in a loop.
        worker_proc_alive_timeout=30,
    )
    discovery.install(app)
    logs.install(log)
    if logs.celery_command() == "beat":
        from . import beat  # of no use to others

        beat.install(app)
    celeryd_init.connect(functools.partial(_configure_worker, app), weak=False)
    return app


def _task_class(app: Celery) -> type:
    """Our Task, with what the app's own has: Django's `delay_on_commit`, for one."""
    own = symbol_by_name(app.task_cls)  # type: ignore[arg-type]  # a name or a class
    return Task if issubclass(Task, own) else type("Task", (own, Task), {})


def connect(app: Any, environment: Settings) -> None:
    """Have `app` use the broker and the result backend of `environment`, and no others.

    Celery reads variables of its own, on its command line and after it (`BROKER_URL`,
    `CELERY_BROKER_URL`, `CELERY_RESULT_BACKEND`, ...), and they outrank its settings. So what it
    reads is for show; `Connection` and `Backend` go by these two.
    """
    results = environment.results
    app.server = Server(environment.broker)
    app.results = results and Server(
        results, connect=timeouts.RESULTS_CONNECT, reply=timeouts.RESULTS_REPLY
    )
    app.backend_cls = f"{__package__}.results:Backend" if results else "disabled"
    app.conf.update(
        broker_url=environment.broker.shown,
        result_backend=results.shown if results else None,
        broker_transport_options={
            # Priorities within a queue are four Redis lists each; a lane is the priority.
            "priority_steps": [0],
            "health_check_interval": timeouts.HEALTH,
            "lane_by_queue": {each.queue: each.name for each in app.lanes},
            "limits_by_lane": {each.name: Keys.of(each).limits for each in app.lanes},
            "server": app.server,
        },
    )


def _register_transport() -> None:
    # Under a name, because a broker URL may not name a module.
    TRANSPORT_ALIASES["lanes"] = f"{__package__}.redis.transport:Transport"
    # What a connection says that it is: Flower and others ask, and count the queues of those alone
    # that they know.
    Connection.resolve_aliases |= {"lanes": "redis"}


def lane_of_worker(lanes: Lanes, queues: list[str] | None) -> Lane:
    """The one lane that a worker started with `-Q queues` serves.

    Raises:
        UsageError: when it is none or several; one worker for two lanes would let a flood in one
            delay the other.
        RoutingError: when a queue is not a lane's.
    """
    served = {lanes.for_queue(queue).name for queue in queues or []}
    if len(served) != 1:
        asked = f"queues {', '.join(queues)}" if queues else "no -Q"
        example = lanes.default
        raise UsageError(
            f"a worker serves one lane, and this one was started with {asked}: say, for example, "
            f"-Q {example.queue} for the lane {example.name}"
        )
    return lanes.get(served.pop())


def check_flags(lane: Lane, options: dict[str, Any], conf: Any) -> None:
    """See that nothing on a worker's command line is against what `lane` declares.

    Args:
        options: the flags, by their names in Celery.
        conf: the app's configuration, which holds where there is no flag.

    Raises:
        UsageError: when something is.
    """
    pools: Any = importlib.import_module("celery.concurrency")  # of no use to a sender
    pool = pools.get_implementation(options.get("pool") or conf.worker_pool)
    rules = {
        "-X: a worker serves one lane; leave it out": options.get("exclude_queues"),
        "worker_direct: a worker serves one lane, and this gives each a queue of its own; leave it "
        "out": conf.worker_direct,
        f"--pool: the lane {lane.name} runs in {lane.pool}; say --pool={lane.pool}, or change it "
        "in lanes.toml": pool is not pools.get_implementation(lane.pool),
        f"--autoscale: how many tasks run at once is the lane's to say; set concurrency and "
        f"workers of {lane.name} in lanes.toml": options.get("autoscale"),
        "--pool-start-method: only fork works here; leave it out": (
            (options.get("pool_start_method") or conf.worker_pool_start_method) != "fork"
        ),
        # Killed, the worker would leave it running, and its next start begin another.
        "-B: workers keep the schedule of lanes.toml and of beat_schedule by themselves; leave it "
        "out": options.get("beat"),
    }
    if wrong := [rule for rule, is_broken in rules.items() if is_broken]:
        raise UsageError("\n".join(wrong))


def _lease_options(lane: Lane, node: str) -> dict[str, Any]:
    """Transport options of the one connection with which a worker consumes its lane."""
    dead = ("dead_cap", "dead_size", "dead_age")
    keys = ("concurrency", "lease", "max_deliveries", *dead, "latency_slo")
    own = {"lane": lane.name, "node": node, "in_threads": lane.pool == "threads"}
    return own | {key: getattr(lane, key) for key in keys}


def _configure_worker(
    app: Any, *, instance: Any, conf: Any, options: dict[str, Any], **_: Any
) -> None:
    if instance.app is not app:
        return
    try:
        lane = lane_of_worker(app.lanes, options.get("queues"))
        check_flags(lane, options, conf)
        files = descriptors.needed(lane, options.get("concurrency"))
        descriptors.ensure(files, who=f"a worker of {lane.name}")
    except LanesError as error:
        # Celery logs what a signal's receiver raises and goes on; SystemExit passes.
        logs.say(str(error), level=logging.ERROR)
        raise SystemExit(error.exit_code) from None
    logs.serve(app, lane.name)
    try:
        importlib.import_module(f"{__package__}.contract")  # of no use to a sender
    except ContractError as error:
        for problem in error.problems:
            logs.say(problem, lane.name, level=logging.ERROR)
        raise SystemExit(error.exit_code) from None
    try:
        app.server.check()
    except BrokerError as error:
        if is_final(error):
            logs.say(str(error), lane.name, level=logging.ERROR)
            raise SystemExit(error.exit_code) from None
        # It may be down, or start after us: the worker waits for it.
    app.lease_options = _lease_options(lane, instance.hostname)
    excerpt.bound_logs()
    celeryd_after_setup.connect(functools.partial(_count_slots, app, instance), weak=False)
    from . import keeper, remote  # of no use to a sender

    keeper.install(app, lane)
    drain.install(lane)
    parent.watch(drain.hurry)
    remote.serve(lane)
    try:
        notify.install(app, lane)
    except SettingsError as error:
        logs.say(str(error), lane.name, level=logging.ERROR)
        raise SystemExit(error.exit_code) from None
    worker_shutting_down.connect(functools.partial(_stop, app.server), weak=False)
    worker_shutdown.connect(_end_leases, weak=False)
    other = os.environ.get("CELERY_BROKER_URL")
    if other and other != os.environ.get("BROKER_URL"):
        logs.say(
            "--broker and CELERY_BROKER_URL are not used: BROKER_URL says where the broker is, "
            f"{app.server.endpoint.shown}",
            lane.name,
        )
    # What Celery says past its log, before that is set up and when it stops, has no lane in front.
    warnings.showwarning = lambda message, category, *_: logs.warn(message, category, lane.name)
    celery_worker: Any = importlib.import_module("celery.apps.worker")  # of no use to a sender
    if app.worker_log.format == "json":
        celery_worker.safe_say = lambda text, *_: logs.say(text)
        return
    say = celery_worker.safe_say
    celery_worker.safe_say = lambda text, *to: say(f"{lane.name} | {text}", *to)
    conf.worker_log_format = f"{lane.name} | %(asctime)s %(levelname)s %(message)s"
    conf.worker_task_log_format = (
        f"{lane.name} | %(asctime)s %(levelname)s %(task_name)s[%(task_id)s] %(message)s"
    )


def _count_slots(app: Any, worker: Any, *, instance: Any, **_: Any) -> None:
    """So many tasks may have run when it died: its own flag may say otherwise than the lane."""
    if instance is worker:
        app.lease_options["concurrency"] = instance.concurrency


def _stop(server: Server, **_: Any) -> None:
    from .redis.transport import stop_all  # of no use to a sender

    server.stop()
    stop_all()


def _end_leases(**_: Any) -> None:
    from .redis.transport import end_all  # of no use to a sender

    end_all()


def _checking_at_the_line(define: Any, lanes: Lanes) -> Any:
    """`app.task`, which raises at the line that names an unknown lane, or a key that is none.

    Celery builds a task on first use, so without this the error would name another line.
    """

    @functools.wraps(define)
    def task(*functions: Any, **options: Any) -> Any:
        if options.get("lane") is not None:
            lanes.get(options["lane"])
        decorate = define(*functions, **options)
        key = options.get("key")
        if key is None:
            return decorate

        def check(function: Any) -> None:
            run = functools.partial(function, None) if options.get("bind") else function
            keyed.finder(function.__name__, key, run)

        if functions:
            check(functions[0])
            return decorate

        def checked(function: Any) -> Any:
            check(function)
            return decorate(function)

        return checked

    return task


def _returning_the_first(send: Any, app: Any) -> Any:
    """`app.send_task`, and so `apply_async`, which returns the result of what was sent before.

    Where `unique` says that a task is sent once, and one is under way, its result is returned, and
    nothing is sent: of Celery's signals, `before_task_publish` came then, and no
    `after_task_publish` does.
    """

    @functools.wraps(send)
    def send_task(name: str, *args: Any, **options: Any) -> Any:
        if options.get("unique") in (None, False):
            return send(name, *args, **options)
        if options.get("replace") and options.get("task_id"):
            raise RoutingError(
                f"{name}: replace and task_id cannot be used together: the task that waits keeps "
                "its id; leave one of them out"
            )
        first: list[str] = []
        result_of = options.pop("result_cls", None) or app.AsyncResult
        options["result_cls"] = lambda id_: result_of(first[0] if first else id_)
        return send(name, *args, **options, **{FIRST: first})

    return send_task
