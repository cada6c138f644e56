"""The node: containerd, kubelet and kube-proxy, and the GPUs that tests want to find there."""

import json
from pathlib import Path

from . import cgroups
from .containerd import Containerd
from .kubectl import Kubectl
from .layout import NODE, Cluster
from .sandbox import Sandbox

GPUS = 2
LABELS = {"nvidia.com/gpu.product": "NVIDIA-H200"}


def start(cluster: Cluster, sandbox: Sandbox, binaries: Path, containerd: Containerd, kubectl: Kubectl) -> None:
    """Starts kubelet and kube-proxy; returns when the node is Ready and has its GPUs."""
    cgroups.create(cluster)
    _write_pod_network(cluster)
    kubelet = sandbox.spawn(
        "kubelet",
        binaries / "kubelet",
        f"--config={_write_kubelet_config(cluster)}",
        f"--kubeconfig={cluster.kubeconfig('kubelet')}",
        f"--root-dir={cluster.root}/kubelet",
        f"--cert-dir={cluster.pki}/kubelet-serving",
        "--container-runtime=remote",
        f"--container-runtime-endpoint=unix://{containerd.socket}",
        f"--hostname-override={NODE}",
        f"--node-ip={cluster.node_address}",
        env={"AWS_EC2_METADATA_DISABLED": "true"},  # else its start waits for a metadata server
    )
    sandbox.spawn(
        "kube-proxy",
        binaries / "kube-proxy",
        f"--kubeconfig={cluster.kubeconfig('proxy')}",
        f"--hostname-override={NODE}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={cluster.pods}",
        f"--bind-address={cluster.node_address}",
        "--healthz-bind-address=127.0.0.1",
        "--metrics-bind-address=127.0.0.1",
        # Connection tracking limits are the whole machine's: leave them alone.
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    )
    kubelet.wait_for(lambda: _is_ready(kubectl), "node Ready", 90)
    kubectl("label", "node", NODE, *(f"{key}={value}" for key, value in LABELS.items()))
    gpus = {"nvidia.com/gpu": str(GPUS)}
    # kubectl 1.24+ can patch a status; capacity that no device plugin claims stays as it is patched.
    status = json.dumps({"status": {"capacity": gpus, "allocatable": gpus}})
    kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", status)


def _is_ready(kubectl: Kubectl) -> bool:
    if not kubectl.succeeds("get", "node", NODE):
        return False
    conditions = kubectl.get("node", NODE)["status"].get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _write_pod_network(cluster: Cluster) -> None:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,  # a pod may reach itself through its Service
        "ipam": {
            "type": "host-local",
            "dataDir": "/run/cni-addresses",
            "ranges": [[{"subnet": str(cluster.pods)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    network = {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}
    folder = cluster.root / "cni"
    folder.mkdir(exist_ok=True)  # containerd makes it too
    (folder / "10-pods.conflist").write_text(json.dumps(network, indent=1))


def _write_kubelet_config(cluster: Cluster) -> Path:
    resolver = cluster.root / "resolv.conf"
    resolver.write_text(f"nameserver {cluster.dns_address}\n")
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{cluster.pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{cluster.pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{cluster.pki}/kubelet.key",
        "address": str(cluster.node_address),
        "healthzBindAddress": "127.0.0.1",
        "clusterDomain": "cluster.local",
        "clusterDNS": [str(cluster.dns_address)],
        "resolvConf": str(resolver),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cluster.cgroup,
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": False,
        "featureGates": {"SizeMemoryBackedVolumes": True},
        "nodeStatusUpdateFrequency": "2s",
        "syncFrequency": "5s",
        # The image store outlives the cluster, and the machine's disk is not the cluster's to judge.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        "volumePluginDir": f"{cluster.root}/volume-plugins",
    }
    path = cluster.root / "kubelet.json"
    path.write_text(json.dumps(config, indent=1))
    return path
