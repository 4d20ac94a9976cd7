"""Ports of 127.0.0.1 for servers that are to be started, or are not to be there."""

from __future__ import annotations

import socket

_HELD: list[socket.socket] = []


def hold_port() -> socket.socket:
    """A socket at a port where nobody listens.

    As long as it is open, the kernel gives the port to nobody else, neither to a server that asks
    for any port nor to a client; whoever names it may listen there (with SO_REUSEADDR, as servers
    do).
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def port_of(holder: socket.socket) -> int:
    """The port that a socket is at."""
    port: int = holder.getsockname()[1]
    return port


def free_ports(count: int) -> list[int]:
    """Ports that are held as long as this process lives, all different."""
    held = [hold_port() for _ in range(count)]
    _HELD.extend(held)
    return [port_of(each) for each in held]
