"""The cluster's certificate authority, its certificates and the kubeconfigs that carry them."""

import base64
import json
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
    _key(folder / "ca.key")
    request: list[str | Path] = [
        "openssl",
        "req",
        "-x509",
        "-new",
        "-key",
        folder / "ca.key",
        "-subj",
        "/CN=visionrl-kube",
    ]
    run([*request, "-days", CERTIFICATE_DAYS, "-out", folder / "ca.crt"])

    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = ["127.0.0.1", cluster.node_address, cluster.api_service_address]
    _certificate(folder, "apiserver", "/CN=kube-apiserver", _alternative_names([*names, "localhost"], addresses))
    kubelet_names = _alternative_names([NODE], [cluster.node_address])
    for client, subject in CLIENTS.items():
        _certificate(folder, client, subject, kubelet_names if client == "kubelet" else "")
        _kubeconfig(cluster, client)

    _key(folder / "service-accounts.key")
    run(["openssl", "ec", "-in", folder / "service-accounts.key", "-pubout", "-out", folder / "service-accounts.pub"])


def _key(path: Path) -> None:
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])


def _alternative_names(names: list[str], addresses: list[object]) -> str:
    entries = [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses]
    return f"subjectAltName={','.join(entries)}\n"


def _certificate(folder: Path, name: str, subject: str, alternative_names: str) -> None:
    key, extensions = folder / f"{name}.key", folder / f"{name}.ext"
    _key(key)
    extensions.write_text(
        "keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=clientAuth,serverAuth\n" + alternative_names
    )
    request = run(["openssl", "req", "-new", "-key", key, "-subj", subject])
    authority: list[str | Path] = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", "-CAcreateserial"]
    sign: list[str | Path] = ["openssl", "x509", "-req", *authority, "-days", CERTIFICATE_DAYS, "-extfile", extensions]
    run([*sign, "-out", folder / f"{name}.crt"], stdin=request)


def _kubeconfig(cluster: Cluster, client: str) -> None:
    def encoded(file: str) -> str:
        return base64.b64encode((cluster.pki / file).read_bytes()).decode()

    server = {"server": f"https://{cluster.node_address}:6443", "certificate-authority-data": encoded("ca.crt")}
    user = {"client-certificate-data": encoded(f"{client}.crt"), "client-key-data": encoded(f"{client}.key")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster.name, "cluster": server}],
        "users": [{"name": client, "user": user}],
        "contexts": [{"name": cluster.name, "context": {"cluster": cluster.name, "user": client}}],
        "current-context": cluster.name,
    }
    path = cluster.kubeconfig(client)
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=1))
