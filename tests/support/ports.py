"""Ports for servers that tests start."""

from __future__ import annotations

import socket

_reservations: list[socket.socket] = []


def free_port() -> int:
    """A loopback port that nothing listens on, and that the kernel gives to no other test as long as this process
    lives: it stays bound here, which a server that sets SO_REUSEADDR does not mind."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    _reservations.append(reservation)
    return int(reservation.getsockname()[1])
