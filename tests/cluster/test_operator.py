"""The operator as a process against a real API server and its controllers. There is no kubelet: what nodes would
report of pods is written by the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.fake_kueue import condition
from tests.support.jobs import document as job_document
from visionrl.status import PolicyVersions, Progress, TrainerReport
from visionrl_cli import main
from visionrl_core.crd import crd

from .fake_kueue import KueueActs
from .kube import cluster as kube_cluster
from .kube.host import KubeError, wait_until
from .kube.layout import Cluster
from .operator_world import FIRST_OBJECTS, KINDS, LOSES_ITS_RESULT, OURS, FakeTrainer, World

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def kube() -> Iterator[kube_cluster.Running]:
    """A control plane of this module's own, with the custom resource for servers without CEL."""
    if os.environ.get("VISIONRL_E2E_KUBECONFIG"):
        pytest.skip("pretends to be the nodes of a cluster that has none")
    cluster = Cluster.of(
        os.environ.get("VISIONRL_OPTEST_NAME", "optest"),
        os.environ.get("VISIONRL_OPTEST_CIDR", "10.202.0.0/16"),
    )
    was_up = kube_cluster.is_up(cluster)
    running = kube_cluster.up(cluster, control_plane_only=True)
    try:
        running.kubectl.define(crd(cel=False))
        yield running
    finally:
        if not was_up:
            kube_cluster.down(cluster)


@pytest.fixture
def world(kube: kube_cluster.Running, namespace: str) -> World:
    return World(kube, namespace)


# --- one job


MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("unknown-key", {"training.grupSize": 4}, "spec.training.grupSize"),
    ("wrong-type", {"training.iterations": "three"}, "spec.training.iterations"),
    ("out-of-range", {"training.iterations": 0}, "spec.training.iterations"),
    ("enum", {"algorithm.loss": "ppo"}, "spec.algorithm.loss"),
    ("pattern", {"taskApp.resources": {"memory": "lots"}}, "spec.taskApp.resources.memory"),
    ("group-of-one", {"training.groupSize": 1}, "spec.training.groupSize"),
    ("gpu-split", {"inference.gpu": {"count": 2}}, "spec.inference.gpu.count"),
    ("no-images", {"inference.vllm.limitMmPerPrompt": {"image": 0}}, "spec.inference.vllm.limitMmPerPrompt.image"),
    ("text-model", {"model.base": "Qwen/Qwen3-4B"}, "spec.rollout.policyConfig.imageOnlyMode"),
    ("two-volumes", {"storage": {"runClaim": "a", "runSize": "1Gi"}}, "spec.storage.runSize"),
    ("match-all", {"failurePolicy.rules": [{"action": "Fail"}]}, "spec.failurePolicy.rules[0]"),
    ("reserved", {"overrides.trainer.env": [{"name": "VISIONRL_JOB", "value": "x"}]}, "spec.overrides.trainer.env[0]"),
    ("module-names", {"model.lora": {"targetModules": 3}}, "spec.model.lora.targetModules"),
    ("no-room", {"rollout.policyConfig.maxTokens": 5000}, "spec.rollout.policyConfig.maxTokens"),
]


def test_every_mistake_is_told_by_its_field(world: World) -> None:
    refused, silent = {}, []
    with world.operator() as operator:
        operator.wait_ready()
        for name, changes, _ in MISTAKES:
            try:
                world.apply(changes, name)
            except KubeError as error:
                refused[name] = str(error)
        for name, _, path in MISTAKES:
            if name not in refused:
                world.wait(lambda name=name: world.condition("Accepted", name)["status"] == "False", f"{name} refused")
                assert world.status(name)["phase"] == "Pending"
                assert world.objects(name) == set()
                refused[name] = world.condition("Accepted", name)["message"]
            if path.rpartition(".")[2] not in refused[name]:
                silent.append((name, refused[name]))
    assert not silent


