"""What this project takes from inside other packages, checked when a worker imports this module.

Celery, kombu, billiard, redis-py and supervisor promise nothing of what is listed here: private
names, methods that we override, attributes that we set. With a release in which one of them has
changed, a worker does not start and says so, and does not lose messages instead.
"""

import importlib
import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

from .errors import ContractError

#: By class or module of theirs, and class or module of ours below this package: names, and what
#: each is for; those that our class does not override it uses.
#:
#: A name is an attribute, or a method with the parameters that we know, without `self`: those
#: before `...` in their order, those after it in any. `...` stands for others that are optional,
#: because our override hands on what it gets, or we only call it.
Names = Mapping[tuple[str, str], Mapping[str, str]]

WORKER: Names = {
    ("celery.app.base:Celery", "bind"): {
        "amqp_cls": "Set: messages and connections are made by our AMQP.",
        "task_cls": "Set: tasks are of our Task.",
        "backend_cls": "Set: results go to our Backend.",
        "control_cls": "Set: remote control is sent by ours.",
        "events_cls": "Set: events are sent by ours.",
        "task(...)": "Wrapped: an unknown lane is an error at the line that names it.",
        "send_task(name, ..., task_id, result_cls)": "Wrapped: what is sent once has one result.",
    },
    ("celery.app.base:Celery", "beat"): {
        "Beat": "Set: `celery beat` runs nothing that workers keep.",
        "subclass_with_self(Class, ...)": "Called: ours, of this app.",
    },
    ("celery.apps.beat:Beat", "beat:Beat"): {
        "start_scheduler()": "What workers keep is hidden from it.",
        "scheduler_cls": "Read: whether it has entries of its own.",
    },
    ("celery.beat:Service", "beat"): {
        "scheduler": "Read: its entries.",
    },
    ("kombu.transport.redis:Channel", "schedule"): {
        "create_publish_batch(max_size)": "Set: what it would send is sent by a script.",
        "basic_publish(message, exchange, routing_key, **kwargs)": "Called: with our batch.",
    },
    ("celery.app.task:Task", "schedule"): {
        "__header__": "Called: whether an entry's arguments fit.",
    },
    ("celery.app.amqp:AMQP", "routing:AMQP"): {
        "Connection": "Every connection is to the broker of the environment.",
        "Router(queues, create_missing)": "A message goes to its lane.",
        "as_task_v2(task_id, name, args, kwargs, countdown, eta, group_id, group_index, expires, "
        "..., now, argsrepr, kwargsrepr)": "Times count from now by the broker's clock.",
        "create_task_message": "A message is of protocol 2.",
        "send_task_message": "A message is stamped, and its sending has an end.",
        "_create_task_sender()": "Called: Celery's own sender, behind ours.",
    },
    ("celery.app.amqp:AMQP", "many"): {
        "_event_dispatcher": "Used: for the events of `send_many`.",
    },
    ("celery.app.routes:Router", "routing:Router"): {
        "route(options, name, args, kwargs, task_type)": "A message goes to its lane.",
    },
    ("kombu.connection:Connection", "routing:Connection"): {
        "__init__(hostname, ..., port, virtual_host, transport, transport_options, "
        "connect_timeout)": "The server decides where to, and not a URL.",
        "as_uri(include_password, ...)": "The URL is shown as the environment said it.",
    },
    ("kombu.connection:Connection", "bind"): {
        "resolve_aliases": "Set: monitors are told that our transport is redis.",
    },
    ("kombu.transport", "bind"): {"TRANSPORT_ALIASES": "Set: our transport has a name there."},
    ("celery.app.task:Task", "task:Task"): {
        "max_retries": "Set: its lane's.",
        "ignore_result": "Likewise.",
        "Request": "A worker makes our Request of a message.",
        "apply(args, kwargs, ...)": "A lane that does not exist is an error here, too.",
        "signature_from_request(request, args, kwargs, queue, ...)": "A retry may change lanes.",
        "bind(app)": "A task gets its lane's limits when it is defined.",
        "__header__": "Called: `send_many` checks arguments as `delay` does.",
        "run(...)": "Read: which of its arguments is the key.",
    },
    ("celery.app.base:Celery", "direct"): {
        "send_task(name, args, kwargs, ..., task_id)": "Read: whether somebody replaced it.",
        "_tasks": "Read: the task of a name, without finalizing the app.",
    },
    ("celery.app.task:Task", "direct"): {
        "_get_exec_options()": "Called: the options that a task gives to each send.",
    },
    ("kombu.messaging:Producer", "direct"): {
        "publish(body, ...)": "Read: whether it is kombu's.",
        "_batch_local": "Read: whether a message goes in a batch.",
    },
    ("kombu.messaging:_ProducerBatchState", "direct"): {
        "_get_session(channel)": "Called: our batch, within kombu's.",
    },
    ("kombu.messaging:Producer", "groups"): {
        "_channel": "Read: whether it was closed, by an outage.",
    },
    ("celery.canvas:group", "groups"): {
        "_apply_tasks(tasks, producer, app, ...)": "Wrapped: a group's tasks go in a batch.",
    },
    ("kombu.transport.redis:PublishBatch", "redis.batch:Batch"): {
        "flush()": "A lane's messages go in few commands.",
        "_check_usable()": "Called: after a failure it is not.",
        "_failed": "Set: likewise.",
        "max_size": "Read: how many are kept at the most.",
    },
    ("celery.result:AsyncResult", "direct"): {"ignored": "Set: as Celery's send does."},
    ("redis.client:Redis", "direct"): {
        "execute_command(*args, **options)": "Read: whether it is redis-py's.",
    },
    ("kombu.messaging:Producer", "routing"): {
        "_channel": "Read: whether it was closed, by an outage.",
    },
    ("celery.apps.worker", "serving"): {
        "safe_say(msg, ...)": "Wrapped: what is said past the log has its lane in front.",
    },
    ("celery.worker.consumer.consumer:Consumer", "consumer:Consumer"): {
        "create_task_handler(...)": "A message passes the firewall first.",
        "connection_for_read(heartbeat)": "This one connection holds leases.",
        "ensure_connected(conn)": "The log says once why the broker cannot be used.",
        "on_connection_error_after_connected(exc)": "No warning that tasks will run again.",
        "on_close()": "What children have begun is heard of before tasks are forgotten.",
        "on_unknown_task(body, message, exc)": "It becomes a dead letter, and is not dropped.",
        "on_invalid_task(body, message, exc)": "Likewise.",
        "on_decode_error(message, exc)": "Likewise.",
        "event_dispatcher": "Read: monitors hear of what is set aside.",
        "controller": "Read: the worker, and the time limits that it was given.",
        "first_connection_attempt": "Set: as Celery's `ensure_connected` does.",
    },
    ("celery.worker.request:Request", "consumer:Request"): {
        "eta": "The broker's clock alone decides what is due.",
        "tzlocal": "Looked up once, and not for each message.",
        "__init__(message, ..., app, task, maybe_iso8601)": "Its time limits are the shortest "
        "of all.",
        "time_limits": "Set: the shortest of the call's, the task's and the worker's.",
        "_context": "Read: the chain and the errbacks of what has expired.",
        "maybe_expire()": "The broker's clock decides what has expired.",
        "acknowledge()": "A failure is set aside where it would be acknowledged.",
        "reject(requeue)": "Likewise.",
        "on_accepted(pid, time_accepted)": "How long it waited is counted.",
        "on_failure(exc_info, ...)": "Why it failed is noted for the dead letter.",
        "on_timeout(soft, timeout)": "Likewise, of the hard time limit.",
        "_announce_revoked(reason, terminated, signum, expired)": "Likewise, of expiry.",
        "_retry_worker_lost(exc, exc_info)": "A task that runs again has not failed.",
        "_success_was_stored()": "A task that ended well is no dead letter.",
        "on_success(failed__retval__runtime, ...)": "Wrapped: sys.exit() in a thread fails.",
        "acknowledged": "Set: the step that makes a dead letter acknowledges.",
        "_already_revoked": "Set: what has expired, and waits for room, is not run.",
    },
    ("billiard.einfo:ExceptionInfo", "consumer"): {
        "exception": "Set: a MemoryError would end the worker.",
    },
    ("celery.concurrency.prefork:TaskPool", "consumer"): {
        "_pool": "Read: the children, whose pipes are read before a stop.",
    },
    ("celery.concurrency.prefork:TaskPool", "pool"): {"Pool": "Set: its children are our Pool."},
    ("celery.concurrency.asynpool:ResultHandler", "pool:ResultHandler"): {
        "_make_process_result(hub)": "A pipe that is watched is not registered again.",
    },
    ("celery.concurrency.asynpool:AsynPool", "pool:Pool"): {
        "ResultHandler": "Results are read by ours.",
        "register_with_event_loop(hub)": "The loop is kept, which knows what was read in part.",
        "_create_timelimit_handlers(hub)": "A hard limit does not wait for a longer soft one.",
        "on_timeout_set": "Wrapped: likewise.",
        "_create_write_handlers(hub, ...)": "A child is given its task at once, in one write.",
        "_quick_put": "Wrapped: likewise.",
        "_payload": "Set, of a task that is put: header and body as one.",
        "on_poll_start": "Replaced: likewise.",
        "outbound_buffer": "Read: the tasks that wait for a child.",
        "_all_inqueues": "Read: the children's pipes.",
        "_active_writes": "Read: those that a task is written to.",
        "_busy_workers": "Read: those whose child runs a task.",
        "sched_strategy": "Read: whether these are passed over.",
        "_fileno_to_outq": "Read: the pipes that children answer through.",
        "_cache": "Read: the tasks given to children.",
        "handle_result_event(*args)": "Called: reads a pipe that the loop does not.",
    },
    ("kombu.asynchronous.hub:Hub", "pool"): {
        "readers": "Read: who reads a pipe.",
        "consolidate_callback": "Called: Celery's way to write tasks to pipes that have room.",
    },
    ("kombu.asynchronous.timer:Timer", "pool"): {
        "_queue": "Changed: what is cancelled is taken out.",
    },
    ("billiard.pool:ApplyResult", "pool"): {
        "_write_to": "Read: whether a child was given the task.",
        "_accepted": "Read: whether it was heard to begin.",
    },
    ("billiard.pool", "drain"): {
        "GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL": "Read: seconds.",
        "GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT": "Set: a child waits 3 s at its end, not 30.",
        "reset_signals(handler, full)": "Wrapped: children leave SIGTERM to the worker.",
        "_kill(pid, signal)": "Set: so they are ended by another signal.",
        "TERM_SIGNAL": "Likewise.",
    },
    ("billiard.popen_fork", "drain"): {"TERM_SIGNAL": "Set: likewise."},
    ("celery.apps.worker", "drain"): {
        "install_worker_restart_handler(worker, ...)": "Set: a SIGHUP stops the worker.",
        "install_HUP_not_supported_handler(worker, ...)": "Likewise.",
    },
    ("celery.bootsteps:StartStopStep", "pulse:_ticking.<locals>.Ticking"): {
        "requires": "The loop ticks from when tasks are consumed.",
        "start(parent)": "Likewise.",
        "stop(parent)": "No tick is expected while the consumer is down.",
    },
    ("celery.events.dispatcher:EventDispatcher", "remote:Dispatcher"): {
        "_publish(event, producer, routing_key, ...)": "An event is tried once.",
    },
    ("celery.app.events:Events", "remote:Events"): {
        "dispatcher_cls": "Events are sent by our Dispatcher.",
    },
    ("kombu.pidbox:Mailbox", "remote:Mailbox"): {
        "producer_or_acquire(producer, channel)": "Questions and answers are tried once.",
    },
    ("celery.worker.control:Panel", "remote"): {
        "data": "Set: a lane's worker refuses what would have it serve anything else.",
    },
    ("celery.worker.consumer.consumer:Consumer", "remote"): {
        "update_strategies()": "Called: time limits that were set by remote control count.",
    },
    ("celery.worker.control", "remote"): {
        "add_consumer(state, queue, ...)": "Replaced, and called for the lane's own queue.",
        "cancel_consumer(state, queue, **_)": "Replaced, and called for other queues.",
        "time_limit(state, ..., task_name, hard, soft)": "Wrapped: see `update_strategies`.",
        "shutdown(state, msg, ...)": "Replaced: by the signal that drains.",
        "revoke(state, task_id, ...)": "Wrapped: what is revoked is kept.",
        "terminate(state, signal, task_id, ...)": "Likewise.",
        "revoke_by_stamped_headers(state, headers, ...)": "Likewise.",
        **{
            f"{name}(state, ...)": "Replaced: refused."
            for name in ("pool_grow", "pool_shrink", "pool_restart", "autoscale")
        },
        "election(state, id, topic, ...)": "Replaced: refused.",
    },
    ("celery.app.control:Control", "remote:Control"): {
        "Mailbox": "Remote control goes through our Mailbox.",
        "broadcast(command, arguments, ...)": "Revocations are noted in Redis.",
    },
    ("kombu.transport.virtual.base:Message", "redis.transport:Message"): {
        "__init__(payload, channel, **kwargs)": "A malformed one can be built, too.",
    },
    ("kombu.transport.redis:QoS", "redis.transport:QoS"): {
        "can_consume()": "Messages that end in no time are fetched several at once.",
        "append(message, delivery_tag)": "The script that fetched it has recorded it.",
        "ack(delivery_tag)": "Leases know what to do while the broker is away.",
        "reject(delivery_tag, requeue)": "Likewise; a requeue counts as a delivery.",
        "restore_unacked(client)": "What runs is not handed back with the rest.",
        "restore_visible(...)": "Leases are looked after by their own thread.",
    },
    ("kombu.transport.virtual.base:QoS", "redis.transport"): {
        "append(message, delivery_tag)": "Called: past kombu's second write.",
        "ack(delivery_tag)": "Called: frees the slot, and writes nothing.",
        "_flush()": "Called: forgets what was acknowledged.",
        "_delivered": "Read: what the channel holds.",
    },
    ("kombu.transport.redis:Channel", "redis.transport:LeasedChannel"): {
        "Message": "A malformed message can be built, too.",
        "from_transport_options": "A lane's options reach its channel.",
        "__init__(*args, **kwargs)": "A prefix of keys is refused.",
        "_get_pool(asynchronous)": "Connections are the server's.",
        "conn_or_acquire(client)": "One client is kept for all commands.",
        "_put(queue, message, **kwargs)": "A message with a time waits in Redis.",
        "_purge(queue)": "What is delayed is purged, too.",
        "_queue_bind(exchange, routing_key, pattern, queue)": "Bindings of old are removed.",
        "create_publish_batch(max_size)": "A batch is ours.",
        "typeof(exchange, ...)": "A closed channel has kombu connect anew.",
        "basic_consume(queue, *args, **kwargs)": "No queue is consumed without leases.",
        "basic_get(queue, no_ack, ...)": "Likewise.",
        "connection": "Set: what a closed channel leaves to its producers.",
        "sep": "Read: joins the parts of a binding.",
        "keyprefix_queue": "Read: an exchange's bindings.",
        "keyprefix_binding_permanent": "Likewise.",
        "closed": "Read.",
        "_brpop_start(timeout)": "Messages are fetched by lease, and not by BRPOP.",
        "_brpop_read(**options)": "Likewise.",
        "maybe_refresh_binding_expiry()": "No traceback a second while the server refuses.",
        "close()": "What the last round brought is handed back.",
        "QoS": "Set: a worker's acknowledges by lease.",
        "keyprefix_fanout": "Set: the database is the server's.",
        "_in_poll": "Set: the connection that waits for a reply.",
        "_registered": "Read: the event loop polls this channel.",
        "_on_connection_disconnect(connection)": "Called: tells the loop.",
        "_create_client(...)": "Called: once.",
        "_publish_batch": "Read: the pipeline that `_put` is to add to.",
    },
    ("kombu.transport.redis:MultiChannelPoller", "redis.transport:Poller"): {
        "on_poll_start()": "Each round sends acknowledgements.",
        "_channels": "Read: those whose reply may be late.",
    },
    ("kombu.transport.redis:Transport", "redis.transport:Transport"): {
        "Channel": "Channels are ours.",
        "__init__(*args, **kwargs)": "The poller is ours.",
        "register_with_event_loop(connection, loop)": "Whether a loop sends acknowledgements.",
        "cycle": "Set: the poller.",
        "_callbacks": "Read: whether the queue is still consumed.",
        "_deliver(message, queue)": "One of protocol 1 is upgraded on its way to the consumer.",
    },
    ("kombu.utils.json:JSONEncoder", "redis.connect:Server"): {
        "__json__": "Called: what `inspect stats` shows of the broker.",
    },
    ("redis.connection:AbstractConnection", "redis.connect:_Placed"): {
        "connect_check_health(...)": "Connects to the first server that lets it.",
        "send_packed_command(command, check_health)": "Nothing goes to an old master.",
        "read_response(...)": "A replica is not the server that was meant.",
        "disconnect(...)": "The event loop hears of it.",
        "_sock": "Read: whether there is a connection.",
        "pid": "Read: whether it was its parent's, before a fork.",
    },
    ("redis.connection:ConnectionPool", "redis.connect"): {
        "make_connection()": "Called: for one that is kept for sending.",
    },
    ("redis.connection:Connection", "redis.connect:_Placed"): {
        "__init__(..., **kwargs)": "A connection knows its server.",
        "host": "Set: where to connect to.",
        "port": "Likewise.",
    },
    **{
        (f"redis.connection:{kind}", "redis.connect:_Placed"): {
            "__init__(..., **kwargs)": "A connection knows its server."
        }
        for kind in ("SSLConnection", "UnixDomainSocketConnection")
    },
    ("celery.backends.redis:RedisBackend", "results:Backend"): {
        "retry_policy": "Whoever waits for a result is told in time that none comes.",
        "__init__(...)": "The URL is the environment's.",
        "_create_client(**params)": "Connections are the server's.",
        "set(key, value, ...)": "One try; the task's slot waits for it.",
        "as_uri(include_password)": "No secret is told.",
        "on_task_call(producer, task_id)": "A send does not wait for the backend.",
        "remove_pending_result(result)": "Nothing, where nobody has waited.",
        "_pending_results": "Read: who waits.",
        "_wait_for_pending(result, ..., on_interval)": "Looks once more when it has subscribed.",
        "on_chord_part_return(request, state, result, ...)": "Its loss is not the broker's.",
        "store_result(task_id, result, state, traceback, request, ...)": "Likewise.",
        "url": "Set: what is shown of it.",
    },
}
#: An extra, and so checked by `workers` alone.
SUPERVISOR: Names = {
    ("supervisor.options:ServerOptions", "workers:_supervise.<locals>.Options"): {
        "get_signal()": "A second Ctrl-C, and a terminal that was closed.",
        "readfd(fd)": "Lines stay whole where those of several processes come together.",
    },
    ("supervisor.supervisord:Supervisor", "workers"): {
        "first": "Set in its options, as supervisor's own `main` does.",
        "test": "Likewise.",
    },
}


