"""The lanes runtime: one queue, one kind of worker and one set of limits for each class of work.

Reading order: errors, config, deploy, settings, routing, task, redis, deadletters, consumer,
results, drain, notify, bind, worker, broker, workers, status, prove, cli. A module imports only
from those before it. This file imports nothing, because deploy/ is rendered where nothing is
installed.
"""
