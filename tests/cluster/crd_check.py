"""`make crd-check`: the definition of ``VisionRLJob``, with its CEL rules, on the API server for custom resources of
a current Kubernetes. The test cluster's own, 1.20, has no CEL.

That server stands alone: it knows no namespaces, no other kinds and no admission plugins, and who has a certificate of
its authority may do everything.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.jobs import document
from tests.support.ports import free_port
from visionrl_core.crd import crd
from visionrl_core.kinds import JOB

from .kube import binaries, pki
from .kube.host import KubeError, require_packages, wait_until
from .test_operator import MISTAKES

REPOSITORY = Path(__file__).parents[2]
LOOPBACK = "127.0.0.1"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# Of these, the fields are right, and what they say cannot be judged by a rule: the operator reports them.
LEFT_TO_THE_OPERATOR = {"no-images", "text-model", "module-names"}
# They ask what this server does not know: namespaces, webhooks, policies.
PLUGINS = (
    "NamespaceLifecycle",
    *("MutatingAdmissionPolicy", "MutatingAdmissionWebhook"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionWebhook"),
)


@contextmanager
def running(log: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


class Refused(Exception):
    """What the server says."""


@dataclass(frozen=True)
class Server:
    """Its REST interface. kubectl wants to be told first what there is, which a whole cluster's aggregator does."""

    url: str
    folder: Path
    """With the certificates."""

    def send(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        context.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": content_type}, method=method)
        try:
            with opener.open(request, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise Refused(f"{error.code}: {error.read().decode(errors='replace')}") from None

    def answers(self, path: str) -> bool:
        try:
            self.send("GET", path)
        except (Refused, OSError):
            return False
        return True

    def create(self, job: dict[str, Any], dry_run: bool = True) -> None:
        """As ``kubectl create --validate=strict`` does. Raises :class:`Refused`."""
        self.send("POST", f"{JOB.path('default')}?fieldValidation=Strict{'&dryRun=All' if dry_run else ''}", job)

    def patch(self, content: dict[str, Any], subresource: str | None = None) -> None:
        self.send("PATCH", JOB.path("default", "demo", subresource), content, "application/merge-patch+json")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that has the definition."""
    require_packages({"etcd": "etcd-server", "openssl": "openssl"})
    program = binaries.ensure_custom_resources()
    print(f"apiextensions-apiserver {(program / 'VERSION').read_text().strip()}")
    folder = tmp_path_factory.mktemp("apiextensions")
    pki.authority(folder)
    pki.certificate(folder, "server", "/CN=apiextensions", pki.alternative_names(["localhost"], [LOOPBACK]))
    pki.certificate(folder, "admin", "/O=system:masters/CN=admin")
    found = Server(f"https://{LOOPBACK}:{free_port()}", folder)
    nothing = folder / "nothing"  # where the API server with the other kinds would be
    pki.write_kubeconfig(nothing, folder, "admin", f"https://{LOOPBACK}:1")
    client, peer = (f"http://{LOOPBACK}:{free_port()}" for _ in range(2))
    with ExitStack() as stack:
        stack.enter_context(
            running(
                folder / "etcd.log",
                "etcd",
                f"--data-dir={folder}/etcd",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
            )
        )
        log = folder / "server.log"
        process = stack.enter_context(
            running(
                log,
                program / "apiextensions-apiserver",
                f"--etcd-servers={client}",
                f"--bind-address={LOOPBACK}",
                f"--secure-port={found.url.rpartition(':')[2]}",
                f"--tls-cert-file={folder}/server.crt",
                f"--tls-private-key-file={folder}/server.key",
                f"--client-ca-file={folder}/ca.crt",
                f"--kubeconfig={nothing}",
                f"--authentication-kubeconfig={nothing}",
                f"--authorization-kubeconfig={nothing}",
                "--authentication-skip-lookup",
                "--enable-priority-and-fairness=false",
                f"--disable-admission-plugins={','.join(PLUGINS)}",
            )
        )
        try:
            wait_until(lambda: process.poll() is not None or found.answers(CRDS), "the server", 120)
            found.send("POST", CRDS, crd(cel=True))
            wait_until(lambda: found.answers(JOB.path("default")), "the definition", 60)
        except (KubeError, Refused, OSError) as error:
            raise KubeError(f"{error}\n{log.read_text(errors='replace')[-4000:]}") from None
        yield found


def test_the_definition_is_taken_within_the_limits_of_its_rules_costs(server: Server) -> None:
    found = server.send("GET", f"{CRDS}/visionrljobs.visionrl.dev")
    conditions = {condition["type"]: condition["status"] for condition in found["status"]["conditions"]}
    assert (conditions["NamesAccepted"], conditions["Established"]) == ("True", "True")
    assert conditions.get("NonStructuralSchema", "False") == "False"
    schema = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert (
        schema["properties"]["spec"]["x-kubernetes-validations"]
        == crd(cel=True)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"][
            "x-kubernetes-validations"
        ]
    ), "none was dropped"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_jobs_are_taken(server: Server, path: Path) -> None:
    server.create(YAML(typ="safe").load(path))


@pytest.mark.parametrize(("name", "changes", "path"), MISTAKES, ids=[name for name, _, _ in MISTAKES])
def test_mistakes_are_refused_by_their_field(server: Server, name: str, changes: dict[str, Any], path: str) -> None:
    job = document(changes)
    if name in LEFT_TO_THE_OPERATOR:
        server.create(job)
        return
    with pytest.raises(Refused) as refused:
        server.create(job)
    assert path.rpartition(".")[2].partition("[")[0] in str(refused.value)


@pytest.mark.parametrize("field", ["resourceName", "productLabel"])
def test_a_resource_claim_takes_the_device_plugins_place(server: Server, field: str) -> None:
    server.create(document({"trainer.gpu": {"resourceClaim": {}}}))
    contradictory = document({"trainer.gpu": {"resourceClaim": {}, field: "example.com/gpu"}})
    with pytest.raises(Refused, match=field):
        server.create(contradictory)


def test_what_is_fixed_once_accepted_is_refused_and_what_may_change_is_taken(server: Server) -> None:
    server.create(document({}), dry_run=False)
    server.patch({"spec": {"training": {"groupSize": 4}}})  # nobody has accepted it yet
    accepted = {"type": "Accepted", "status": "True", "reason": "Valid", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}  # fmt: skip
    server.patch({"status": {"conditions": [accepted]}}, "status")
    fixed: dict[str, dict[str, Any]] = {
        "spec.training.groupSize": {"training": {"groupSize": 8}},
        "spec.model": {"model": {"base": "other/model"}},
        "spec.queueName": {"queueName": "gpus"},
        "spec.trainer": {"trainer": {"gpu": {}}},
    }
    for field, changes in fixed.items():
        with pytest.raises(Refused, match=f"{field} cannot change"):
            server.patch({"spec": changes})
    changeable: list[dict[str, Any]] = [
        {"training": {"iterations": 50}},
        {"evaluation": {"episodes": 3}},
        {"lifecycle": {"activeDeadlineSeconds": 60}},
        {"suspend": True},
        {"taskApp": {"resources": {"cpu": "2"}}},
    ]
    for changes in changeable:
        server.patch({"spec": changes})
