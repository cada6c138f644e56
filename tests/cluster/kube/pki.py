"""The cluster's certificate authority, its certificates and the kubeconfigs that carry them."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from .host import run
from .layout import NODE, Cluster

# File name -> subject. Kubernetes reads groups from O and the user from CN.
CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE}",
    "apiserver-to-kubelet": "/O=system:masters/CN=kube-apiserver-kubelet-client",
}
CERTIFICATE_DAYS = "3650"


def create(cluster: Cluster) -> None:
    """Writes every key and certificate, and a kubeconfig for each client, under the cluster's folder."""
    folder = cluster.pki
    folder.mkdir(mode=0o700)
    authority(folder)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = ["127.0.0.1", cluster.node_address, cluster.api_service_address]
    certificate(folder, "apiserver", "/CN=kube-apiserver", alternative_names([*names, "localhost"], addresses))
    kubelet_names = alternative_names([NODE], [cluster.node_address])
    for client, subject in CLIENTS.items():
        certificate(folder, client, subject, kubelet_names if client == "kubelet" else "")
        write_kubeconfig(cluster.kubeconfig(client), folder, client, f"https://{cluster.node_address}:6443")

    _key(folder / "service-accounts.key")
    run(["openssl", "ec", "-in", folder / "service-accounts.key", "-pubout", "-out", folder / "service-accounts.pub"])


def authority(folder: Path) -> None:
    """Write ca.key and ca.crt."""
    _key(folder / "ca.key")
    request = ["openssl", "req", "-x509", "-new", "-key", str(folder / "ca.key"), "-subj", "/CN=visionrl-kube"]
    run([*request, "-days", CERTIFICATE_DAYS, "-out", str(folder / "ca.crt")])


def _key(path: Path) -> None:
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])


def alternative_names(names: Sequence[str], addresses: Sequence[object]) -> str:
    """The extension of a server's certificate that says where it may be reached."""
    entries = [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses]
    return f"subjectAltName={','.join(entries)}\n"


def certificate(folder: Path, name: str, subject: str, extension: str = "") -> None:
    """Write NAME.key and NAME.crt, which the folder's authority signs."""
    key, extensions = folder / f"{name}.key", folder / f"{name}.ext"
    _key(key)
    extensions.write_text(
        "keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=clientAuth,serverAuth\n" + extension
    )
    request = run(["openssl", "req", "-new", "-key", key, "-subj", subject])
    signer: list[str | Path] = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial"]
    sign: list[str | Path] = ["openssl", "x509", "-req", *signer, "-days", CERTIFICATE_DAYS, "-extfile", extensions]
    run([*sign, "-out", folder / f"{name}.crt"], stdin=request)


def write_kubeconfig(path: Path, folder: Path, client: str, server: str) -> None:
    """How a client whose certificate lies in the folder reaches an API server."""

    def encoded(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    cluster = {"server": server, "certificate-authority-data": encoded("ca.crt")}
    user = {"client-certificate-data": encoded(f"{client}.crt"), "client-key-data": encoded(f"{client}.key")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": client, "user": user}],
        "contexts": [{"name": "cluster", "context": {"cluster": "cluster", "user": client}}],
        "current-context": "cluster",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))
