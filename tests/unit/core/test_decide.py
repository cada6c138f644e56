"""What a user sees of a job, step by step."""

from __future__ import annotations

from datetime import timedelta

from tests.support.fake_cluster import (
    INFERENCE,
    OWNER,
    START,
    TASK_APP,
    FakeCluster,
    complete,
    reason,
    running,
    trainer,
)
from tests.support.jobs import WARM_START
from visionrl.job import JobSpec
from visionrl.status import Progress, TrainerReport
from visionrl_core.clock import stamp
from visionrl_core.manifests.common import Ref
from visionrl_core.manifests.storage import claim_of
from visionrl_core.observed import ObservedComponent

CLAIM = claim_of(OWNER)

# --- starting


def test_a_task_app_that_runs_elsewhere_is_asked_by_the_trainer_alone() -> None:
    key = {"name": "lamp", "key": "key"}
    cluster = FakeCluster({"taskApp.url": "https://lamp.games.svc:8443", "taskApp.keySecret": key})
    cluster.reconcile()
    assert TASK_APP not in cluster.objects
    assert Ref("Service", TASK_APP.name) not in cluster.objects
    assert reason(cluster.status, "TaskAppReady") == "RunsElsewhere"
    assert reason(cluster.status, "TrainerRunning") == "WaitingForInference"
    cluster.inference = ObservedComponent(ready=True, pods=1)
    cluster.reconcile()
    cluster.trainer_starts()
    waits = "waits for https://lamp.games.svc:8443: connection refused"
    cluster.report = TrainerReport(phase="Starting", message=waits)
    cluster.reconcile()
    assert cluster.status.reason == waits
    cluster.report = TrainerReport(phase="Training", task_app_ready=True)
    cluster.reconcile()
    assert reason(cluster.status, "TaskAppReady") == "Ready"

    for made, asks in ((trainer(0), "https://lamp.games.svc:8443"), (INFERENCE, None)):
        [container] = cluster.objects[made]["spec"]["template"]["spec"]["containers"]
        given = {variable["name"]: variable for variable in container["env"]}
        assert given["VISIONRL_TASKAPP_KEY"] == {"name": "VISIONRL_TASKAPP_KEY", "valueFrom": {"secretKeyRef": key}}
        assert given.get("VISIONRL_TASKAPP_URL", {}).get("value") == asks
    [container] = cluster.objects[trainer(0)]["spec"]["template"]["spec"]["containers"]
    inference = {"name": "VISIONRL_INFERENCE_URL", "value": "http://demo-inference.default.svc:8000"}
    assert inference in container["env"], "the server finds it from its own namespace"
    out = cluster.objects[Ref("NetworkPolicy", "demo-taskapp-url")]["spec"]
    assert out["egress"] == [{"ports": [{"protocol": "TCP", "port": 8443}]}]
    assert cluster.objects[Ref("NetworkPolicy", "demo-inference-url")]["spec"]["policyTypes"] == ["Ingress"]


def test_trainer_waits_for_task_app_and_inference() -> None:
    cluster = FakeCluster()
    cluster.reconcile()
    assert TASK_APP in cluster.objects
    assert INFERENCE in cluster.objects
    assert not cluster.trainers
    assert reason(cluster.decide().status, "TrainerRunning") == "WaitingForTaskApp"
    cluster.task_app = ObservedComponent(ready=True, pods=1)
    assert reason(cluster.decide().status, "TrainerRunning") == "WaitingForInference"
    cluster.servers_ready()
    cluster.reconcile()
    assert trainer(0) in cluster.objects


def test_a_key_is_nothing_that_can_be_decided() -> None:
    """It is random: the executor makes it, and pods, which carry its digest, follow."""
    cluster = FakeCluster()
    made = {manifest["kind"]: manifest for manifest in cluster.decide().manifests}
    assert made["Secret"]["data"] == {}
    assert "Deployment" not in made
    cluster.reconcile()
    assert TASK_APP in cluster.objects


def test_with_a_warm_start_inference_waits_for_the_base_model() -> None:
    cluster = FakeCluster(WARM_START)
    cluster.reconcile()
    cluster.servers_ready()
    cluster.reconcile()
    cluster.trainer_starts()
    cluster.report = TrainerReport(phase="WarmStart", message="step 3/4")
    cluster.reconcile()
    assert cluster.status.phase == "WarmStart"
    assert cluster.status.reason == "step 3/4"
    assert INFERENCE not in cluster.objects
    assert reason(cluster.status, "InferenceReady") == "WaitingForBase"
    cluster.report = TrainerReport(phase="WaitingForInference", base_ready=True)
    cluster.reconcile()
    assert INFERENCE in cluster.objects


def test_inference_stays_when_the_warm_started_trainer_restarts() -> None:
    cluster = running(WARM_START)
    cluster.report = TrainerReport(phase="Training", base_ready=True)
    cluster.reconcile()
    cluster.trainer_ends(1)
    cluster.report = None
    cluster.reconcile()
    cluster.deletions_complete()
    cluster.reconcile()
    assert INFERENCE in cluster.objects


