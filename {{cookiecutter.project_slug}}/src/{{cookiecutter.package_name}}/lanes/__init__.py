"""The lanes runtime: one queue, one kind of worker and one set of limits for each class of work.

Reading order: errors, contract, config, deploy, urloptions, endpoint, settings, timeouts,
redis.causes, redis.refusals, redis.clock, redis.sentinel, redis.connect, redis.store, redis.fetch,
redis.identity, results, routing, task, redis.leases, redis.transport, deadletters, remote,
consumer, drain, notify, bind, worker, broker, workers, status, prove, cli. A module imports only
from those before it. This file imports nothing, because deploy/ is rendered where nothing is
installed.
"""
