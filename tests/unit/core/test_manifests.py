"""The objects of a job: what reaches the containers, and what restarts them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.support.jobs import WARM_START, job
from tests.support.rendered import CLAIM, COMPONENTS, OWNER, TWO_GPUS, container, env, objects, pods
from visionrl.job import Job
from visionrl_core.manifests import all_manifests
from visionrl_core.manifests.common import Manifest, Owner, Ref, sealed_hash
from visionrl_core.manifests.storage import claim_of


def test_every_object_belongs_to_the_job() -> None:
    for manifest in objects({**TWO_GPUS, "storage.retention": {"whenDeleted": "Delete"}}).values():
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "team"
        assert metadata["labels"]["visionrl.dev/job"] == "demo"
        assert metadata["ownerReferences"][0]["uid"] == "uid-1"
        assert len(metadata["name"]) <= 63


def test_the_longest_name_fits() -> None:
    long = job().model_copy(update={"metadata": job().metadata.model_copy(update={"name": "a" * 45})})
    owner = Owner("a" * 45, "team", "uid-1")
    assert all(len(manifest["metadata"]["name"]) <= 63 for manifest in all_manifests(long, 1000, owner, "k"))


def test_what_a_container_gets() -> None:
    found = pods()
    assert container(found["trainer"])["command"] == ["python", "-m", "visionrl_trainer"]
    assert env(found["trainer"])["VISIONRL_TASKAPP_URL"] == "http://demo-taskapp:8000"
    assert env(found["trainer"])["VISIONRL_INFERENCE_URL"] == "http://demo-inference:8000"
    assert env(found["inference"])["VISIONRL_TRAINER_URL"] == "http://demo-trainer:8000"
    assert env(found["taskapp"])["VISIONRL_INFERENCE_URL"] == "http://demo-inference:8000"
    for component, extra in {
        "taskapp": {"VISIONRL_TRACE_DIR", "NUMBA_CACHE_DIR"},
        "inference": {"VISIONRL_CACHE_DIR"},
        "trainer": {"VISIONRL_CACHE_DIR", "VISIONRL_RUN_DIR"},
    }.items():
        assert {"VISIONRL_JOB", "VISIONRL_KEY_FILE", "VISIONRL_HOST", "VISIONRL_PORT"} | extra <= set(
            env(found[component])
        )


@pytest.mark.parametrize("component", COMPONENTS)
def test_paths_in_the_environment_are_mounted(component: str) -> None:
    template = pods()[component]
    mounts = [mount["mountPath"] for mount in container(template)["volumeMounts"]]
    for name, value in env(template).items():
        if value.startswith("/"):
            assert any(value == mount or value.startswith(f"{mount}/") for mount in mounts), name
    names = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container(template)["volumeMounts"]} == names


@pytest.mark.parametrize("component", COMPONENTS)
def test_pods_fulfil_the_restricted_standard(component: str) -> None:
    spec = pods(TWO_GPUS)[component]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    context = spec["containers"][0]["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_that_has_no_signal_handler_yet_ends_on_sigterm(component: str) -> None:
    assert pods()[component]["spec"]["shareProcessNamespace"] is True, (
        "its process is not the first one of its namespace"
    )


def test_the_job_file_holds_every_default_and_the_key_only_the_secret() -> None:
    found = objects()
    text = found[Ref("ConfigMap", "demo-config")]["data"]["job.json"]
    assert Job.model_validate_json(text) == job()
    assert json.loads(text)["spec"]["training"]["learningRate"] == 5e-5
    secret = found.pop(Ref("Secret", "demo-key"))
    assert base64.b64decode(secret["data"]["api-key"]) == b"the-key"
    assert "the-key" not in json.dumps(list(found.values()))


def test_inference_may_start_for_as_long_as_the_job_says() -> None:
    probe = container(pods({"inference.startupTimeoutSeconds": 77})["inference"])["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 77


def test_a_single_gpu_pod_is_replaced_not_doubled() -> None:
    assert objects()[Ref("Deployment", "demo-inference")]["spec"]["strategy"] == {"type": "Recreate"}


def test_the_trainer_is_tried_once_a_kubernetes_job() -> None:
    trainer = objects(attempt=4)[Ref("Job", "demo-trainer-4")]
    assert trainer["spec"]["backoffLimit"] == 0
    assert trainer["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert trainer["spec"]["template"]["metadata"]["labels"]["visionrl.dev/attempt"] == "4"


# --- GPUs and placement


def test_cpu_jobs_ask_for_no_gpu() -> None:
    assert "nvidia.com/gpu" not in json.dumps(list(pods().values()))


def test_gpu_pods_ask_for_their_product() -> None:
    spec = pods({**TWO_GPUS, "trainer.gpu": {"products": ["NVIDIA-H100"], "runtimeClassName": "nvidia"}})
    trainer, inference = spec["trainer"]["spec"], spec["inference"]["spec"]
    assert trainer["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    terms = trainer["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [
        {"matchExpressions": [{"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-H100"]}]}
    ]
    assert trainer["runtimeClassName"] == "nvidia"
    assert inference["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    assert "gpu" not in json.dumps(spec["taskapp"]["spec"])


def test_one_node_binds_only_the_part_that_starts_second() -> None:
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    plain = pods({"placement.topology": "SameNode"})
    assert required in plain["trainer"]["spec"]["affinity"]["podAffinity"]
    assert required not in plain["inference"]["spec"]["affinity"]["podAffinity"]
    warm = pods({"placement.topology": "SameNode", **WARM_START})
    assert required in warm["inference"]["spec"]["affinity"]["podAffinity"]
    assert required not in warm["trainer"]["spec"]["affinity"]["podAffinity"]


def test_two_nodes_keep_the_parts_apart() -> None:
    for component in ("trainer", "inference"):
        assert "podAntiAffinity" in pods({"placement.topology": "DifferentNodes"})[component]["spec"]["affinity"]


def test_node_selector_reaches_all_parts_and_patches_their_own() -> None:
    found = pods({"placement.nodeSelector": {"zone": "a"}, "overrides.trainer": {"nodeSelector": {"disk": "nvme"}}})
    assert found["taskapp"]["spec"]["nodeSelector"] == {"zone": "a"}
    assert found["trainer"]["spec"]["nodeSelector"] == {"zone": "a", "disk": "nvme"}


def test_overrides_reach_the_pod() -> None:
    patch = {
        "labels": {"team": "rl"},
        "annotations": {"note": "x"},
        "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
        "priorityClassName": "high",
        "imagePullSecrets": ["registry"],
        "imagePullPolicy": "Never",
        "serviceAccountName": "trainer",
        "tolerations": [{"key": "spot"}],
    }
    template = pods({"overrides.inference": patch})["inference"]
    assert template["metadata"]["labels"]["team"] == "rl"
    assert template["metadata"]["labels"]["visionrl.dev/job"] == "demo"
    assert template["metadata"]["annotations"]["note"] == "x"
    assert env(template)["HF_HUB_OFFLINE"] == "1"
    assert template["spec"]["priorityClassName"] == "high"
    assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert container(template)["imagePullPolicy"] == "Never"
    assert template["spec"]["serviceAccountName"] == "trainer"
    assert template["spec"]["tolerations"] == [{"key": "spot", "operator": "Exists"}]


def test_no_pod_of_a_queued_job_is_kueues_own_business() -> None:
    for template in pods({"queueName": "gpus"}).values():
        assert "kueue" not in str(template["metadata"])


# --- volumes


def test_the_run_folder_lives_where_storage_says() -> None:
    def source(changes: dict[str, Any]) -> Manifest:
        return next(v for v in pods(changes)["trainer"]["spec"]["volumes"] if v["name"] == "run")

    assert source({"storage.ephemeral": True}) == {"name": "run", "emptyDir": {}}
    assert source({"storage.runClaim": "mine"})["persistentVolumeClaim"] == {"claimName": "mine"}
    assert source({})["persistentVolumeClaim"] == {"claimName": CLAIM.name}
    assert objects()[CLAIM]["spec"]["resources"] == {"requests": {"storage": "20Gi"}}
    claim = objects({"storage.runSize": "5Gi", "storage.storageClassName": "fast"})[CLAIM]
    assert claim["spec"]["resources"] == {"requests": {"storage": "5Gi"}}
    assert claim["spec"]["storageClassName"] == "fast"


def test_a_claim_outlives_its_job_unless_it_is_to_go_with_it() -> None:
    kept = objects()[CLAIM]["metadata"]
    assert "ownerReferences" not in kept, "the garbage collector would delete it with the job"
    assert kept["annotations"]["visionrl.dev/job-uid"] == "uid-1"
    assert objects({"storage.retention": {"whenDeleted": "Delete"}})[CLAIM]["metadata"]["ownerReferences"]


def test_a_job_never_gets_the_claim_of_a_former_one_of_its_name() -> None:
    assert claim_of(OWNER) != claim_of(Owner("demo", "team", "uid-2"))


def test_the_engine_gets_shared_memory() -> None:
    volumes = {volume["name"]: volume for volume in pods()["inference"]["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"


# --- what restarts what


def test_the_same_job_renders_the_same() -> None:
    assert objects(TWO_GPUS) == objects(TWO_GPUS)


@pytest.mark.parametrize(
    "change",
    [
        {"training.iterations": 9},
        {"evaluation.episodes": 9},
        {"lifecycle.activeDeadlineSeconds": 9},
        {"failurePolicy.maxRestarts": 9},
        {"suspend": True},
    ],
)
def test_what_may_change_restarts_nothing(change: dict[str, Any]) -> None:
    assert pods(change) == pods()


def test_what_is_fixed_would_restart_the_components() -> None:
    assert pods({"training.learningRate": 1e-3})["trainer"] != pods()["trainer"]


def test_task_app_resources_restart_the_task_app_alone() -> None:
    changed, before = pods({"taskApp.resources": {"cpu": "2"}}), pods()
    assert changed["taskapp"] != before["taskapp"]
    assert changed["inference"] == before["inference"]
    assert changed["trainer"] == before["trainer"]


def test_the_hash_follows_the_content() -> None:
    config = Ref("ConfigMap", "demo-config")
    assert sealed_hash(objects()[config]) != sealed_hash(objects({"training.iterations": 9})[config])
    assert sealed_hash(objects()[config]) == sealed_hash(objects()[config])


# --- the API


@pytest.mark.parametrize(
    "changes",
    [{}, {**TWO_GPUS, "placement.topology": "SameNode", "storage.runSize": "5Gi"}, {"queueName": "q", **WARM_START}],
)
def test_every_field_is_one_that_kubernetes_knows(changes: dict[str, Any]) -> None:
    """The client's models drop what they do not know: nothing may be missing after a round trip."""
    client = pytest.importorskip("kubernetes.client")
    api = client.ApiClient()
    for manifest in objects(changes).values():
        version = manifest["apiVersion"].rpartition("/")[2]
        typed = api.deserialize(json.dumps(manifest), f"{version.capitalize()}{manifest['kind']}", "application/json")
        assert api.sanitize_for_serialization(typed) == manifest
