"""The objects of a job: what reaches the containers, what restarts them, and who may talk to whom."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.jobs import WARM_START, job
from visionrl.job import Job
from visionrl_core.manifests import all_manifests
from visionrl_core.manifests.common import Manifest, Owner, Ref, ref, sealed_hash
from visionrl_core.manifests.merge import NO_DEFAULTS, PodDefaults
from visionrl_core.manifests.network import network_policies
from visionrl_core.manifests.storage import claim_of
from visionrl_core.manifests.trainer import trainer_job

OWNER = Owner("demo", "team", "uid-1")
CLAIM = claim_of(OWNER)
COMPONENTS = ("taskapp", "inference", "trainer")
TWO_GPUS: dict[str, Any] = {"inference.gpu": {}, "trainer.gpu": {}}


def objects(changes: dict[str, Any] | None = None, attempt: int = 0) -> dict[Ref, Manifest]:
    return {ref(manifest): manifest for manifest in all_manifests(job(changes), attempt, OWNER, "the-key")}


def pods(changes: dict[str, Any] | None = None) -> dict[str, Manifest]:
    """Pod templates by component."""
    templates = [c["spec"]["template"] for c in objects(changes).values() if c["kind"] in ("Deployment", "Job")]
    return {template["metadata"]["labels"]["visionrl.dev/component"]: template for template in templates}


def container(template: Manifest) -> Manifest:
    return template["spec"]["containers"][0]


def env(template: Manifest) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container(template)["env"]}


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


# --- network


def policies(changes: dict[str, Any]) -> dict[str, Manifest]:
    return {name.name: c for name, c in objects(changes).items() if name.kind == "NetworkPolicy"}


def test_only_the_components_talk_to_each_other_and_the_operator_reads_the_report() -> None:
    found = policies({})
    assert set(found) == {"demo-parts", "demo-report"}
    components = found["demo-parts"]["spec"]
    assert components["policyTypes"] == ["Ingress", "Egress"]
    only_the_job = [{"podSelector": {"matchLabels": {"visionrl.dev/job": "demo"}}}]
    assert [rule["from"] for rule in components["ingress"]] == [only_the_job]
    assert components["egress"][0]["to"] == only_the_job
    assert {port["port"] for port in components["egress"][1]["ports"]} == {53}
    assert found["demo-report"]["spec"]["podSelector"]["matchLabels"]["visionrl.dev/component"] == "trainer"


def test_only_jobs_with_a_model_from_a_hub_reach_out() -> None:
    hub = {"model.base": "Qwen/Qwen3-VL-4B-Instruct"}
    assert policies(hub)["demo-hub"]["spec"]["egress"] == [{"ports": [{"protocol": "TCP", "port": 443}]}]
    assert "demo-hub" not in policies({"model": {"base": "/models/qwen3-vl"}})


@pytest.mark.parametrize(
    ("tracking", "ports"),
    [
        ({"wandb": {"project": "games"}}, [443]),
        ({"wandb": {"project": "games", "mode": "offline"}}, None),
        ({"trackio": {"project": "games", "spaceId": "me/games"}}, [443]),
        ({"mlflow": {"experiment": "games"}}, None),
        ({"mlflow": {"experiment": "games", "trackingUri": "http://mlflow.tools:5000"}}, [5000]),
        ({"mlflow": {"experiment": "games", "trackingUri": "https://mlflow"}, "wandb": {"project": "games"}}, [443]),
    ],
)
def test_the_trainer_reaches_the_trackers_of_its_job(tracking: dict[str, Any], ports: list[int] | None) -> None:
    found = policies({"tracking": tracking})
    assert ("demo-trackers" in found) == (ports is not None)
    if ports:
        spec = found["demo-trackers"]["spec"]
        assert [port["port"] for port in spec["egress"][0]["ports"]] == ports
        assert spec["podSelector"]["matchLabels"]["visionrl.dev/component"] == "trainer"


@pytest.mark.parametrize("endpoint", ["collector:4318", "http://user:key@c", "http://c:99999", "http://c/?key=1", ""])
def test_an_endpoint_that_is_none_is_refused_before_a_policy_is_made_of_it(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="endpoint"):
        job({"tracking.otlp": {"endpoint": endpoint}})


@pytest.mark.parametrize(
    ("endpoint", "port"), [("http://collector:4318", 4318), ("https://collector/", 443), ("http://[::1]/x", 80)]
)
def test_all_components_reach_the_collector_of_spans(endpoint: str, port: int) -> None:
    spec = policies({"tracking": {"otlp": {"endpoint": endpoint}}})["demo-spans"]["spec"]
    assert spec["egress"] == [{"ports": [{"protocol": "TCP", "port": port}]}]
    assert spec["podSelector"] == {"matchLabels": {"visionrl.dev/job": "demo"}}


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


def test_metrics_are_reached_by_those_whom_the_cluster_names() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    names = {name["metadata"]["name"]: name for name in network_policies(job(), OWNER, [monitoring])}
    rule = names["demo-metrics"]["spec"]
    assert rule["ingress"] == [{"from": [monitoring], "ports": [{"protocol": "TCP", "port": 8000}]}]
    assert rule["podSelector"]["matchExpressions"][0]["values"] == ["inference", "trainer"]
    assert "demo-metrics" not in {name["metadata"]["name"] for name in network_policies(job(), OWNER)}


# --- pod templates of jobs and clusters


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