def test_supervised_training_without_evaluation_needs_no_server() -> None:
    cluster = FakeCluster({**WARM_START, "algorithm.type": "sft", "evaluation.episodes": 0})
    cluster.settle()
    assert INFERENCE not in cluster.objects
    cluster = FakeCluster({**WARM_START, "algorithm.type": "sft"})
    cluster.reconcile()
    cluster.servers_ready()
    cluster.reconcile()
    assert trainer(0) in cluster.objects


def test_a_pending_job_says_why_in_one_line() -> None:
    cluster = FakeCluster()
    cluster.reconcile()
    cluster.inference = ObservedComponent(pods=1, reason="Unschedulable", message="0/4 nodes: no free NVIDIA-H200")
    cluster.task_app = ObservedComponent(pods=1, ready=True)
    cluster.reconcile()
    assert cluster.status.phase == "Pending"
    assert cluster.status.reason == "inference: Unschedulable (0/4 nodes: no free NVIDIA-H200)"


def test_a_pod_that_cannot_even_be_made_is_the_reason() -> None:
    cluster = FakeCluster()
    cluster.reconcile()
    cluster.task_app = ObservedComponent(reason="FailedCreate", message="exceeded quota: small")
    cluster.reconcile()
    assert cluster.status.reason == "taskApp: FailedCreate (exceeded quota: small)", "and not: inference is starting"
    assert cluster.status.phase == "Pending"


# --- reporting


def test_progress_comes_from_the_trainer_and_outlives_it() -> None:
    cluster = running()
    cluster.report = TrainerReport(phase="Training", progress=Progress(iteration=2, total=3, reward=1.5))
    cluster.reconcile()
    assert cluster.status.progress.reward == 1.5
    assert cluster.status.phase == "Running"
    cluster.report = None
    cluster.trainer_ends(0)
    cluster.reconcile()
    assert cluster.status.phase == "Complete"
    assert cluster.status.progress.iteration == 2


def test_a_trainer_that_loads_again_does_not_set_progress_back() -> None:
    cluster = running()
    cluster.report = TrainerReport(phase="Training", progress=Progress(iteration=2, total=3, reward=1.5))
    cluster.reconcile()
    cluster.report = TrainerReport(phase="Starting")
    cluster.reconcile()
    assert cluster.status.progress == Progress(iteration=2, total=3, reward=1.5)


def test_without_news_nothing_is_written() -> None:
    cluster = running()
    writes = len(cluster.written)
    for _ in range(5):
        cluster.wait(60)
        decision = cluster.reconcile()
        assert decision.manifests == ()
        assert decision.deletions == ()
    assert len(cluster.written) == writes


# --- the end


def test_at_the_end_servers_go_and_the_ended_trainer_stays_for_its_log() -> None:
    cluster = running()
    cluster.trainer_ends(0)
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.status.phase == "Complete"
    assert cluster.status.completion_time == stamp(cluster.now)
    assert TASK_APP not in cluster.objects
    assert INFERENCE not in cluster.objects
    assert trainer(0) in cluster.objects


def test_keep_all_keeps_the_servers() -> None:
    cluster = running({"lifecycle.cleanupPolicy": "KeepAll"})
    cluster.trainer_ends(0)
    cluster.reconcile()
    assert cluster.reconcile().deletions == ()
    assert INFERENCE in cluster.objects


def test_the_object_goes_after_its_time() -> None:
    cluster = running({"lifecycle.ttlSecondsAfterFinished": 60})
    cluster.trainer_ends(0)
    decision = cluster.reconcile()
    assert decision.requeue_at == cluster.now + timedelta(seconds=60)
    assert not cluster.job_deleted
    cluster.wait(60)
    cluster.reconcile()
    assert cluster.job_deleted


def test_a_trainer_that_never_runs_fails_the_job_at_its_deadline() -> None:
    cluster = FakeCluster({"lifecycle.preRunningDeadlineSeconds": 120})
    assert cluster.reconcile().requeue_at == START + timedelta(seconds=120)
    cluster.wait(120)
    cluster.reconcile()
    assert reason(cluster.status, "Failed") == "PreRunningDeadlineExceeded"


def test_the_pre_running_deadline_is_over_once_the_trainer_ran() -> None:
    cluster = running({"lifecycle.preRunningDeadlineSeconds": 120})
    cluster.trainer_ends(1)
    cluster.wait(200)
    cluster.reconcile()
    assert not cluster.status.finished


def test_suspended_time_does_not_count_against_the_active_deadline() -> None:
    cluster = running({"lifecycle.activeDeadlineSeconds": 100})
    cluster.wait(60)
    cluster.change({"suspend": True})
    cluster.reconcile()
    cluster.wait(1000)
    cluster.change({"suspend": False})
    decision = cluster.reconcile()
    assert not cluster.status.finished
    assert decision.requeue_at == cluster.now + timedelta(seconds=40)
    cluster.wait(40)
    cluster.reconcile()
    assert reason(cluster.status, "Failed") == "ActiveDeadlineExceeded"
    cluster.reconcile()
    cluster.deletions_complete()
    assert cluster.live_trainers() == 0


