"""Bringing a cluster up and taking it down."""

import shutil
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from . import binaries, cgroups, control_plane, images, manifests, node, pki, tools
from .containerd import Containerd
from .host import RUN_PACKAGES, KubeError, cache, locked, progress, require_packages, require_root, wait_until
from .kubectl import Client, Kubectl
from .layout import Cluster
from .sandbox import Sandbox
from .storage import Storage

FULL, CONTROL_PLANE = "full", "control plane only"
DNS = Path(__file__).with_name("dns.py")


@dataclass(frozen=True)
class Running:
    """A cluster that is up, or another that a kubeconfig names (cluster is None then)."""

    kubeconfig: Path
    kubectl: Kubectl
    helm: Client
    cluster: Cluster | None = None

    def load(self, tag: str) -> None:
        """Makes an image that was built here usable in pods (with imagePullPolicy other than Always)."""
        if self.cluster is None:
            raise KubeError(f"{tag}: push it to a registry that the cluster can reach; only a cluster of ours loads it")
        if Containerd(self.cluster.containerd_socket).load(Storage(), tag):
            progress(f"loaded {tag}")


def existing(kubeconfig: Path) -> Running:
    """Any cluster, with the same tools."""
    programs = tools.ensure()
    return Running(kubeconfig, Kubectl(programs.kubectl, kubeconfig), Client(programs.helm, kubeconfig))


def up(cluster: Cluster, *, control_plane_only: bool = False) -> Running:
    """Brings the cluster up, or finds it up. What a crashed run left is taken down first.

    Interrupted or failing halfway, it takes down what it started; the logs go to log/ in the cache.
    """
    require_root()
    require_packages(RUN_PACKAGES)
    programs, servers = tools.ensure(), binaries.ensure()
    mode = CONTROL_PLANE if control_plane_only else FULL
    running = Running(
        cluster.kubeconfig(),
        Kubectl(programs.kubectl, cluster.kubeconfig()),
        Client(programs.helm, cluster.kubeconfig()),
        cluster,
    )
    with _exclusive(cluster):
        if is_up(cluster) and _mode(cluster) == mode:
            return running
        if is_up(cluster):
            raise KubeError(f"cluster {cluster.name} is up as {_mode(cluster)}: take it down first")
        _remove(cluster)
        try:
            _start(cluster, servers, running.kubectl, mode)
        except BaseException:
            _keep_logs(cluster)
            _remove(cluster)
            raise
    return running


def is_up(cluster: Cluster) -> bool:
    return Sandbox.find(cluster) is not None and _mode(cluster) is not None


def down(cluster: Cluster) -> None:
    """Stops what up() started and removes all of it; no error if there is nothing."""
    require_root()
    with _exclusive(cluster):
        _remove(cluster)


def _exclusive(cluster: Cluster) -> AbstractContextManager[None]:
    return locked(cache() / f"cluster-{cluster.name}.lock")


def _start(cluster: Cluster, servers: Path, kubectl: Kubectl, mode: str) -> None:
    started = time.monotonic()

    def step(what: str) -> None:
        progress(f"{time.monotonic() - started:5.1f} s  {what}")

    cluster.root.mkdir(parents=True)
    pki.create(cluster)
    sandbox = Sandbox.start(cluster)
    step("namespaces and certificates")
    if mode == FULL:
        storage = Storage()
        images.ensure_pause(storage, servers)
        containerd = Containerd.start(cluster, sandbox, storage)
        containerd.load(storage, images.PAUSE)
        step("containerd")
    control_plane.start(cluster, sandbox, servers, kubectl)
    step("API server ready")
    if mode == FULL:
        node.start(cluster, sandbox, servers, containerd, kubectl)
        step("node ready")
        kubectl.apply(*manifests.dns_service(cluster), *manifests.volumes(cluster))
        dns_environment = {"KUBECONFIG": str(cluster.kubeconfig()), "NO_PROXY": "*", "no_proxy": "*"}
        dns = sandbox.spawn("dns", sys.executable, DNS, str(cluster.node_address), env=dns_environment)
        dns.wait_for(lambda: _listens(sandbox), "DNS", 30)
    kubectl.wait_for("serviceaccount", "default", "--namespace", "default")  # without it pods are refused
    (cluster.root / "mode").write_text(mode)  # last: a cluster with this file is complete
    step("cluster up")


def _listens(sandbox: Sandbox) -> bool:
    return bool(sandbox.run("ss", "-Hltn", "sport = :53"))


def _mode(cluster: Cluster) -> str | None:
    path = cluster.root / "mode"
    return path.read_text() if path.exists() else None


def _remove(cluster: Cluster) -> None:
    if sandbox := Sandbox.find(cluster):
        sandbox.stop()
        # The kernel removes the link with the sandbox's network namespace, some time after its last process.
        link = Path("/sys/class/net", cluster.link)
        wait_until(lambda: not link.exists(), f"the end of the network link {cluster.link}", 60, 0.05)
    cgroups.remove(cluster)
    if cluster.root.exists():
        shutil.rmtree(cluster.root)


def _keep_logs(cluster: Cluster) -> None:
    """The last failed start's logs, for whoever has to find out why."""
    if not (cluster.root / "log").exists():
        return
    kept = cache("log") / cluster.name
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(cluster.root / "log", kept)
    progress(f"the processes' logs: {kept}")
