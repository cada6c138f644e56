"""The chart's life on a cluster: the API server takes every object, the operator runs with the rights it is given."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from . import project_images
from .kube import cluster as kube_cluster
from .kube.host import wait_until
from .release import CHART, CRD, Release
from .test_chart import VALUE_FILES, by_file

pytestmark = pytest.mark.cluster

JOB = {
    "apiVersion": "visionrl.dev/v1alpha1",
    "kind": "VisionRLJob",
    "metadata": {"name": "waits"},
    "spec": {"suspend": True, "model": {"base": "tiny"}, "training": {"iterations": 1}},
}


@pytest.fixture(scope="module")
def operator_image(kube: kube_cluster.Running) -> None:
    project_images.ensure(kube, "operator")


@pytest.fixture
def release(kube: kube_cluster.Running, namespace: str, operator_image: None) -> Iterator[Release]:
    had_definition = kube.kubectl.succeeds("get", "crd", CRD)
    made = Release(kube, namespace)
    yield made
    made.uninstall()
    if not had_definition:
        kube.kubectl("delete", "crd", CRD, "--ignore-not-found")


@pytest.fixture(scope="session")
def served(kube: kube_cluster.Running) -> set[str]:
    """The kinds that the cluster knows, as apiVersion/Kind."""
    rows = [line.split() for line in kube.kubectl("api-resources", "--no-headers").splitlines()]
    return {f"{row[-3]}/{row[-1]}" for row in rows}


@pytest.mark.parametrize("values", VALUE_FILES, ids=by_file)
def test_the_api_server_takes_every_object(
    kube: kube_cluster.Running, namespace: str, served: set[str], values: Path
) -> None:
    version = json.loads(kube.kubectl("get", "--raw", "/version"))["gitVersion"]
    text = kube.helm(
        "template", "dry", str(CHART), "--kube-version", version, "--namespace", namespace, "--values", str(values)
    )
    objects = [item for item in YAML(typ="safe").load_all(text) if item]
    for item in objects:
        if item["metadata"].get("namespace") in ("team-a", "team-b"):
            item["metadata"]["namespace"] = namespace  # which need not exist
    known = [item for item in objects if f"{item['apiVersion']}/{item['kind']}" in served]
    assert {item["kind"] for item in objects} - {item["kind"] for item in known} <= {"ServiceMonitor"}
    for item in known:
        # An API server without CEL cuts the rules off where kubectl does not stop them before.
        check = "--validate=false" if item["kind"] == "CustomResourceDefinition" else "--validate=true"
        kube.kubectl("apply", "--dry-run=server", check, "-f", "-", stdin=json.dumps(item))


def test_a_release_is_installed_changed_rolled_back_and_removed(
    kube: kube_cluster.Running, namespace: str, release: Release
) -> None:
    notes = release.deploy("scope=namespaced", "crds.validationRules=auto")
    assert f"rollout status deployment/{release.operator}" in notes
    assert f"looks after VisionRLJobs in: {namespace}" in notes
    assert release.deployment()["status"]["readyReplicas"] == 1
    kube.kubectl.apply(JOB, namespace=namespace)
    condition = "--for=condition=Suspended"
    kube.kubectl("wait", "vrl/waits", condition, "--timeout=60s", "--namespace", namespace)

    release.deploy("scope=namespaced", "operator.replicas=2", "operator.logFormat=text")
    assert release.deployment()["status"]["readyReplicas"] == 2
    assert kube.kubectl.get("poddisruptionbudgets", "--namespace", namespace)["items"]
    # The one that went gave its lease up, and the new ones look for it every two seconds.
    wait_until(lambda: release.leader() in release.pods(), "one of the new operators leads", timeout_s=120)

    kube.helm("rollback", release.name, "1", "--wait", "--timeout", "600s", "--namespace", namespace)
    assert release.deployment()["spec"]["replicas"] == 1
    assert kube.kubectl.get("poddisruptionbudgets", "--namespace", namespace)["items"] == []

    release.uninstall()
    assert not kube.kubectl.succeeds("get", "deployment", release.operator, "--namespace", namespace)
    assert kube.kubectl.get("roles,rolebindings", "--namespace", namespace)["items"] == []
    # The jobs, and what they are, outlive the release.
    assert kube.kubectl.get("vrl", "waits", "--namespace", namespace)


def test_an_upgrade_brings_the_definition_up_to_date(kube: kube_cluster.Running, release: Release) -> None:
    release.deploy("scope=namespaced")
    columns = ["--type=json", '--patch=[{"op":"remove","path":"/spec/versions/0/additionalPrinterColumns"}]']
    kube.kubectl("patch", "crd", CRD, *columns)  # as an older release would have had it
    release.deploy("scope=namespaced", "operator.workers=4")
    [version] = kube.kubectl.get("crd", CRD)["spec"]["versions"]
    assert "Phase" in [column["name"] for column in version["additionalPrinterColumns"]]


def test_a_namespaced_operator_is_kept_to_its_namespace(
    kube: kube_cluster.Running, namespace: str, release: Release
) -> None:
    release.deploy("scope=namespaced")
    assert release.may("create", "deployments.apps", namespace)
    assert release.may("get", "secrets", namespace)
    assert release.may("patch", "visionrljobs.visionrl.dev", namespace, "--subresource=status")
    assert not release.may("list", "secrets", namespace)
    assert release.may("delete", "pods", namespace), "those that a lost node holds"
    assert not release.may("create", "pods", namespace)
    for verb, what in (("list", "visionrljobs.visionrl.dev"), ("create", "deployments.apps"), ("get", "secrets")):
        assert not release.may(verb, what, "default")
    mine = ["get", "clusterroles,clusterrolebindings", "-l", f"app.kubernetes.io/instance={release.name}"]
    assert kube.kubectl.get(*mine[1:])["items"] == []


def test_a_cluster_wide_operator_serves_every_namespace_and_users_may_use_jobs(
    kube: kube_cluster.Running, namespace: str, release: Release
) -> None:
    release.deploy("metrics.grafanaDashboard.enabled=true")
    assert release.may("list", "visionrljobs.visionrl.dev", "default")
    assert not release.may("list", "secrets", "default")
    kube.kubectl("create", "rolebinding", "user", "--clusterrole=edit", "--user=ada", "--namespace", namespace)
    as_user = ("auth", "can-i", "--quiet", "create", "vrl", "--as=ada")
    # The API server decides by what its caches know, a moment later.
    wait_until(lambda: kube.kubectl.succeeds(*as_user, "--namespace", namespace), "the user's right", timeout_s=60)
    assert not kube.kubectl.succeeds(*as_user, "--namespace", "default")


def test_metrics_answer_behind_the_service(kube: kube_cluster.Running, namespace: str, release: Release) -> None:
    release.deploy("scope=namespaced")
    path = f"/api/v1/namespaces/{namespace}/services/{release.operator}-metrics:http/proxy/metrics"
    wait_until(lambda: kube.kubectl.succeeds("get", "--raw", path), "the service's endpoint", timeout_s=60)
    assert "visionrl_operator_queue_depth" in kube.kubectl("get", "--raw", path)


def test_the_definition_of_a_stranger_is_not_taken_silently(
    kube: kube_cluster.Running, namespace: str, release: Release
) -> None:
    release.deploy("scope=namespaced")
    words = ["install", "other", str(CHART), "--namespace", namespace, *release.values("scope=namespaced")]
    done = subprocess.run([kube.helm.program, *words], env=kube.helm.environment(), capture_output=True, text=True)
    assert done.returncode != 0
    assert CRD in done.stderr
