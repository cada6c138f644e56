"""etcd, the API server, the controller manager and the scheduler."""

from pathlib import Path

from .kubectl import Kubectl
from .layout import Cluster
from .sandbox import Sandbox

ETCD = "http://127.0.0.1:2379"
# The sandbox's /run is in memory: a test cluster's objects need not outlive it, nor wait for a disk.
ETCD_DATA = "/run/etcd"
FEATURES = "--feature-gates=TTLAfterFinished=true"  # Job.spec.ttlSecondsAfterFinished, off by default in 1.20


def start(cluster: Cluster, sandbox: Sandbox, binaries: Path, kubectl: Kubectl) -> None:
    """Starts the control plane; returns when the API server is ready."""
    sandbox.spawn(
        "etcd", "etcd", "--data-dir", ETCD_DATA, "--listen-client-urls", ETCD, "--advertise-client-urls", ETCD
    )
    api_server = sandbox.spawn("kube-apiserver", *_api_server(cluster, binaries))
    api_server.wait_for(lambda: kubectl.succeeds("get", "--raw", "/readyz"), "the API server", 90)
    sandbox.spawn("kube-controller-manager", *_controller_manager(cluster, binaries))
    sandbox.spawn(
        "kube-scheduler",
        binaries / "kube-scheduler",
        f"--kubeconfig={cluster.kubeconfig('scheduler')}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    )


def _api_server(cluster: Cluster, binaries: Path) -> list[str | Path]:
    pki = cluster.pki
    return [
        binaries / "kube-apiserver",
        f"--etcd-servers={ETCD}",
        f"--advertise-address={cluster.node_address}",
        "--secure-port=6443",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/apiserver-to-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-to-kubelet.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={pki}/service-accounts.pub",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={cluster.services}",
        FEATURES,
    ]


def _controller_manager(cluster: Cluster, binaries: Path) -> list[str | Path]:
    pki = cluster.pki
    return [
        binaries / "kube-controller-manager",
        f"--kubeconfig={cluster.kubeconfig('controller-manager')}",
        f"--root-ca-file={pki}/ca.crt",
        f"--service-account-private-key-file={pki}/service-accounts.key",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--cert-dir={pki}/controller-manager-serving",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        FEATURES,
    ]
