"""How long each wait lasts, in seconds: no wait of this project is without an end.

Every connection that a process opens gets these, Celery's own among them. A server that has
vanished without a word costs one wait, and then an error that says so.
"""

import socket

#: To open a connection to the broker. A host that is there answers within a round trip.
CONNECT = 2.0
#: For the reply to a command that does not wait by itself. Redis answers in milliseconds; it may
#: stand still for a second or two while it forks or its disk is busy.
REPLY = 4.0
#: That a process which was told to stop does not try a server again that was silent.
SILENT = 2.0
#: That a worker has the server wait for a message. A delayed task is late by this at the most.
FETCH = 0.5
#: For all of a send, with its retries: none begins that could end after it. The caller's errors.
SEND = 10.0
#: For a sender to ask what time it is at the server; without an answer its own clock must do.
CLOCK = 1.0
#: To reach a Sentinel, and for its reply; then the next one is asked.
SENTINEL = 1.0
#: That commands are held while Sentinels make another server the master; then they fail.
FAIL_OVER = 8.0
#: To open a connection to the result backend, and for its reply: a worker waits for both with a
#: task's result in hand, and its lane with it.
RESULTS_CONNECT = 1.0
RESULTS_REPLY = 2.0
#: That results are given up at once, after the backend has failed: a lane keeps its pace.
RESULTS_AWAY = 10.0
#: For somebody who waits for a result to reach a backend that is away.
RESULTS_PATIENCE = 20.0
#: Between two signs of life on a connection that only listens (remote control).
HEALTH = 5.0
#: That `doctor` looks through a database for lanes and messages of others; it may hold millions of
#: other keys. Then it says that it has not seen all.
SCAN = 5.0
#: Between a SIGTERM and a second one that hands back what runs: Celery hangs when one finds it
#: handling the other.
AGAIN = 0.5
#: For a sender's thread to get one of its process's connections, when others have them all.
POOL = 10.0

#: For the kernel: a connection whose peer is silent for this long is an error, also when nobody
#: waits for a reply. Linux names them all; elsewhere, those that the system has.
SILENCE = 8.0
KEEPALIVE = {
    getattr(socket, name): value
    for name, value in {
        "TCP_KEEPIDLE": 4,  # seconds without traffic, then it asks
        "TCP_KEEPINTVL": 2,  # seconds between two questions
        "TCP_KEEPCNT": 2,  # questions without an answer
        "TCP_USER_TIMEOUT": int(1000 * SILENCE),  # milliseconds for what was sent to be received
    }.items()
    if hasattr(socket, name)
}
