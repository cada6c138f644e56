"""Claims on what two runs on one machine must not share: GPUs and chosen ports.

A claim is a socket bound to a name in Linux's abstract namespace. The kernel gives a name to one process, whoever its
user is, and frees it when that process ends, however it ends; no file is left. Containers with network namespaces of
their own do not see each other's claims.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


def claim(name: str) -> socket.socket | None:
    """Claim a name until the socket is closed; None where another process holds it."""
    claimed = socket.socket(socket.AF_UNIX)
    try:
        claimed.bind(_address(name))
    except OSError as error:
        claimed.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    claimed.listen()  # so that its holder can be asked for
    return claimed


def holder(name: str) -> str:
    """ "pid 123": the process that holds a name, as far as this process may know."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.setblocking(False)
        probe.connect(_address(name))
        pid, _, _ = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if pid:
            return f"pid {pid}"
    return "pid unknown"


def _address(name: str) -> str:
    return f"\0visionrl/{name}"