def test_a_job_that_was_there_first_gets_all_objects_and_then_peace(world: World) -> None:
    world.apply()
    with world.operator() as operator:
        operator.wait_ready()
        world.wait_for_objects()
        for server in ("TaskAppReady", "InferenceReady"):
            world.wait(
                lambda server=server: world.condition(server)["reason"] == "Unschedulable", "the scheduler's answers"
            )
        assert world.status()["reason"] == "taskApp: Unschedulable (no nodes available to schedule pods)"
        assert world.events() == [LOSES_ITS_RESULT, "Created"]

        shown = world.kubectl("get", "vrl", "demo", "--no-headers").split()
        assert shown[:2] == ["demo", "Pending"]

        def writes() -> list[str]:
            return [line for line in operator.get("/metrics").text.splitlines() if "api_writes_total{" in line]

        world.kubectl("annotate", "vrl", "demo", "kubectl.kubernetes.io/nudge=1")
        before = writes()
        with pytest.raises(KubeError):  # nothing to wait for: five quiet seconds
            wait_until(lambda: writes() != before, "a write that nobody needs", 5)
        assert operator.stop() == 0


def test_a_whole_life(world: World) -> None:
    world.apply({"failurePolicy.backoffSeconds": 0.0})
    with world.operator() as operator:
        operator.wait_ready()
        world.wait_for_objects()
        for component in ("taskapp", "inference"):
            world.pod_runs(component)
        world.wait_for_objects(FIRST_OBJECTS | {"job.batch/demo-trainer-0"})

        with FakeTrainer(world, "127.0.7.1") as trainer:
            world.pod_runs("trainer", "127.0.7.1")
            world.wait(lambda: world.status()["phase"] == "Running", "the trainer to run")
            progress = Progress(iteration=1, total=3, reward=2.5, episodes_per_minute=70.0)
            policy = PolicyVersions(trained="demo-v000001", serving="demo-v000001")
            trainer.report = TrainerReport(phase="Training", base_ready=True, progress=progress, policy=policy)
            world.wait(lambda: world.status()["progress"]["iteration"] == 1, "progress")
            shown = world.kubectl("get", "vrl", "demo", "--no-headers").split()
            assert shown[:6] == ["demo", "Running", "1", "2.5", "70", "demo-v000001"]
            assert trainer.refused == 0

        world.pod_ends("trainer", 137, "OOMKilled")
        world.wait_for_objects(FIRST_OBJECTS | {"job.batch/demo-trainer-1"})
        status = world.status()
        assert (status["attempt"], status["restarts"]) == (1, 1)
        assert status["attempts"][0]["cause"] == "trainer: exit code 137 (OOMKilled)"

        world.pod_runs("trainer", "127.0.7.2")
        world.wait(lambda: world.status()["phase"] == "Running", "the second attempt to run")
        world.pod_ends("trainer", 0, "Completed")
        world.wait(lambda: world.status()["phase"] == "Complete", "the end")
        world.wait(lambda: not any("deployment" in name for name in world.objects()), "the servers' end")
        world.wait(lambda: "Completed" in world.events(), "the last event")
        assert world.events() == [LOSES_ITS_RESULT, "Created", "Ready", "Restarted", "Ready", "Completed"]
        assert "job.batch/demo-trainer-1" in world.objects(), "the trainer's log stays"


def test_changes_are_applied_or_refused(world: World) -> None:
    world.apply()
    with world.operator() as operator:
        operator.wait_ready()
        world.wait_for_objects()

        def config() -> dict[str, Any]:
            data = world.kube.kubectl.get("configmap", "demo-config", "-n", world.namespace)["data"]
            return json.loads(data["job.json"])["spec"]

        world.patch({"training": {"iterations": 7}})
        world.wait(lambda: config()["training"]["iterations"] == 7, "the new number of iterations")

        world.patch({"training": {"groupSize": 4}, "evaluation": {"episodes": 2}})
        world.wait(lambda: world.condition("Accepted")["reason"] == "Immutable", "the refusal")
        assert "spec.training.groupSize cannot change" in world.condition("Accepted")["message"]
        world.wait(lambda: config()["evaluation"]["episodes"] == 2, "what may change all the same")
        assert config()["training"]["groupSize"] == 8

        world.patch({"training": {"groupSize": 8}})
        world.wait(lambda: world.condition("Accepted")["status"] == "True", "the change that was taken back")


