"""The lanes runtime: one queue, one kind of worker and one set of limits for each class of work.

What tasks and senders use of it is in `__all__`: `from .lanes import Task`.

Reading order: errors, excerpt, contract, timetable, values, schema, config, deploy, urloptions,
endpoint, settings, timeouts, redis.causes, redis.refusals, redis.clock, redis.sentinel,
redis.connect, redis.store, redis.batch, redis.fetch, redis.identity, redis.schedule, counting,
redis.counters, redis.revocations, protocol, results, keyed, once, remote, routing, envelope,
direct, many, groups, logs, typed, task, redis.leases, redis.transport, deadletters, consumer,
schedule, keeper, beat, drain, sharing, pool, pulse, notify, parent, descriptors, worker, discovery,
serving, bind, broker, workers, capacity, status, planned, metrics, doctor, advise, prove, envfile,
cli, testing. A module imports only from those before it. This file imports nothing until a name is
asked for, because deploy/ is rendered where nothing is installed.
"""

from importlib import import_module
from typing import TYPE_CHECKING

#: The version of celery-lanes-template that this runtime came with, as in its CHANGELOG.md.
__version__ = "1.0.0.dev0"

__all__ = [
    "App",
    "BrokerError",
    "ConfigError",
    "LanesError",
    "RoutingError",
    "SendError",
    "SettingsError",
    "Task",
    "__version__",
    "shared_task",
]

if TYPE_CHECKING:
    from .errors import BrokerError, ConfigError, LanesError, RoutingError, SendError, SettingsError
    from .task import Task
    from .typed import App, shared_task
else:  # hidden, or to mypy any name would be one

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = {"App": ".bind", "Task": ".task", "shared_task": "celery"}.get(name, ".errors")
        return getattr(import_module(module, __name__), name)
