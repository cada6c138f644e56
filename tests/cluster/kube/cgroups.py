"""The control groups that kubelet puts pods in: one root per cluster, in every hierarchy of the machine."""

from pathlib import Path

from .layout import Cluster


def create(cluster: Cluster) -> None:
    for folder in _folders(cluster):
        folder.mkdir(exist_ok=True)
        # A new cpuset is empty, and one without processors and memory takes no process.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (folder / name).exists() and not (folder.parent / "cgroup.controllers").exists():
                (folder / name).write_text((folder.parent / name).read_text())


def remove(cluster: Cluster) -> None:
    for folder in _folders(cluster):
        for group in sorted(folder.rglob("*/"), reverse=True):
            group.rmdir()
        if folder.exists():
            folder.rmdir()


def _folders(cluster: Cluster) -> list[Path]:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(point + cluster.cgroup) for _, point, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]