def test_null_switches_a_guard_off(world: World) -> None:
    """Where it reaches the server: `kubectl apply` drops it."""
    document = job_document({"training.guards": {"maxInvalidRate": None}})
    world.kube.kubectl("create", "-n", world.namespace, "-f", "-", stdin=json.dumps(document))
    guards = world.job()["spec"]["training"]["guards"]
    assert guards["maxInvalidRate"] is None, "and not its default"
    assert guards["maxMismatchKL"] == 0.015
    with world.operator() as operator:
        operator.wait_ready()
        world.wait(lambda: world.condition("Accepted")["status"] == "True", "the verdict")


def test_an_operator_older_than_the_definition_works_and_says_what_it_ignores(world: World) -> None:
    """As for some seconds of an upgrade: the chart brings the definition first."""
    newer = crd(cel=False)
    spec = newer["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["training"]["properties"]["fromTheFuture"] = {"type": "integer", "default": 7}
    world.kube.kubectl.apply(newer)
    try:
        world.apply()
        world.wait(lambda: world.job()["spec"]["training"].get("fromTheFuture") == 7, "the default of the definition")
        with world.operator() as operator:
            operator.wait_ready()
            world.wait_for_objects()
            accepted = world.condition("Accepted")
            assert (accepted["status"], accepted["reason"]) == ("True", "FieldsIgnored")
            assert "spec.training.fromTheFuture" in accepted["message"]
            world.wait(lambda: "FieldsIgnored" in world.events(), "the event")
    finally:
        world.kube.kubectl.apply(crd(cel=False))
        unknown = "visionrljobs.spec.training.fromTheFuture"
        wait_until(lambda: not world.kube.kubectl.succeeds("explain", unknown), "the definition as it was", 60)


def test_suspending_and_resuming(world: World) -> None:
    world.apply()
    with world.operator() as operator:
        operator.wait_ready()
        world.wait_for_objects()
        world.patch({"suspend": True})
        servers = {"deployment.apps/demo-taskapp", "deployment.apps/demo-inference"}
        world.wait_for_objects(FIRST_OBJECTS - servers)
        world.wait(lambda: world.status()["phase"] == "Suspended", "the phase")
        world.wait(lambda: not world.pod_of("taskapp") and not world.pod_of("inference"), "the pods' end")
        world.patch({"suspend": False})
        world.wait_for_objects()
        world.wait(lambda: world.events()[-2:] == ["Suspended", "Resumed"], "the events")


def test_deleting_the_job_deletes_everything(world: World) -> None:
    world.apply()
    with world.operator() as operator:
        operator.wait_ready()
        world.wait_for_objects()
        assert "finalizers" not in world.job()["metadata"]
        world.kubectl("delete", "vrl", "demo")
        wait_until(lambda: world.objects() == set(), "the garbage collector", 120)
        world.apply()
        world.wait_for_objects()
        owners = world.kube.kubectl.get("secret", "demo-key", "-n", world.namespace)["metadata"]["ownerReferences"]
        assert [owner["uid"] for owner in owners] == [world.job()["metadata"]["uid"]]


def test_a_deleted_object_comes_back(world: World) -> None:
    world.apply()
    with world.operator() as operator:
        operator.wait_ready()
        world.wait_for_objects()
        world.kubectl("delete", "service/demo-trainer", "deployment/demo-taskapp", "networkpolicy/demo-parts")
        world.wait_for_objects()


def test_a_server_that_was_scaled_or_relabelled_is_repaired(world: World) -> None:
    world.apply()
    with world.operator() as operator:
        operator.wait_ready()
        world.wait_for_objects()

        def deployment() -> dict[str, Any]:
            return world.kube.kubectl.get("deployment", "demo-inference", "-n", world.namespace)

        template = deployment()["spec"]["template"]
        world.kubectl("scale", "deployment/demo-inference", "--replicas=0")
        world.wait(lambda: deployment()["spec"]["replicas"] == 1, "the repair")
        world.wait(lambda: "Repaired" in world.events(), "the event")
        world.kubectl("label", "deployment/demo-inference", "visionrl.dev/job-")
        world.wait(lambda: deployment()["metadata"]["labels"].get("visionrl.dev/job") == "demo", "the label")
        world.wait_for_objects()
        assert deployment()["spec"]["template"] == template
        assert "Drifted" not in json.dumps(world.status())


@pytest.mark.parametrize("kind", ["Service", "ConfigMap"])
def test_what_belongs_to_others_is_told_and_left_alone(world: World, kind: str) -> None:
    name = {"Service": "demo-trainer", "ConfigMap": "demo-config"}[kind]
    content = {"spec": {"ports": [{"port": 80}]}} if kind == "Service" else {"data": {"mine": "yes"}}
    foreign = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **content}
    world.kube.kubectl.apply(foreign, namespace=world.namespace)
    world.apply()
    with world.operator() as operator:
        operator.wait_ready()
        world.wait(
            lambda: f"{kind}/{name} exists and is not this job's" in world.status().get("reason", ""), "the reason"
        )
        assert "ownerReferences" not in world.kube.kubectl.get(kind, name, "-n", world.namespace)["metadata"]
        world.kubectl("delete", kind, name)
        world.wait_for_objects()


REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "quota": ("ResourceQuota", {"hard": {"pods": "0"}}, "exceeded quota: no-pods"),
    "maximum": (
        "LimitRange",
        {"limits": [{"type": "Container", "max": {"memory": "1Mi"}}]},
        "maximum memory usage per Container is 1Mi",
    ),
    # Our containers have no CPU limit: the maximum becomes theirs.
    "limit": ("LimitRange", {"limits": [{"type": "Container", "max": {"cpu": "1m"}}]}, "kubectl get limitrange"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_quota_or_limit_range_is_told_in_one_line(world: World, what: str) -> None:
    kind, spec, words = REFUSALS[what]
    api = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "no-pods"}, "spec": spec}
    world.kube.kubectl.apply(api, namespace=world.namespace)
    if kind == "ResourceQuota":
        wait_until(
            lambda: "used" in world.kubectl("get", "quota", "no-pods", "-o", "yaml"), "the quota to be counted", 30
        )
    world.apply({"queueName": None})
    with world.operator() as operator:
        operator.wait_ready()
        world.wait(lambda: words in world.status().get("reason", ""), "the reason")
        # The other server's pod may have been refused before.
        world.wait(lambda: world.condition("TaskAppReady")["reason"] == "FailedCreate", "the task app's refusal")


def test_a_queued_job_waits_runs_gives_way_and_comes_back(world: World) -> None:
    """Kueue is a fake that acts on the real API server."""
    kueue = KueueActs(world, quota=0)
    kueue.install()
    deployments = {"deployment.apps/demo-taskapp", "deployment.apps/demo-inference"}
    try:
        with world.operator() as operator:
            operator.wait_ready()
            world.apply({"queueName": "gpus"})

            def shows(words: str) -> bool:
                kueue()
                return words in world.status().get("reason", "")

            world.wait(lambda: shows("insufficient unused quota for pods"), "Kueue's words")
            assert world.status()["phase"] == "Queued"
            assert world.objects() == FIRST_OBJECTS - deployments

            kueue.rules.quota = 3
            kueue()
            world.wait_for_objects()
            spec = world.kube.kubectl.get("deployment", "demo-taskapp", "-n", world.namespace)["spec"]["template"][
                "spec"
            ]
            assert spec["nodeSelector"] == {"gpu": "h200"}
            for component in ("taskapp", "inference"):
                world.pod_runs(component)
            world.wait_for_objects(FIRST_OBJECTS | {"job.batch/demo-trainer-0"})
            world.wait(lambda: condition(kueue.workloads()[0], "PodsReady").get("status") == "True", "ready pods")
            world.pod_runs("trainer")
            world.wait(lambda: world.status()["phase"] == "Running", "the trainer to run")

            kueue.preempt()
            kueue.rules.quota = 0
            world.wait(lambda: condition(kueue.workloads()[0], "Requeued").get("status") == "True", "the quota")
            assert world.kubectl("get", "pods", "-o", "name").split() == []
            assert "admission" not in kueue.workloads()[0]["status"]
            assert (world.status()["phase"], world.status()["restarts"]) == ("Queued", 0)

            kueue.rules.quota = 3
            kueue()
            world.wait_for_objects()
            world.wait(lambda: world.condition("Admitted")["status"] == "True", "another admission")
            world.kubectl("delete", "vrl", "demo")
            world.wait(lambda: kueue.workloads() == [], "the Workload's end")
    finally:
        kueue.remove()


