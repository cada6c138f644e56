"""Checks of this machine and of the cluster: each looks at one thing and changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from visionrl_core.crd import crd
from visionrl_core.kinds import JOB, NODE
from visionrl_core.manifests.common import digest
from visionrl_local.folder import LocalError, cache_folder
from visionrl_local.ports import reserved_ports

PARTS = {
    "operator": ("kopf", "kubernetes"),
    "taskapp": ("crafter", "numba", "uvicorn"),
    "inference": ("vllm", "transformers"),
    "trainer": ("torch", "transformers", "peft"),
}
"""Packages by which a part is known to be installed."""
LEAST_DISK_GB, LEAST_MEMORY_GB = 10, 8
TORCH_SECONDS = 120.0
TORCH = """import torch
print(torch.__version__, torch.cuda.is_available(), torch.cuda.device_count(), sep="|")"""
GPU = "nvidia.com/gpu"
DEFINITION = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{JOB.plural}.{JOB.group}"


@dataclass(frozen=True)
class Check:
    """What one look found."""

    name: str
    state: Literal["ok", "warning", "missing"]
    text: str
    fix: str = ""


def checks(context: str | None, namespace: str | None) -> Iterator[Check]:
    """All of them, in the order in which a job needs them."""
    yield python()
    yield from packages()
    yield torch()
    yield memory()
    yield from disks()
    yield ports()
    yield from cluster(context, namespace)


def python() -> Check:
    """Not an old one: pip does not install this package there."""
    return Check("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def packages() -> Iterator[Check]:
    yield Check("visionrl", "ok", version("visionrl"))
    for part, names in PARTS.items():
        found = {name: _version(name) for name in names}
        absent = [name for name, number in found.items() if number is None]
        if absent:
            how = f'pip install "visionrl[{part}]"' + (" and vllm" if "vllm" in absent else "")
            fix = f"{how}, where jobs are to run on this machine"
            yield Check(f"packages of {part}", "warning", f"no {', '.join(absent)}", fix)
        else:
            shown = (f"{name} {number}".rstrip() for name, number in found.items())
            yield Check(f"packages of {part}", "ok", ", ".join(shown))


def torch() -> Check:
    """In a process of its own: torch takes a second and a lot of memory to import."""
    if _version("torch") is None:
        return Check("torch", "warning", "not installed", 'pip install "visionrl[trainer]"')
    try:
        ran = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("torch", "missing", f"cannot be imported: {error}", "install it again: make setup")
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        return Check("torch", "missing", f"cannot be imported: {last}", "install it again: make setup")
    number, cuda, count = ran.stdout.strip().split("|")
    if cuda == "True":
        return Check("torch", "ok", f"{number}, {count} GPUs")
    if shutil.which("nvidia-smi"):
        fix = "this build of torch is for CPUs, or does not fit the driver: nvidia-smi shows its version"
        return Check("torch", "warning", f"{number}, no GPU, though there is nvidia-smi", fix)
    return Check("torch", "ok", f"{number}, CPU only: enough for the tiny model")


def memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    text = f"{total:.0f} GB, {os.cpu_count()} cores"
    if not total >= LEAST_MEMORY_GB:
        return Check("memory", "warning", text, f"a job on this machine wants {LEAST_MEMORY_GB} GB")
    return Check("memory", "ok", text)


def disks() -> Iterator[Check]:
    for name, folder in (("runs", Path("runs")), ("models and kernels", cache_folder())):
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free / 1e9
        text = f"{free:.0f} GB free at {folder}"
        if not os.access(place, os.W_OK):
            yield Check(f"disk for {name}", "missing", f"{place} cannot be written to", "choose another folder")
        elif not free >= LEAST_DISK_GB:
            yield Check(f"disk for {name}", "warning", text, f"a job wants {LEAST_DISK_GB} GB")
        else:
            yield Check(f"disk for {name}", "ok", text)


def ports() -> Check:
    try:
        with reserved_ports(None) as found:
            return Check("ports", "ok", f"three free ones on loopback, such as {min(found.values())}")
    except (LocalError, OSError) as error:
        return Check("ports", "missing", str(error), "free some ports on 127.0.0.1")


def cluster(context: str | None, namespace: str | None) -> Iterator[Check]:
    """Access, the definition of our kind, GPU nodes. Without a kubeconfig there is nothing to check."""
    try:
        from visionrl_cli.places.cluster import Cluster
        from visionrl_cli.places.place import PlaceError
    except ModuleNotFoundError as error:
        yield Check("cluster", "warning", f"no {error.name}", 'pip install "visionrl[operator]"')
        return
    try:
        place = Cluster.connect(context, namespace)
    except PlaceError as error:
        state: Literal["missing", "warning"] = "missing" if context else "warning"
        yield Check("cluster", state, str(error), "not needed for jobs on this machine" if not context else "")
        return
    try:
        number = place.read("/version", "no version").get("gitVersion", "?")
        yield Check("cluster", "ok", f"Kubernetes {number} at {place.configuration.host}, {place.title}")
        yield definition(place.read(DEFINITION, "no definition"))
    except PlaceError as error:
        fix = "helm install visionrl charts/visionrl" if "no definition" in str(error) else ""
        yield Check("VisionRLJob", "missing", str(error), fix)
        return
    try:
        yield Check("jobs", "ok", f"{len(place.jobs())} in {place.title}")
        yield nodes(place.read(NODE.path(None), "no nodes").get("items", []))
    except PlaceError as error:
        yield Check("GPU nodes", "warning", str(error), "ask who runs the cluster")


def definition(found: Any) -> Check:
    """Whether the cluster's definition of a VisionRLJob is that of this version."""
    try:
        schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        ours = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    except (KeyError, IndexError, TypeError):
        return Check("VisionRLJob", "missing", "its definition cannot be read", "install the chart again")
    if digest(_names(schema)) == digest(_names(ours)):
        return Check("VisionRLJob", "ok", "its definition has the fields of this version")
    differs = sorted(set(_names(schema)) ^ set(_names(ours)))
    text = f"its definition is of another version: {', '.join(differs[:5])}"
    return Check("VisionRLJob", "warning", text, "upgrade the chart (its CRD, too), or this program")


def nodes(items: list[Any]) -> Check:
    gpus = {
        str(node["metadata"]["name"]): int(node.get("status", {}).get("allocatable", {}).get(GPU, 0)) for node in items
    }
    shown = ", ".join(f"{name} {count}" for name, count in gpus.items() if count)
    if not shown:
        fix = f"enough for the tiny model; a real one needs the GPU operator or device plugin ({GPU})"
        return Check("GPU nodes", "warning", f"none of {len(items)} nodes has a GPU", fix)
    return Check("GPU nodes", "ok", shown)


def _names(schema: Any, path: str = "") -> list[str]:
    """Dotted paths of all fields."""
    found = []
    for name, inner in sorted(schema.items()):
        found.append(f"{path}{name}")
        found += _names(inner.get("properties", {}), f"{path}{name}.")
    return found


def _version(module: str) -> str | None:
    """Of the distribution that brings a module; empty where it has none, None where there is no such module."""
    if find_spec(module) is None:
        return None
    try:
        return version(next(iter(packages_distributions().get(module, [])), module))
    except PackageNotFoundError:
        return ""
