"""Ports of this machine, reserved for the components of a run."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from visionrl.job import Component
from visionrl_core.manifests.common import COMPONENTS
from visionrl_local.claims import claim, holder
from visionrl_local.folder import LocalError

LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def reserved_ports(base: int | None) -> Iterator[dict[Component, int]]:
    """One port per component, for as long as the block runs: consecutive ones from ``base``, or free ones. Raises
    :class:`LocalError` for a port in use.

    A reserved port is bound but not listened on. The kernel gives it to nobody who asks for a free port, while the
    component that is started with its number can listen on it (both set SO_REUSEADDR), also after a restart.
    """
    with contextlib.ExitStack() as stack:
        ports: dict[Component, int] = {}
        for index, component in enumerate(COMPONENTS):
            port = 0 if base is None else base + index
            if port:
                _claim(stack, component, port)
            reservation = stack.enter_context(socket.socket())
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reservation.bind((LOOPBACK, port))
            ports[component] = reservation.getsockname()[1]
        yield ports


def _claim(stack: contextlib.ExitStack, component: Component, port: int) -> None:
    claimed = claim(f"port/{port}")
    if claimed is None:
        raise LocalError(f"port {port} for {component} is in use by another visionrl run ({holder(f'port/{port}')})")
    stack.enter_context(claimed)
    if port_in_use(port):
        raise LocalError(f"port {port} for {component} is in use; choose another --port (three in a row are needed)")


def port_in_use(port: int) -> bool:
    """Whether a program listens on it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False
