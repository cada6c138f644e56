"""Turns a pod template into a process: mount paths become folders, Service names become loopback ports."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from visionrl.job import Component
from visionrl_core.manifests.common import COMPONENT_LABEL, COMPONENTS, PORT, SUFFIXES, Manifest, component_name
from visionrl_local.folder import LocalFolder
from visionrl_local.ports import LOOPBACK
from visionrl_local.processes import KEEP_ENVIRONMENT, MARK

# A container's home is scratch space; here the user's holds packages and the hub's credentials.
KEPT_ENV = ("HOME",)

Argv = Callable[[Manifest], list[str]]
"""The command line that runs a container."""


@dataclass(frozen=True)
class Probe:
    """``GET path`` every ``period`` seconds."""

    path: str
    period: float
    timeout: float
    failures: int


@dataclass(frozen=True)
class Launch:
    """How to run a component's container as a process."""

    component: Component
    argv: list[str]
    env: dict[str, str]
    mark: str
    """What distinguishes its processes from all others (:mod:`visionrl_local.processes`)."""
    port: int
    grace: float
    """Seconds between SIGTERM and SIGKILL."""
    startup: Probe
    readiness: Probe
    liveness: Probe


def container_argv(container: Manifest) -> list[str]:
    """The container's own command with this environment's Python."""
    command = list(container["command"])
    return [sys.executable, *command[1:]] if command[0] == "python" else command


def launch(
    template: Manifest,
    job_name: str,
    folder: LocalFolder,
    ports: Mapping[Component, int],
    gpus: Mapping[Component, str],
    argv: Argv = container_argv,
) -> Launch:
    """Interpret a pod template. ``gpus``: the devices of each component, in the form of
    ``CUDA_VISIBLE_DEVICES``."""
    container = template["spec"]["containers"][0]
    suffix = template["metadata"]["labels"][COMPONENT_LABEL]
    component = next(name for name in COMPONENTS if SUFFIXES[name] == suffix)
    mounts = _mounts(template["spec"], folder)
    env = {
        variable["name"]: _on_this_machine(_mounted(variable["value"], mounts), job_name, ports)
        for variable in container["env"]
        # What a cluster takes from Secrets, the user's own environment has.
        if variable["name"] not in KEPT_ENV and "value" in variable
    }
    env |= {"VISIONRL_HOST": LOOPBACK, "VISIONRL_PORT": str(ports[component])}
    mark = folder.supervisor.mark(component)
    return Launch(
        component=component,
        argv=argv(container),
        env=os.environ | _no_proxy() | _gpus(gpus.get(component, "")) | env | {MARK: mark} | KEEP_ENVIRONMENT,
        mark=mark,
        port=ports[component],
        grace=float(template["spec"]["terminationGracePeriodSeconds"]),
        startup=_probe(container["startupProbe"]),
        readiness=_probe(container["readinessProbe"]),
        liveness=_probe(container["livenessProbe"]),
    )


# --- environment


def _on_this_machine(value: str, job_name: str, ports: Mapping[Component, int]) -> str:
    """A Service's URL, with or without its namespace, as a component's port; other values as they are."""
    for name in COMPONENTS:
        service = rf"http://{component_name(job_name, name)}(\.[-a-z0-9]+\.svc)?:{PORT}(?=/|$)"
        if found := re.match(service, value):
            return f"http://{LOOPBACK}:{ports[name]}{value[found.end() :]}"
    return value


def _mounts(pod: Manifest, folder: LocalFolder) -> dict[str, str]:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    found = {}
    for mount in pod["containers"][0]["volumeMounts"]:
        path = folder.mount(volumes[mount["name"]])
        if path is not None:
            found[mount["mountPath"]] = str(path)
    return found


def _mounted(value: str, mounts: Mapping[str, str]) -> str:
    for old, new in mounts.items():
        if value == old or value.startswith(f"{old}/"):
            return new + value[len(old) :]
    return value


def _gpus(devices: str) -> dict[str, str]:
    """An index means the same device to this program and to CUDA, whose own order is by speed."""
    return {"CUDA_VISIBLE_DEVICES": devices, "CUDA_DEVICE_ORDER": os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}


def _no_proxy() -> dict[str, str]:
    """The components reach each other directly, whatever proxy the user has set."""
    local = f"{LOOPBACK},localhost"
    return {name: f"{os.environ[name]},{local}" if os.environ.get(name) else local for name in ("NO_PROXY", "no_proxy")}


def _probe(manifest: Manifest) -> Probe:
    return Probe(
        path=manifest["httpGet"]["path"],
        period=float(manifest["periodSeconds"]),
        timeout=float(manifest["timeoutSeconds"]),
        failures=int(manifest["failureThreshold"]),
    )
