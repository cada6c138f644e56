"""What is around a cluster: a webhook that injects sidecars, and an object store. Both are threads of this process, at
the address by which the cluster's network reaches the host; they need a cluster of ours."""

from __future__ import annotations

import base64
import json
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
from moto.server import ThreadedMotoServer

from tests.cluster import project_images
from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.kube import pki
from tests.cluster.kube.layout import Cluster
from tests.support.serving import serving
from visionrl.adapters import MANIFEST, Manifest

INJECT = "sidecar.test/inject"
"""Label of the pods that get a sidecar; its value is the injection's."""

SIDECAR = {
    "name": "proxy",
    "image": project_images.tag("taskapp"),
    "command": ["sleep", "infinity"],
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
}


@contextmanager
def sidecars_first(kube: kube_cluster.Running, cluster: Cluster) -> Iterator[dict[str, str]]:
    """Labels for pods into whose list of containers a sidecar comes first, one that does not end by itself."""
    name = f"inject-{uuid.uuid4().hex[:8]}"
    server = ThreadingHTTPServer((str(cluster.host_address), 0), _Inject)
    pki.certificate(cluster.pki, name, f"/CN={name}", pki.alternative_names([], [cluster.host_address]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cluster.pki / f"{name}.crt", cluster.pki / f"{name}.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    webhook = {
        "name": "sidecars.test.visionrl.dev",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "clientConfig": {
            "url": f"https://{cluster.host_address}:{server.server_port}/",
            "caBundle": base64.b64encode((cluster.pki / "ca.crt").read_bytes()).decode(),
        },
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        "objectSelector": {"matchLabels": {INJECT: name}},
    }
    kind = "MutatingWebhookConfiguration"
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}}
    with serving(server):
        kube.kubectl.apply({**api, "webhooks": [webhook]})
        try:
            yield {INJECT: name}
        finally:
            kube.kubectl("delete", kind, name)


class _Inject(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        patch = json.dumps([{"op": "add", "path": "/spec/containers/0", "value": SIDECAR}])
        response = {
            "uid": review["request"]["uid"],
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(patch.encode()).decode(),
        }
        answer = json.dumps({**review, "request": None, "response": response}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class ObjectStore:
    """One that speaks S3's protocol, with one bucket."""

    url: str
    bucket: str = "kept"

    @property
    def secret(self) -> dict[str, Any]:
        """For the exporter's environment."""
        variables = {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "stringData": variables}

    def manifest(self, path: str) -> Manifest:
        """Of the copy at a path of the bucket, whose files are there in full."""
        found = Manifest.parse(self._files.cat_file(f"{self.bucket}/{path}/{MANIFEST}"))
        sizes = {name: self._files.info(f"{self.bucket}/{path}/{name}")["size"] for name in found.files}
        assert sizes == {name: entry.size for name, entry in found.files.items()}
        return found

    @property
    def _files(self) -> Any:
        return fsspec.filesystem("s3", key="nobody", secret="nothing", endpoint_url=self.url, skip_instance_cache=True)


@contextmanager
def object_store(cluster: Cluster) -> Iterator[ObjectStore]:
    server = ThreadedMotoServer(str(cluster.host_address), port=0)
    server.start()
    try:
        _, port = server.get_host_and_port()
        store = ObjectStore(f"http://{cluster.host_address}:{port}")
        store._files.mkdir(store.bucket)
        yield store
    finally:
        server.stop()
