"""Make a process of Celery's the worker of a lane: what it says, holds, keeps and answers to.

Apart from `bind`, so that a sender does not import what only a worker uses.
"""

import functools
import importlib
import logging
import os
import warnings
from typing import Any

from celery.apps import worker
from celery.concurrency import get_implementation
from celery.signals import celeryd_after_setup, worker_shutdown, worker_shutting_down

from . import descriptors, excerpt, logs, parent
from .config import Lane, Lanes
from .errors import BrokerError, ContractError, LanesError, SettingsError, UsageError
from .redis.connect import Server
from .redis.refusals import is_final

_CELERYS: Any = worker  # its module: what it says is replaced


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
    pool = get_implementation(options.get("pool") or conf.worker_pool)
    rules = {
        "-X: a worker serves one lane; leave it out": options.get("exclude_queues"),
        "worker_direct: a worker serves one lane, and this gives each a queue of its own; leave it "
        "out": conf.worker_direct,
        f"--pool: the lane {lane.name} runs in {lane.pool}; say --pool={lane.pool}, or change it "
        "in lanes.toml": pool is not get_implementation(lane.pool),
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


def configure(app: Any, *, instance: Any, conf: Any, options: dict[str, Any]) -> None:
    """Make this process the worker of the one lane that it was started for.

    Args:
        instance: Celery's worker.
        conf: the app's configuration.
        options: the flags of its command line, by their names in Celery.

    Raises:
        SystemExit: when it cannot be one; why has been said in a line for each problem.
    """
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
        importlib.import_module(f"{__package__}.contract")
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
    from . import drain, keeper, notify, remote, sharing  # what they override is there

    app.lease_options = _lease_options(lane, instance.hostname)
    excerpt.bound_logs()
    celeryd_after_setup.connect(functools.partial(_count_slots, app, instance), weak=False)
    keeper.install(app, lane)
    drain.install(lane)
    if lane.pool == "prefork":
        from . import pool

        pool.install()
        sharing.install()
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
    if app.worker_log.format == "json":
        _CELERYS.safe_say = lambda text, *_: logs.say(text)
        return
    say = _CELERYS.safe_say
    _CELERYS.safe_say = lambda text, *to: say(f"{lane.name} | {text}", *to)
    conf.worker_log_format = f"{lane.name} | %(asctime)s %(levelname)s %(message)s"
    conf.worker_task_log_format = (
        f"{lane.name} | %(asctime)s %(levelname)s %(task_name)s[%(task_id)s] %(message)s"
    )


def _count_slots(app: Any, worker: Any, *, instance: Any, **_: Any) -> None:
    """So many tasks may have run when it died: its own flag may say otherwise than the lane."""
    if instance is worker:
        app.lease_options["concurrency"] = instance.concurrency


def _stop(server: Server, **_: Any) -> None:
    from .redis.transport import stop_all  # likewise

    server.stop()
    stop_all()


def _end_leases(**_: Any) -> None:
    from .redis.transport import end_all  # likewise

    end_all()
