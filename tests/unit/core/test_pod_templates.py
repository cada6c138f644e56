"""Pods as jobs and clusters change them."""

from __future__ import annotations

from typing import Any

from tests.support.jobs import job
from tests.support.rendered import OWNER, container, pods
from visionrl_core.manifests.common import Manifest
from visionrl_core.manifests.merge import NO_DEFAULTS, PodDefaults
from visionrl_core.manifests.trainer import trainer_job


def patched(template: dict[str, Any], defaults: PodDefaults = NO_DEFAULTS, **more: Any) -> Manifest:
    """The trainer's pod with a job's own template."""
    spec = job({"overrides.trainer.podTemplate": template, **more})
    found: Manifest = trainer_job(spec, 0, OWNER, "key", defaults)["spec"]["template"]
    return found


def test_a_template_is_merged_by_name() -> None:
    mount = {"name": "data", "mountPath": "/data"}
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    own = {
        "name": "trainer",
        "env": [token],
        "envFrom": [{"secretRef": {"name": "tracker"}}],
        "volumeMounts": [mount],
        "resources": {"limits": {"cpu": "8"}},
        "securityContext": {"readOnlyRootFilesystem": False},
    }
    template = {
        "metadata": {"annotations": {"example.com/scrape": "true"}},
        "spec": {
            "schedulerName": "volcano",
            "imagePullSecrets": [{"name": "registry"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            "containers": [own, {"name": "proxy", "image": "visionrl/proxy:1"}],
        },
    }
    before, pod = pods()["trainer"], patched(template)
    ours, proxy = pod["spec"]["containers"]
    assert proxy == {"name": "proxy", "image": "visionrl/proxy:1"}
    assert ours["env"] == [*container(before)["env"], token]
    assert ours["envFrom"] == [{"secretRef": {"name": "tracker"}}]
    assert ours["volumeMounts"] == [*container(before)["volumeMounts"], mount]
    assert ours["resources"]["limits"] == {**container(before)["resources"]["limits"], "cpu": "8"}
    assert ours["securityContext"] == {**container(before)["securityContext"], "readOnlyRootFilesystem": False}
    assert ours["command"] == container(before)["command"]
    assert pod["spec"]["schedulerName"] == "volcano"
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert [volume["name"] for volume in pod["spec"]["volumes"]][-1] == "data"
    assert pod["metadata"]["annotations"]["example.com/scrape"] == "true"
    assert pod["metadata"]["labels"] == before["metadata"]["labels"]


def test_a_gpu_pod_keeps_its_toleration() -> None:
    extra = {"key": "team", "operator": "Exists"}
    pod = patched({"spec": {"tolerations": [extra]}}, NO_DEFAULTS, **{"trainer.gpu": {}})
    assert [toleration["key"] for toleration in pod["spec"]["tolerations"]] == ["nvidia.com/gpu", "team"]


def test_what_a_cluster_gives_all_pods_is_below_what_the_job_says() -> None:
    defaults = PodDefaults({"spec": {"nodeSelector": {"pool": "gpu", "zone": "a"}, "priorityClassName": "low"}})
    pod = patched({"spec": {"nodeSelector": {"zone": "b"}}}, defaults)
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu", "zone": "b"}
    assert pod["spec"]["priorityClassName"] == "low"


def test_fields_of_a_job_are_above_what_a_cluster_gives_all_pods() -> None:
    metadata = {"labels": {"team": "all"}, "annotations": {"note": "all"}}
    spec = {"nodeSelector": {"pool": "gpu", "zone": "a"}, "priorityClassName": "low", "serviceAccountName": "all"}
    own = {
        "labels": {"team": "games"},
        "annotations": {"note": "ours"},
        "nodeSelector": {"zone": "c"},
        "priorityClassName": "high",
        "serviceAccountName": "ours",
        "imagePullSecrets": ["registry"],
    }
    pod = patched({}, PodDefaults({"metadata": metadata, "spec": spec}), **{
        "overrides.trainer": own, "placement.nodeSelector": {"zone": "b", "disk": "fast"},
    })  # fmt: skip
    assert pod["metadata"]["labels"]["team"] == "games"
    assert pod["metadata"]["annotations"]["note"] == "ours"
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu", "zone": "c", "disk": "fast"}
    assert (pod["spec"]["priorityClassName"], pod["spec"]["serviceAccountName"]) == ("high", "ours")
    assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_where_the_cluster_assigns_users_pods_name_none() -> None:
    context = patched({}, PodDefaults(fixed_ids=False))["spec"]["securityContext"]
    assert context == {
        "runAsNonRoot": True, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


def test_a_variable_of_a_secret_is_no_text_in_the_job() -> None:
    source = {"secretKeyRef": {"name": "hub", "key": "token"}}
    changes = {"overrides.trainer": {"env": [{"name": "HF_TOKEN", "valueFrom": source}]}}
    assert container(pods(changes)["trainer"])["env"][-1] == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token", "optional": False}},
    }


def test_a_task_app_of_the_users_own_is_started_by_its_command() -> None:
    found = container(pods({"taskApp.image": "my/lamp:1", "taskApp.command": ["node", "server.js"]})["taskapp"])
    assert (found["image"], found["command"]) == ("my/lamp:1", ["node", "server.js"])