def test_a_complete_job_that_is_asked_for_more_trains_on_from_its_run_folder() -> None:
    cluster = complete({"storage.runSize": "1Gi"})
    cluster.wait(86_400)
    cluster.change({"training.iterations": 9})
    assert trainer(0) in cluster.reconcile().deletions
    assert not cluster.status.finished
    cluster.deletions_complete()
    cluster.settle()
    assert cluster.status.phase == "Complete"
    assert cluster.status.attempts[-1].number == 1
    accepted = cluster.status.condition("Accepted")
    assert accepted is not None
    assert accepted.status == "True"


def test_crashes_of_kept_servers_do_not_count_when_a_complete_job_trains_on() -> None:
    kept = {"lifecycle.cleanupPolicy": "KeepAll", "failurePolicy.maxRestarts": 1, "storage.runSize": "1Gi"}
    cluster = running({"training.iterations": 2, **kept})
    cluster.crash("task_app", 1)
    cluster.reconcile()
    cluster.trainer_ends(0)
    cluster.reconcile()
    cluster.crash("inference", 1)  # while nobody looks
    cluster.crash("inference", 1)
    assert cluster.status.phase == "Complete"
    cluster.change({"training.iterations": 9})
    cluster.reconcile()
    cluster.reconcile()
    assert not cluster.status.finished
    assert [entry.counted for entry in cluster.status.failures] == [False, False]
    cluster.crash("inference", 1)
    cluster.reconcile()
    assert not cluster.status.finished
    cluster.crash("inference", 1)
    cluster.reconcile()
    assert reason(cluster.status, "Failed") == "MaxRestartsExceeded"


def test_a_complete_job_without_a_run_folder_says_why_it_cannot_train_on() -> None:
    cluster = complete({"storage.ephemeral": True})
    cluster.change({"training.iterations": 9})
    for _ in range(3):
        cluster.reconcile()
        assert cluster.status.phase == "Complete"
        assert reason(cluster.status, "Accepted") == "RunFolderGone"
    cluster.change({"training.iterations": 3})
    cluster.reconcile()
    assert reason(cluster.status, "Accepted") in ("Valid", "ValidWithWarnings")


def test_a_complete_job_that_is_asked_for_nothing_stays_complete() -> None:
    cluster = complete({"storage.runSize": "1Gi"})
    cluster.change({"training.iterations": 2, "failurePolicy.maxRestarts": 7})
    cluster.reconcile()
    assert cluster.status.phase == "Complete"


# --- suspending, changing


def test_a_suspended_job_has_no_pods_and_goes_on_afterwards() -> None:
    cluster = running()
    cluster.change({"suspend": True})
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.status.reason == "pods are ending", "the trainer writes its checkpoint"
    cluster.deletions_complete()
    cluster.reconcile()
    assert (cluster.status.phase, cluster.status.reason) == ("Suspended", "suspended")
    assert not cluster.trainers
    assert cluster.task_app.pods == cluster.inference.pods == 0
    assert cluster.status.attempts[0].cause == "suspended"
    assert cluster.status.restarts == 0
    cluster.change({"suspend": False})
    cluster.settle()
    assert cluster.status.phase == "Complete"
    assert reason(cluster.status, "Suspended") == "Resumed"


def test_an_invalid_job_makes_nothing_and_names_the_field() -> None:
    cluster = FakeCluster({"training.groupSize": 1})
    decision = cluster.reconcile()
    assert decision.manifests == ()
    assert cluster.status.phase == "Pending"
    assert cluster.status.reason.startswith("spec.training.groupSize: must be at least 2")
    cluster.change({"training.groupSize": 2})
    cluster.settle()
    assert cluster.status.phase == "Complete"


def test_a_fixed_field_cannot_change_and_the_job_goes_on() -> None:
    cluster = running()
    cluster.change({"training.learningRate": 1e-3, "training.iterations": 7})
    decision = cluster.reconcile()
    accepted = cluster.status.condition("Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.reason) == ("False", "Immutable")
    assert accepted.message.startswith("spec.training.learningRate cannot change")
    assert cluster.status.phase == "Running"
    # What may change was taken over.
    spec: JobSpec = cluster.observe().accepted.spec  # type: ignore[union-attr]
    assert spec.training.iterations == 7
    assert spec.training.learning_rate == 5e-5
    assert [manifest["kind"] for manifest in decision.manifests] == ["ConfigMap"]


def test_more_iterations_restart_nothing() -> None:
    cluster = running()
    cluster.change({"training.iterations": 9, "evaluation.episodes": 4, "failurePolicy.maxRestarts": 9})
    decision = cluster.reconcile()
    assert [manifest["kind"] for manifest in decision.manifests] == ["ConfigMap"]
    assert cluster.status.phase == "Running"
    assert cluster.status.observed_generation == 2


def test_the_key_is_made_once() -> None:
    cluster = running()
    cluster.change({"training.iterations": 9})
    assert "Secret" not in [manifest["kind"] for manifest in cluster.decide().manifests]
