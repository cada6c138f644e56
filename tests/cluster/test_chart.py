"""What the chart renders: needs helm, no cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from visionrl_operator import options

from .kube import tools
from .release import CHART

pytestmark = pytest.mark.cluster

VALUE_FILES = sorted((CHART / "ci").glob("*.yaml"))
RELEASE, NAMESPACE = "visionrl", "operators"

Manifest = dict[str, Any]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tools.ensure().helm, *arguments], capture_output=True, text=True)


def render(*arguments: str | Path, kubernetes: str = "1.32.0") -> list[Manifest]:
    """The chart's objects; the arguments are helm's, such as --set."""
    done = helm("template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", kubernetes, *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in YAML(typ="safe").load_all(done.stdout) if document]


def ci(name: str) -> list[Manifest]:
    return render("--values", CHART / "ci" / f"{name}-values.yaml")


def only(objects: list[Manifest], kind: str) -> Manifest:
    [found] = [item for item in objects if item["kind"] == kind]
    return found


def kinds(objects: list[Manifest]) -> set[str]:
    return {item["kind"] for item in objects}


def rules(objects: list[Manifest]) -> Iterator[dict[str, list[str]]]:
    for item in objects:
        if item["kind"] in ("Role", "ClusterRole"):
            yield from item["rules"]


def pod(objects: list[Manifest]) -> Manifest:
    spec: Manifest = only(objects, "Deployment")["spec"]["template"]["spec"]
    return spec


def arguments(objects: list[Manifest]) -> list[str]:
    found: list[str] = pod(objects)["containers"][0]["args"]
    return found


def by_file(path: Path) -> str:
    return path.name.removesuffix("-values.yaml")


@pytest.mark.parametrize("values", VALUE_FILES, ids=by_file)
def test_lint_has_nothing_to_say(values: Path) -> None:
    done = helm("lint", "--strict", CHART, "--values", values)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("values", VALUE_FILES, ids=by_file)
def test_every_object_says_whose_it_is(values: Path) -> None:
    for item in render("--values", values):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "visionrl-operator"
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        cluster_wide = item["kind"].startswith(("Cluster", "CustomResource"))
        assert ("namespace" in item["metadata"]) is not cluster_wide, item["kind"]


@pytest.mark.parametrize("values", VALUE_FILES, ids=by_file)
def test_the_operators_pod_is_restricted_and_its_command_line_is_one(values: Path) -> None:
    spec = pod(render("--values", values))
    [container] = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # Variables of Services begin like the operator's own options, which refuse unknown ones.
    assert spec["enableServiceLinks"] is False
    *command, word = container["command"]
    assert command == ["python", "-m", "visionrl_operator"]
    parsed = options.parse([word, *container["args"]], environment={})
    assert parsed.health_port == container["ports"][0]["containerPort"]


@pytest.mark.parametrize("values", VALUE_FILES, ids=by_file)
def test_rights_are_named_one_by_one_and_secrets_cannot_be_listed(values: Path) -> None:
    for rule in rules(render("--values", values)):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        if "secrets" in rule["resources"]:
            assert set(rule["verbs"]) == {"get", "create"}
        if "visionrljobs/status" in rule["resources"]:
            assert "delete" not in rule["verbs"]
        if "pods" in rule["resources"]:
            assert set(rule["verbs"]) == {"get", "list", "watch", "delete"}, "delete: those of a lost node"


@pytest.mark.parametrize("name", ["namespaced", "two-namespaces"])
def test_a_namespaced_operator_has_no_right_beyond_its_namespaces(name: str) -> None:
    objects = ci(name)
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds(objects)
    watched = list(options.parse(["run", *arguments(objects)], environment={}).namespaces)
    assert watched == {"namespaced": [NAMESPACE], "two-namespaces": ["team-a", "team-b"]}[name]
    roles = [item for item in objects if item["kind"] == "Role"]
    jobs = [role for role in roles if any("visionrljobs" in rule["resources"] for rule in role["rules"])]
    assert [role["metadata"]["namespace"] for role in jobs] == watched
    bindings = [item for item in objects if item["kind"] == "RoleBinding"]
    assert {item["metadata"]["namespace"] for item in bindings} == {*watched, NAMESPACE}
    for binding in bindings:
        [subject] = binding["subjects"]
        assert (subject["name"], subject["namespace"]) == (pod(objects)["serviceAccountName"], NAMESPACE)


def test_a_cluster_wide_operator_watches_all_namespaces_and_lets_users_use_jobs() -> None:
    objects = ci("default")
    assert options.parse(["run", *arguments(objects)], environment={}).namespaces == ()
    aggregated = {label for item in objects for label in item["metadata"]["labels"] if "aggregate-to" in label}
    assert {label.rpartition("-")[2] for label in aggregated} == {"view", "edit", "admin"}
    assert len([item for item in objects if item["kind"] == "ClusterRole"]) == 3
    assert (
        len([item for item in render("--set", "rbac.aggregateToUserRoles=false") if item["kind"] == "ClusterRole"]) == 1
    )


def test_own_rights_render_neither_account_nor_roles() -> None:
    objects = ci("own-rights")
    assert kinds(objects) == {"Deployment", "Service"}
    assert pod(objects)["serviceAccountName"] == "visionrl"


def test_one_replica_leads_by_the_lease_of_its_release_and_has_no_second_one_beside_it() -> None:
    objects = ci("default")
    parsed = options.parse(["run", *arguments(objects)], environment={})
    assert (parsed.leader_election, parsed.lease_name) == (True, "visionrl-operator")
    other = options.parse(["run", *arguments(render("--set", "nameOverride=team-a"))], environment={})
    assert other.lease_name == "team-a"
    assert only(objects, "Deployment")["spec"]["strategy"]["type"] == "Recreate"
    assert "PodDisruptionBudget" not in kinds(objects)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "extraLabels": {"app.kubernetes.io/name": "x", "team": "a"},
            "operator": {"podLabels": {"team": "b", "tier": "c"}},
        },
        {
            "extraLabels": {"release": "x"},
            "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
        },
    ],
)
def test_a_label_that_is_set_twice_is_rendered_once(settings: Manifest, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    YAML().dump(settings, values)
    for item in render("--values", values):  # a key that occurs twice cannot be read
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] == "visionrl-operator"


def test_several_replicas_elect_a_leader_and_keep_apart() -> None:
    objects = ci("ha-metrics")
    assert options.parse(["run", *arguments(objects)], environment={}).leader_election
    assert only(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert "podAntiAffinity" in pod(objects)["affinity"]
    assert only(objects, "PodDisruptionBudget")["apiVersion"] == "policy/v1"
    old = render("--set", "operator.replicas=2", kubernetes="1.20.2")
    assert only(old, "PodDisruptionBudget")["apiVersion"] == "policy/v1beta1"


def test_the_image_is_the_charts_version_unless_told_otherwise() -> None:
    image = "visionrl/operator"
    assert (
        pod(render())["containers"][0]["image"]
        == f"{image}:{YAML(typ='safe').load(CHART / 'Chart.yaml')['appVersion']}"
    )
    assert pod(render("--set", "image.tag=next"))["containers"][0]["image"] == f"{image}:next"
    assert pod(ci("own-rights"))["containers"][0]["image"].startswith("registry.example/visionrl/operator@sha256:")


def rules_of_schema(node: Any) -> int:
    """How many places of a schema have CEL rules."""
    if isinstance(node, dict):
        return ("x-kubernetes-validations" in node) + sum(rules_of_schema(value) for value in node.values())
    return sum(rules_of_schema(item) for item in node) if isinstance(node, list) else 0


def test_jobs_without_images_get_the_releases() -> None:
    chosen = options.parse(["run", *arguments(render("--set", "jobImages.prefix=registry.example/team/"))], {})
    assert (chosen.image_prefix, chosen.image_tag) == ("registry.example/team/", options.Options().image_tag)
    assert "--image-tag=2" in arguments(render("--set-string", "jobImages.tag=2"))


def test_the_images_that_jobs_may_name_can_be_limited() -> None:
    assert options.parse(["run", *arguments(render())], {}).allowed_images == ()
    limited = render("--set", "jobImages.allowed={registry.example/team/,visionrl/}")
    assert options.parse(["run", *arguments(limited)], {}).allowed_images == ("registry.example/team/", "visionrl/")


def test_the_right_to_read_secrets_can_be_limited_to_some_namespaces() -> None:
    def readers(objects: list[Manifest]) -> set[str]:
        roles = [item for item in objects if item["kind"] in ("Role", "ClusterRole")]
        return {
            role["metadata"]["name"]
            for role in roles
            if any("secrets" in rule["resources"] and "get" in rule["verbs"] for rule in role["rules"])
        }

    everywhere = render()
    [bound] = readers(everywhere)
    assert bound in {item["roleRef"]["name"] for item in everywhere if item["kind"] == "ClusterRoleBinding"}
    limited = render("--set", "rbac.secrets=listed,rbac.secretNamespaces={team-a,team-b}")
    assert readers(limited) == {f"{bound}-secrets"}
    bindings = [item for item in limited if item.get("roleRef", {}).get("name") == f"{bound}-secrets"]
    assert {(item["kind"], item["metadata"]["namespace"]) for item in bindings} == {
        ("RoleBinding", "team-a"),
        ("RoleBinding", "team-b"),
    }


def test_metrics_of_jobs_can_be_scraped() -> None:
    assert "PodMonitor" not in kinds(render())
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    found = render(
        *("--set", "metrics.jobs.podMonitor.enabled=true"), *("--set-json", f"metrics.jobs.from={json.dumps(peers)}")
    )
    selected = only(found, "PodMonitor")["spec"]
    assert selected["namespaceSelector"] == {"any": True}
    assert selected["podMetricsEndpoints"][0]["path"] == "/metrics"
    assert options.parse(["run", *arguments(found)], {}).scraped_by == tuple(peers)


def test_what_all_pods_of_jobs_get_reaches_the_operator() -> None:
    default = options.parse(["run", *arguments(render())], {})
    assert (default.pod_template, default.fixed_ids, default.allow_privileged) == ({}, True, False)
    template = {"spec": {"imagePullSecrets": [{"name": "registry"}], "nodeSelector": {"pool": 'it\'s "gpu"'}}}
    found = render(
        *("--set-json", f"jobPods.template={json.dumps(template)}"),
        *("--set", "jobPods.fixedIds=false,jobPods.allowPrivileged=true"),
    )
    chosen = options.parse(["run", *arguments(found)], {})
    assert (chosen.pod_template, chosen.fixed_ids, chosen.allow_privileged) == (template, False, True)


def test_the_definition_is_kept_and_has_rules_where_the_server_knows_them() -> None:
    generated = YAML(typ="safe").load(CHART / "files" / "visionrl.dev_visionrljobs.yaml")

    def definition(setting: str, kubernetes: str) -> Manifest:
        objects = render("--set-string", f"crds.validationRules={setting}", kubernetes=kubernetes)
        return only(objects, "CustomResourceDefinition")

    modern = definition("auto", "1.25.0")
    assert modern["spec"] == generated["spec"]
    assert modern["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert rules_of_schema(generated) > 0
    assert rules_of_schema(definition("auto", "1.24.17")) == 0
    assert rules_of_schema(definition("false", "1.32.0")) == 0
    assert rules_of_schema(definition("true", "1.20.2")) == rules_of_schema(generated)
    assert "CustomResourceDefinition" not in kinds(render("--set", "crds.install=false"))


def test_metrics_are_found_by_prometheus_and_grafana() -> None:
    objects = ci("ha-metrics")
    monitor = only(objects, "ServiceMonitor")
    service = only(objects, "Service")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert (
        service["spec"]["selector"].items()
        <= only(objects, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    )
    assert only(objects, "ConfigMap")["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert not {"ServiceMonitor", "ConfigMap", "NetworkPolicy"} & kinds(ci("default"))


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("operator.replica=2", "replica"),
        ("operator.replicas=-1", "operator.replicas"),
        ("operator.workers=0", "operator.workers"),
        ("operator.logFormat=xml", "operator.logFormat"),
        ("scope=global", "scope"),
        ("watchNamespaces={team-a}", "watchNamespaces"),  # would be ignored with scope: cluster
        ("image.digest=latest", "image.digest"),
        ("image.pullPolicy=Sometimes", "image.pullPolicy"),
        ("crds.validationRules=maybe", "crds.validationRules"),
        ("nameOverride=x.y", "nameOverride"),
        ("fullnameOverride=1x", "fullnameOverride"),
        ("metrics.serviceMonitor.interval=often", "metrics.serviceMonitor.interval"),
        ("networkPolicy.apiServerPorts={70000}", "networkPolicy.apiServerPorts"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(setting: str, names: str) -> None:
    done = helm("template", RELEASE, CHART, "--set", setting)
    assert done.returncode != 0
    assert names in done.stderr


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["--set", "resourceClaims.enabled=true"], True),
        (["--api-versions", "resource.k8s.io/v1"], True),
        (["--api-versions", "resource.k8s.io/v1", "--set", "scope=namespaced"], True),
        (["--api-versions", "resource.k8s.io/v1", "--set", "resourceClaims.enabled=false"], False),
        (["--api-versions", "resource.k8s.io/v1beta2"], False),
    ],
)
def test_rights_on_claims_are_given_where_there_are_claims(options: list[str], given: bool) -> None:
    rules = [rule for item in render(*options) for rule in item.get("rules") or ()]
    assert any("resourceclaimtemplates" in rule["resources"] for rule in rules) is given


KUEUE = "kueue.x-k8s.io"


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["--set", "kueue.enabled=true"], True),
        (["--set", "kueue.enabled=true,scope=namespaced"], True),
        (["--api-versions", f"{KUEUE}/v1beta1"], True),
        (["--api-versions", f"{KUEUE}/v1beta2", "--set", "scope=namespaced"], False),  # it would need a ClusterRole
        (["--api-versions", f"{KUEUE}/v1beta2", "--set", "kueue.enabled=false"], False),
        ([], False),
    ],
)
def test_rights_on_queues_are_given_where_there_are_queues(options: list[str], given: bool) -> None:
    rules = [
        (item["kind"], resource)
        for item in render(*options)
        for rule in item.get("rules") or ()
        if KUEUE in rule["apiGroups"]
        for resource in rule["resources"]
    ]
    assert bool(rules) is given
    if given:
        assert {resource for _, resource in rules} == {
            "workloads", "workloads/status", "resourceflavors", "workloadpriorityclasses",
        }  # fmt: skip
        assert ("ClusterRole", "resourceflavors") in rules, "flavors are the cluster's"
