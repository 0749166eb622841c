"""Configure a Celery app for its lanes: every setting that is not Celery's default is here.

But for the format of a worker's log, which names its lane: see serving.py.
"""

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, cast

from celery import Celery
from celery.signals import celeryd_init
from kombu import Connection, Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.imports import symbol_by_name

from . import config, direct, discovery, groups, keyed, logs, settings, timeouts
from .config import Lanes
from .errors import LanesError, RoutingError
from .redis.connect import Server
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
    app.worker_zone = False  # likewise
    app.worker_log = log
    app.amqp_cls = AMQP  # type: ignore[assignment]  # a name or a class
    app.events_cls = f"{__package__}.remote:Events"
    app.control_cls = f"{__package__}.remote:Control"
    app.task_cls = _task_class(celery_app)  # type: ignore[assignment]
    _register_transport()
    groups.send_together()
    app.task = _checking_at_the_line(app.task, lanes)
    app.send_task = direct.shortened(app, _returning_the_first(app))  # type: ignore[method-assign]
    connect(app, environment)
    app.conf.update(
        task_ignore_result=environment.results is None,
        broker_transport="lanes",
        # A send that cannot get through is an error within seconds; see timeouts.py.
        broker_connection_timeout=timeouts.CONNECT,
        broker_pool_acquire_timeout=timeouts.POOL,
        worker_consumer=f"{__package__}.consumer:Consumer",
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
    celeryd_init.connect(functools.partial(_serve, app), weak=False)
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


def _serve(app: Any, *, instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    if instance.app is app:
        from . import serving  # of no use to a sender

        serving.configure(app, instance=instance, conf=conf, options=options)


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


def _returning_the_first(app: Any) -> Any:
    """`app.send_task`, and so `apply_async`, which returns the result of what was sent before.

    Where `unique` says that a task is sent once, and one is under way, its result is returned, and
    nothing is sent: of Celery's signals, `before_task_publish` came then, and no
    `after_task_publish` does.
    """
    own = vars(app).get("send_task")

    @functools.wraps(app.send_task)
    def send_task(name: str, *args: Any, **options: Any) -> Any:
        # Looked up here: a tracer may have replaced it since.
        send = own or functools.partial(type(app).send_task, app)
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
