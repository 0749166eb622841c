"""Pass on every packet between two interfaces, late: `relay.py INTERFACE INTERFACE SECONDS`."""

import collections
import select
import socket
import struct
import sys
import time

# linux/if_packet.h and linux/if_ether.h; the socket module has few of them.
_SOL_PACKET = 263
_ADD_MEMBERSHIP = 1
_PROMISCUOUS = 1
_WITH_HEADER = 15  # a header says what checksums and segments the card would have made
_IGNORE_OUTGOING = 23  # else it would read what it has written
_ALL = 3  # protocols

_LARGEST = 1 << 17  # bytes; a packet that is still to be cut into segments has up to 64 KiB


def _opened(interface: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(_SOL_PACKET, _WITH_HEADER, 1)
    end.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    end.bind((interface, _ALL))
    member = struct.pack("iHH8s", socket.if_nametoindex(interface), _PROMISCUOUS, 0, b"")
    end.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
    return end


def relay(first: str, second: str, delay: float) -> None:
    """Pass on packets both ways, each `delay` seconds after it came."""
    one, other = _opened(first), _opened(second)
    across = {one: other, other: one}
    waiting: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    print("relaying", flush=True)
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([one, other], [], [], timeout)
        for end in readable:
            waiting.append((time.monotonic() + delay, across[end], end.recv(_LARGEST)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, packet = waiting.popleft()
            end.send(packet)


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], float(sys.argv[3]))
