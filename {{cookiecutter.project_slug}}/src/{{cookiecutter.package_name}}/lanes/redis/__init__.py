"""The leased transport: kombu's Redis transport, with messages that no crash can lose.

The life of a message in a lane, all in keys of the lane's own:

1. It is sent: pushed to its queue, a plain Redis list as kombu has it, so that any Celery sender
   will do; with a time in the future, put in `delayed` until then.
2. A worker with a free slot waits for the queue without taking anything from it.
3. It fetches: one script moves up to as many messages as it has free slots from the queue to
   `leased`, each with a lease in `leases` that ends after `lease` seconds. There is no instant in
   which a message is nowhere. Messages that have a key wait in a list for each key, and a token
   stands for each in the queue: then the script takes from the key whose turn it is; see
   scripts/parts/lane.lua.
4. The worker renews its leases each third of that, for as long as it lives, so that a task may
   run for hours on a lease of seconds.
5. It is acknowledged: the lease is deleted.
6. Or the worker dies, and its lease runs out: any worker of the lane puts the message back at the
   front of the queue and counts it. After `max_deliveries` it becomes a dead letter.
"""
