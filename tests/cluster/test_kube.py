"""The test cluster itself: what other cluster tests take for granted holds, and it leaves nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .kube import cluster as kube_cluster
from .kube import images
from .kube.host import KubeError, cache, locked, wait_until
from .kube.layout import Cluster
from .kube.manifests import STORAGE_CLASS
from .kube.sandbox import Sandbox
from .kube.storage import Storage, builds_lock

pytestmark = pytest.mark.cluster

PROBE = "localhost/visionrl-probe:test"
PROBE_FOLDER = Path(__file__).parent / "kube" / "testdata" / "probe"
REPOSITORY = Path(__file__).parents[2]
RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture
def ours(kube: kube_cluster.Running) -> kube_cluster.Running:
    if kube.cluster is None:
        pytest.skip("about the cluster that this repository brings up, not the one of VISIONRL_E2E_KUBECONFIG")
    return kube


@pytest.fixture
def probe(ours: kube_cluster.Running) -> str:
    """The tag of a small web server's image, usable in pods."""
    images.build(PROBE_FOLDER, PROBE)
    ours.load(PROBE)
    return PROBE


def pod(name: str, image: str, container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "containers": [{"name": "main", "image": image, "securityContext": RESTRICTED, **(container or {})}],
            "terminationGracePeriodSeconds": 0,
            **spec,
        },
    }