def check(names: Names) -> None:
    """See that all that is borrowed is there, as we know it.

    Raises:
        ContractError: when it is not, with a line for each name.
    """
    if problems := list(_problems(names)):
        raise ContractError(problems)


def _problems(names: Names) -> Iterator[str]:
    for (theirs, _), wanted in names.items():
        module, _, class_ = theirs.partition(":")
        try:
            place = importlib.import_module(module)
            place = getattr(place, class_) if class_ else place
        except (ImportError, AttributeError):
            yield _problem(theirs, "is gone")
            continue
        for each in wanted:
            name, opened, parameters = each.partition("(")
            if change := _change(place, name, parameters[:-1] if opened else None):
                yield _problem(f"{theirs}{'.' if class_ else ':'}{name}", change)


def _problem(name: str, change: str) -> str:
    package = name.partition(".")[0]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    return f"{package} {version}: {name} {change}; install the release that pyproject.toml asks for"


def _change(place: Any, name: str, known: str | None) -> str | None:
    """How `name` differs from what we know: its parameters, or None for an attribute."""
    try:
        found = inspect.getattr_static(place, name)
    except AttributeError:
        return None if known is None and _is_mentioned(place, name) else "is gone"
    function = getattr(found, "__func__", found)  # of a class method
    if not inspect.isroutine(function):
        return None if known is None else "is no method any more"
    if known is None:
        return "is a method now"
    parameters = list(inspect.signature(function).parameters.values())
    parameters = parameters[1:] if isinstance(place, type) else parameters
    if _fit(parameters, known):
        return None
    return f"takes ({', '.join(map(_name, parameters))}), and not ({known})"


def _fit(parameters: list[inspect.Parameter], known: str) -> bool:
    first, more, last = known.partition("...")
    names, wanted = list(map(_name, parameters)), list(filter(None, first.split(", ")))
    if not more or names[: len(wanted)] != wanted:
        return names == wanted
    named = set(filter(None, last.split(", ")))
    others = [each for each in parameters[len(wanted) :] if _name(each) not in named]
    required = [each for each in others if each.default is each.empty and _name(each)[0] != "*"]
    return named <= set(names) and not required


def _name(parameter: inspect.Parameter) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    return stars.get(parameter.kind.name, "") + parameter.name


def _is_mentioned(place: Any, name: str) -> bool:
    """Whether a class's methods name this attribute: its instances have more than it has."""
    classes = inspect.getmro(place) if isinstance(place, type) else ()
    members = [member for each in classes for member in vars(each).values()]
    functions = [member.__code__ for member in members if isinstance(member, FunctionType)]
    codes = [code for function in functions for code in _with_nested(function)]
    return any(name in (*code.co_names, *code.co_consts) for code in codes)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _with_nested(each)


check(WORKER)