def test_a_claim_outlives_its_job_and_a_lost_one_is_told(world: World) -> None:
    def claims() -> list[dict[str, Any]]:
        selector = f"{OURS},visionrl.dev/job=demo"
        return list(world.kube.kubectl.get("pvc", "-l", selector, "-n", world.namespace)["items"])

    world.apply({"storage": {"runSize": "1Gi"}})
    with world.operator() as operator:
        operator.wait_ready()
        world.wait(lambda: world.condition("ResultKept")["reason"] == "ClaimMade", "the claim")
        world.wait(lambda: len(claims()) == 1, "one claim")
        [claim] = claims()
        for component in ("taskapp", "inference"):
            world.pod_runs(component)
        world.pod_runs("trainer", "127.0.7.9")
        world.wait(lambda: bool(world.status().get("attempts")), "the first attempt")
        world.pod_ends("trainer", 137, "OOMKilled")  # no pod protects the claim any more
        world.kubectl("delete", "pvc", claim["metadata"]["name"], "--wait=false")
        world.wait(lambda: "ClaimLost" in world.events(), "the news", 120)
        world.wait(lambda: world.condition("ResultKept")["reason"] == "ClaimMadeAnew", "another claim")
        [again] = claims()
        assert again["metadata"]["name"] == claim["metadata"]["name"]
        assert again["metadata"]["uid"] != claim["metadata"]["uid"]

        world.kubectl("delete", "vrl", "demo")
        wait_until(
            lambda: world.objects() == {f"persistentvolumeclaim/{again['metadata']['name']}"}, "the rest to go", 120
        )


def test_a_deleted_key_rolls_all_components_together(world: World) -> None:
    world.apply({"failurePolicy.backoffSeconds": 0.0})
    with world.operator() as operator:
        operator.wait_ready()
        for component in ("taskapp", "inference"):
            world.pod_runs(component)
        world.pod_runs("trainer", "127.0.7.10")
        world.wait(lambda: bool(world.status().get("attempts")), "the first attempt")
        pods = {component: world.pod_of(component) for component in ("taskapp", "inference", "trainer")}
        world.kubectl("delete", "secret", "demo-key")
        operator.stop()
    with world.operator() as operator:  # which looks at once; the other one would have within five minutes
        operator.wait_ready()
        world.wait(lambda: "secret/demo-key" in world.objects(), "another key")
        for component in ("taskapp", "inference"):
            world.kubectl("delete", "pod", pods[component], "--force", "--grace-period=0", "--ignore-not-found")
            world.wait(
                lambda component=component: world.pod_of(component) not in ("", pods[component]), f"a {component}"
            )
            world.pod_runs(component)
        world.kubectl("delete", "pod", pods["trainer"], "--force", "--grace-period=0", "--ignore-not-found")
        world.wait(lambda: world.status()["attempt"] == 1, "the next attempt", 120)
        assert world.status()["restarts"] == 0, "nothing failed"


# --- operators that die, and several at once


def names(count: int) -> list[str]:
    return [f"job-{index}" for index in range(count)]


def expect_all(world: World, jobs: list[str]) -> None:
    """Every job has exactly its objects, and one Secret that is its own."""

    def counts() -> dict[str, int]:
        listed = world.kubectl("get", KINDS, "-l", OURS, "-o", "name").split()
        return {job: sum(1 for name in listed if f"/{job}-" in name) for job in jobs}

    expected = dict.fromkeys(jobs, len(FIRST_OBJECTS))
    wait_until(lambda: counts() == expected, f"{len(FIRST_OBJECTS)} objects of each job", 180)
    pods = world.kubectl("get", "pods", "-o", "name").split()
    wait_until(lambda: len(world.kubectl("get", "pods", "-o", "name").split()) == 2 * len(jobs), f"not {pods}", 60)