def test_the_node_is_ready_and_offers_gpus(ours: kube_cluster.Running) -> None:
    [node] = ours.kubectl.get("nodes")["items"]
    conditions = {condition["type"]: condition["status"] for condition in node["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "2"
    assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H200"


def test_helm_speaks_to_the_cluster(kube: kube_cluster.Running, namespace: str) -> None:
    assert kube.helm("list", "--namespace", namespace, "--output", "json").strip() == "[]"


def test_an_image_built_here_serves_as_a_restricted_pod_behind_a_name(
    ours: kube_cluster.Running, namespace: str, probe: str
) -> None:
    readiness = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "probe"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    ours.kubectl.apply(pod("probe", probe, {"readinessProbe": readiness}), service, namespace=namespace)
    ours.kubectl("wait", "pod/probe", "--for=condition=Ready", "--timeout=60s", "-n", namespace)

    cluster_ip = ours.kubectl.get("service", "web", "-n", namespace)["spec"]["clusterIP"]
    # A pod asks its own server to resolve the Service's name, through the Service.
    program = "import urllib.request as u; print(u.urlopen('http://web/resolve/web').read().decode())"
    ask = ("exec", "probe", "-n", namespace, "--", "/opt/venv/bin/python", "-c", program)
    wait_until(lambda: ours.kubectl.succeeds(*ask), "kube-proxy to learn of the endpoint", 30)
    assert ours.kubectl(*ask).strip() == cluster_ip
    assert ours.kubectl("exec", "probe", "-n", namespace, "--", "id", "-u").strip() == "10001"

    ours.kubectl("delete", "pod/probe", "-n", namespace, "--timeout=60s")
    assert ours.kubectl.get("pods", "-n", namespace)["items"] == []


def test_a_name_outside_the_cluster_fails_at_once(ours: kube_cluster.Running, namespace: str, probe: str) -> None:
    ours.kubectl.apply(pod("probe", probe), namespace=namespace)
    ours.kubectl("wait", "pod/probe", "--for=condition=Ready", "--timeout=60s", "-n", namespace)
    program = "import socket\ntry: socket.gethostbyname('example.com')\nexcept OSError as e: print(e)"
    said = ours.kubectl("exec", "probe", "-n", namespace, "--", "/opt/venv/bin/python", "-c", program)
    assert "Name or service not known" in said


def test_the_third_gpu_pod_waits_and_says_for_what(ours: kube_cluster.Running, namespace: str) -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    names = ["first", "second", "third"]
    ours.kubectl.apply(*(pod(name, images.PAUSE, limits) for name in names[:2]), namespace=namespace)
    for name in names[:2]:
        ours.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=60s", "-n", namespace)
    ours.kubectl.apply(pod("third", images.PAUSE, limits), namespace=namespace)
    ours.kubectl("wait", "pod/third", "--for=condition=PodScheduled=False", "--timeout=30s", "-n", namespace)
    [condition] = ours.kubectl.get("pod", "third", "-n", namespace)["status"]["conditions"]
    assert "Insufficient nvidia.com/gpu" in condition["message"]

    ours.kubectl("delete", "pod/first", "-n", namespace, "--timeout=60s")
    ours.kubectl("wait", "pod/third", "--for=condition=Ready", "--timeout=60s", "-n", namespace)


def test_a_claim_is_bound_and_a_user_without_rights_writes_to_it(
    ours: kube_cluster.Running, namespace: str, probe: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "run"},
        "spec": {
            "storageClassName": STORAGE_CLASS,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    writer = pod(
        "writer",
        probe,
        {"volumeMounts": [{"name": "run", "mountPath": "/run-folder"}]},
        securityContext={"fsGroup": 10001},
        volumes=[{"name": "run", "persistentVolumeClaim": {"claimName": "run"}}],
    )
    ours.kubectl.apply(claim, writer, namespace=namespace)
    ours.kubectl("wait", "pod/writer", "--for=condition=Ready", "--timeout=60s", "-n", namespace)
    ours.kubectl("exec", "writer", "-n", namespace, "--", "touch", "/run-folder/kept")
    assert ours.kubectl.get("pvc", "run", "-n", namespace)["status"]["phase"] == "Bound"


def leftovers(cluster: Cluster) -> list[str]:
    """What of the cluster is on the machine."""
    found = [line for line in Path("/proc/mounts").read_text().splitlines() if str(cluster.root) in line]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**{cluster.cgroup}")]
    found += [str(path) for path in (cluster.root, Path("/sys/class/net", cluster.link)) if path.exists()]
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended meanwhile
        if str(cluster.root) in words:
            found.append(words)
    return found


def machine_settings() -> list[str]:
    names = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
    return [Path("/proc/sys", name).read_text() for name in names]


@pytest.fixture
def twin(ours: kube_cluster.Running) -> Iterator[Cluster]:
    """A second cluster's names, beside the session's; taken down whatever happens."""
    cluster = Cluster.of("twin", "10.231.0.0/16")
    yield cluster
    kube_cluster.down(cluster)


def test_a_second_cluster_runs_beside_the_first_and_leaves_nothing(ours: kube_cluster.Running, twin: Cluster) -> None:
    before = machine_settings()
    second = kube_cluster.up(twin)
    assert kube_cluster.up(twin) == second, "up on a cluster that is up finds it"
    second.kubectl.apply(pod("pause", images.PAUSE, {"imagePullPolicy": "IfNotPresent"}), namespace="default")
    second.kubectl("wait", "pod/pause", "--for=condition=Ready", "--timeout=60s")
    assert ours.kubectl("get", "--raw", "/readyz") == "ok"
    assert leftovers(twin)

    kube_cluster.down(twin)
    assert leftovers(twin) == []
    assert machine_settings() == before
    assert ours.kubectl("get", "--raw", "/readyz") == "ok"


def test_up_recovers_from_a_crashed_run(twin: Cluster) -> None:
    kube_cluster.up(twin, control_plane_only=True)
    sandbox = Sandbox.find(twin)
    assert sandbox
    sandbox.stop()  # what a crash or a reboot does: processes gone, files left
    again = kube_cluster.up(twin, control_plane_only=True)
    assert again.kubectl.get("nodes")["items"] == []


def test_an_interrupted_up_leaves_nothing(twin: Cluster) -> None:
    command = [sys.executable, "-m", "tests.cluster.kube", "--name", twin.name, "--cidr", str(twin.network), "up"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as starting:
        wait_until(lambda: (twin.root / "log" / "kube-apiserver.log").exists(), "the API server's start", 60)
        starting.send_signal(signal.SIGINT)
        starting.communicate(timeout=60)
    assert starting.returncode == 130
    assert leftovers(twin) == []


def test_addresses_that_are_taken_are_refused_with_the_fix(ours: kube_cluster.Running, twin: Cluster) -> None:
    assert ours.cluster
    clashing = Cluster.of(twin.name, str(ours.cluster.network))
    with pytest.raises(KubeError, match=r"taken on this machine.*--cidr"):
        kube_cluster.up(clashing, control_plane_only=True)
    assert leftovers(clashing) == []


def test_what_a_killed_build_left_mounted_goes_unless_another_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or no image could be built, listed or loaded any more."""
    if os.geteuid() != 0:
        pytest.skip("mounts")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    storage, place = Storage(), cache("buildah", "overlay", "x", "merged")
    try:
        for _ in range(2):  # one upon the other
            subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
        with locked(builds_lock()):
            assert not storage.unmount_leftovers()
            assert place.is_mount()
        assert storage.unmount_leftovers()
        assert not place.is_mount()
    finally:
        subprocess.run(["umount", "--quiet", "--recursive", place])