def kill_an_operator_at(objects: int, world: World) -> None:
    """Run an operator until the world has so many objects."""
    with world.operator() as operator:
        operator.wait_ready()
        wait_until(
            lambda: len(world.kubectl("get", KINDS, "-l", OURS, "-o", "name").split()) >= objects,
            f"{objects} objects",
            120,
        )
        operator.kill()


def test_killed_again_and_again_it_leaves_no_gap_and_no_double(world: World) -> None:
    jobs = names(12)
    for job in jobs:
        world.apply(name=job)
    for enough in (5, 30, 70):
        kill_an_operator_at(enough, world)
    with world.operator() as operator:
        operator.wait_ready()
        expect_all(world, jobs)


def test_two_operators_without_election_do_no_harm(world: World) -> None:
    jobs = names(8)
    with world.operator() as first, world.operator() as second:
        first.wait_ready()
        second.wait_ready()
        for job in jobs:
            world.apply(name=job)
        expect_all(world, jobs)
        for job in jobs:
            world.wait(lambda job=job: world.condition("Accepted", job)["status"] == "True", f"{job}'s status")


def test_of_two_replicas_one_leads_and_the_other_takes_over(world: World) -> None:
    with world.operator(election=True) as first:
        first.wait_ready()
        with world.operator(election=True) as second:
            second.wait_for_state("standing by")
            assert second.get("/readyz").status_code == 200, "a rollout may go on"
            world.apply()
            world.wait_for_objects()

            first.kill()
            second.wait_ready(60)
            world.apply(name="after-death")
            wait_until(lambda: len(world.objects("after-death")) == len(FIRST_OBJECTS), "the successor's work", 60)

            with world.operator(election=True) as third:
                third.wait_for_state("standing by")
                assert second.stop() == 0
                third.wait_ready(20)


def test_a_namespace_without_jobs_is_nothing_to_wait_for(world: World) -> None:
    with world.operator() as operator:
        operator.wait_ready()
        assert operator.get("/healthz").text == "ok\n"
        assert operator.stop() == 0


# --- the command line


def test_jobs_are_listed_explained_suspended_resumed_and_cancelled(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world.kube.kubeconfig))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")

    def visionrl(*words: str) -> str:
        assert main([*words, "--namespace", world.namespace], program="kubectl visionrl") == 0
        return capsys.readouterr().out

    world.apply()
    world.apply({"training.groupSize": 1}, "refused")
    assert "no operator has seen it" in visionrl("explain", "demo")
    with world.operator() as operator:
        operator.wait_ready()
        world.wait(lambda: world.condition("TaskAppReady")["reason"] == "Unschedulable", "the scheduler's answer")
        rows = visionrl("jobs", "list").splitlines()
        assert [row.split()[:2] for row in rows[1:]] == [["demo", "Pending"], ["refused", "Pending"]]
        assert "to do: the cluster has no node that takes pods" in visionrl("explain", "demo")
        world.wait(lambda: world.condition("Accepted", "refused")["status"] == "False", "the refusal")
        assert "spec.training.groupSize" in visionrl("explain", "refused")

        visionrl("jobs", "suspend", "demo")
        world.wait(lambda: world.status()["phase"] == "Suspended", "the suspension")
        visionrl("jobs", "resume", "demo")
        world.wait(lambda: world.status()["phase"] == "Pending", "the resumption")
        visionrl("jobs", "cancel", "demo")
        world.wait(lambda: world.status()["phase"] == "Suspended", "the end of the pods")
        found = json.loads(visionrl("jobs", "get", "demo", "--json"))
        assert found["phase"] == "Cancelled"
        assert "Suspended True (Suspended)" in visionrl("jobs", "timeline", "demo")
