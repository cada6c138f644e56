"""What a user sees of a job, step by step."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.fake_cluster import OWNER, START, FakeCluster
from tests.support.jobs import WARM_START
from visionrl.job import JobSpec
from visionrl.status import Copy, JobStatus, Progress, TrainerReport
from visionrl_core.clock import stamp
from visionrl_core.events import events_between
from visionrl_core.manifests.common import Ref
from visionrl_core.manifests.storage import claim_of
from visionrl_core.observed import ExportRun, ObservedComponent, StuckPod

CLAIM = claim_of(OWNER)
TASK_APP, INFERENCE = Ref("Deployment", "demo-taskapp"), Ref("Deployment", "demo-inference")


def trainer(attempt: int) -> Ref:
    return Ref("Job", f"demo-trainer-{attempt}")


def running(spec: dict[str, Any] | None = None) -> FakeCluster:
    """A job whose trainer runs."""
    cluster = FakeCluster(spec or {})
    cluster.reconcile()
    cluster.servers_ready()
    cluster.reconcile()
    cluster.trainer_starts()
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    return cluster


def reason(status: JobStatus, condition: str) -> str:
    found = status.condition(condition)  # type: ignore[arg-type]
    assert found is not None, f"no condition {condition}"
    return found.reason


# --- starting


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


# --- failing


def test_a_failed_trainer_restarts_alone_after_its_pod_is_gone() -> None:
    cluster = running()
    cluster.trainer_ends(137, "OOMKilled")
    decision = cluster.reconcile()
    assert decision.deletions == (trainer(0),)
    assert cluster.status.attempt == 1
    assert cluster.status.phase == "Restarting"
    assert cluster.status.attempts[0].cause == "trainer: exit code 137 (OOMKilled)"
    assert "exit code 137 (OOMKilled)" in cluster.status.reason

    cluster.wait(100)
    assert trainer(1) not in [Ref(c["kind"], c["metadata"]["name"]) for c in cluster.reconcile().manifests]
    cluster.deletions_complete()
    cluster.reconcile()
    assert trainer(1) in cluster.objects
    assert TASK_APP in cluster.objects
    assert INFERENCE in cluster.objects
    cluster.trainer_starts()
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    assert cluster.status.restarts == 1


def test_the_delay_doubles_and_is_announced() -> None:
    cluster = running({"failurePolicy.backoffSeconds": 20.0})
    for delay in (20, 40):
        cluster.trainer_ends(1)
        cluster.reconcile()
        cluster.deletions_complete()
        decision = cluster.reconcile()
        assert decision.requeue_at == cluster.now + timedelta(seconds=delay)
        assert not cluster.trainers
        cluster.wait(delay)
        cluster.reconcile()
        cluster.trainer_starts()
        cluster.reconcile()
        assert cluster.status.phase == "Running"


def test_restarts_are_limited() -> None:
    cluster = running({"failurePolicy.maxRestarts": 1})
    for _ in range(2):
        cluster.trainer_ends(1, message="Traceback\nValueError: no good")
        cluster.reconcile()
        cluster.deletions_complete()
        cluster.wait(300)
        cluster.reconcile()
        cluster.trainer_starts()
        cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert reason(cluster.status, "Failed") == "MaxRestartsExceeded"
    assert "ValueError: no good" in cluster.status.reason


def test_a_configuration_error_is_never_retried() -> None:
    cluster = running({"failurePolicy.rules": [{"action": "Restart", "exitCodes": [2]}]})
    cluster.trainer_ends(2, message="no model at /nowhere")
    cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert reason(cluster.status, "Failed") == "ConfigurationError"
    assert "no model at /nowhere" in cluster.status.reason


def test_a_server_that_cannot_be_configured_fails_the_job() -> None:
    cluster = FakeCluster()
    cluster.reconcile()
    cluster.crash("inference", 2)
    cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert cluster.status.reason.startswith("inference: exit code 2")


def test_a_server_that_dies_heals_by_itself() -> None:
    cluster = running()
    cluster.crash("inference", 137)
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    assert reason(cluster.status, "InferenceReady") == "CrashLoopBackOff"
    cluster.servers_ready()
    cluster.reconcile()
    assert reason(cluster.status, "InferenceReady") == "Ready"


def test_a_rule_for_inference_starts_another_attempt_as_it_says() -> None:
    rule = {"action": "Restart", "component": "inference", "exitCodes": [139]}
    cluster = running({"failurePolicy.rules": [rule], "failurePolicy.maxRestarts": 1})
    cluster.crash("inference", 137)
    cluster.reconcile()
    assert cluster.status.attempt == 0, "the rule names another exit code"
    cluster.servers_ready()
    cluster.wait(7 * 3600)
    cluster.crash("inference", 139)
    assert cluster.reconcile().deletions == (trainer(0),)
    assert cluster.status.attempts[0].cause == "inference: exit code 139"
    assert (cluster.status.attempt, cluster.status.attempts[0].counted) == (1, True)
    cluster.deletions_complete()
    cluster.wait(60)
    cluster.reconcile()
    assert not cluster.trainers, "it waits for the server"
    cluster.servers_ready()
    cluster.reconcile()
    cluster.trainer_starts()
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    cluster.crash("inference", 139)
    cluster.reconcile()
    assert reason(cluster.status, "Failed") == "MaxRestartsExceeded"


def test_a_rule_may_start_another_attempt_that_does_not_count() -> None:
    rule = {"action": "RestartIgnoreLimit", "component": "taskApp"}
    cluster = running({"failurePolicy.rules": [rule], "failurePolicy.maxRestarts": 0})
    cluster.crash("task_app", 1)
    cluster.reconcile()
    assert (cluster.status.attempt, cluster.status.restarts) == (1, 0)


def test_a_server_that_never_recovers_fails_the_job() -> None:
    cluster = running()
    for _ in range(7):
        cluster.crash("inference", 1)
        cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert cluster.task_app.pods == 0


def test_disruptions_do_not_count() -> None:
    cluster = running({"failurePolicy.maxRestarts": 0})
    cluster.trainer_ends(137, "Evicted")
    cluster.reconcile()
    assert cluster.status.phase == "Restarting"
    assert cluster.status.restarts == 0
    assert cluster.status.attempts[0].counted is False


def test_a_trainer_deleted_by_hand_is_made_again_when_its_pod_is_gone() -> None:
    cluster = running()
    cluster.someone_deletes_trainer()
    cluster.wait(60)
    cluster.reconcile()
    assert not cluster.trainers
    cluster.wait(60)
    cluster.deletions_complete()
    cluster.reconcile()
    assert list(cluster.trainers) == [1]
    assert "Deleted" in (cluster.status.attempts[0].cause or "")


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


def complete(spec: dict[str, Any]) -> FakeCluster:
    cluster = running(spec)
    cluster.report = TrainerReport(phase="Complete", progress=Progress(iteration=3, total=3))
    cluster.trainer_ends(0)
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.status.phase == "Complete"
    return cluster


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


# --- what is trained is not lost without a word


def test_the_claim_of_the_run_folder_is_kept_at_the_end() -> None:
    cluster = complete({})
    assert reason(cluster.status, "ResultKept") == "ClaimMade"
    assert CLAIM in cluster.objects


def test_a_job_that_would_lose_its_result_says_so_when_it_is_accepted() -> None:
    cluster = FakeCluster({"storage.ephemeral": True})
    cluster.reconcile()
    assert CLAIM not in cluster.objects
    assert reason(cluster.status, "ResultKept") == "Ephemeral"
    [event] = [event for event in events_between(JobStatus(), cluster.status) if event.reason == "ValidWithWarnings"]
    assert "is lost with the trainer's pod" in event.message


def test_a_claim_that_is_made_in_a_second_pass_was_not_lost() -> None:
    cluster = FakeCluster()
    cluster.reconcile(writes=1)
    cluster.reconcile()
    assert reason(cluster.decide().status, "ResultKept") == "ClaimMade"


def test_a_lost_claim_is_told_before_another_one_is_made() -> None:
    cluster = running()
    cluster.report = TrainerReport(phase="Training", progress=Progress(iteration=2, total=3))
    cluster.reconcile()
    cluster.deleting = frozenset({CLAIM})
    before = cluster.status
    cluster.reconcile()
    kept = cluster.status.condition("ResultKept")
    assert kept is not None
    assert (kept.status, kept.reason) == ("False", "ClaimDeleting")
    assert "visionrl fetch demo" in kept.message
    assert "ClaimDeleting" in [event.reason for event in events_between(before, cluster.status)]

    del cluster.objects[CLAIM]
    cluster.deleting = frozenset()
    before = cluster.status
    cluster.reconcile(writes=1)
    assert CLAIM not in cluster.objects, "the status comes first"
    [event] = events_between(before, cluster.status)
    assert event.reason == "ClaimLost"
    assert event.message.endswith("and with it 2 iterations; training starts at iteration 0 in a new one")
    cluster.reconcile()
    assert CLAIM in cluster.objects
    cluster.reconcile()
    assert reason(cluster.status, "ResultKept") == "ClaimMadeAnew"
    cluster.wait(3600)
    cluster.reconcile()
    assert reason(cluster.status, "ResultKept") == "ClaimMadeAnew", "for as long as the job lives"


def test_the_claim_goes_at_the_end_where_that_is_wanted() -> None:
    cluster = complete({"storage.retention": {"whenFinished": "Delete"}})
    assert CLAIM not in cluster.objects
    cluster.reconcile()
    assert reason(cluster.status, "ResultKept") == "ClaimDeleted"
    cluster.change({"training.iterations": 9})
    cluster.reconcile()
    assert reason(cluster.status, "Accepted") == "RunFolderGone"


EXPORT = {"storage.export": {"adapter": "s3://bucket/crafter", "secretName": "bucket-keys"}}
COPY = Copy(to="s3://bucket/crafter", digest="0" * 64, bytes=42)


def exporter(cluster: FakeCluster) -> Ref:
    [name] = cluster.exports
    return Ref("Job", name)


def copied(cluster: FakeCluster) -> FakeCluster:
    cluster.exports[exporter(cluster).name] = ExportRun(
        "Succeeded", version="demo-v000003-0a1b2c3d4e5f", copies=(COPY,)
    )
    cluster.reconcile()
    return cluster


def test_a_complete_job_copies_its_policy_and_shows_where_it_lies() -> None:
    cluster = running(EXPORT)
    assert not cluster.exports
    cluster.trainer_ends(0)
    cluster.reconcile()
    assert cluster.status.phase == "Complete"
    pod = cluster.objects[exporter(cluster)]["spec"]["template"]["spec"]
    assert "nvidia.com/gpu" not in str(pod["containers"][0]["resources"])
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "bucket-keys"}}]
    assert (reason(cluster.status, "Exported"), cluster.status.phase) == ("Exporting", "Complete")

    cluster.exports[exporter(cluster).name] = ExportRun(message="PermissionError: Access Denied")
    cluster.reconcile()
    assert cluster.status.reason == "training is complete; Exporting: PermissionError: Access Denied"

    before = cluster.status
    copied(cluster)
    result = cluster.status.result
    assert result is not None
    assert (result.export, result.copies, result.claim) == ("Exported", [COPY], CLAIM.name)
    assert result.version == "demo-v000003-0a1b2c3d4e5f"
    assert [event.reason for event in events_between(before, cluster.status)] == ["Exported"]
    assert cluster.status.reason == "training is complete"
    del cluster.objects[exporter(cluster)]
    cluster.exports.clear()
    assert not cluster.reconcile().manifests, "somebody tidied up: it is not copied again"


def test_a_job_that_fails_copies_nothing() -> None:
    cluster = running({**EXPORT, "failurePolicy.maxRestarts": 0})
    cluster.trainer_ends(1)
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert not cluster.exports
    assert cluster.status.result is not None
    assert cluster.status.result.claim == CLAIM.name, "its checkpoints are there"


def test_copies_come_before_the_end_of_claim_and_job_object() -> None:
    spec = {**EXPORT, "storage.retention": {"whenFinished": "Delete"}, "lifecycle.ttlSecondsAfterFinished": 0}
    cluster = running(spec)
    cluster.trainer_ends(0)
    for _ in range(3):
        cluster.wait(3600)
        cluster.reconcile()
    assert CLAIM in cluster.objects
    assert not cluster.job_deleted
    copied(cluster)
    assert CLAIM not in cluster.objects
    assert cluster.job_deleted


def test_a_copy_that_failed_for_good_is_tried_again_once_its_job_is_deleted() -> None:
    cluster = running(EXPORT)
    cluster.trainer_ends(0)
    cluster.reconcile()
    name = exporter(cluster).name
    cluster.exports[name] = ExportRun("Failed", "PermissionError: Access Denied")
    cluster.reconcile()
    assert reason(cluster.status, "Exported") == "ExportFailed"
    assert not cluster.reconcile().manifests
    cluster.objects.pop(Ref("Job", name))
    cluster.exports.clear()
    cluster.reconcile()
    assert reason(cluster.status, "Exported") == "Exporting"
    assert exporter(cluster).name == name


def test_another_destination_is_another_copy() -> None:
    cluster = running(EXPORT)
    cluster.trainer_ends(0)
    cluster.reconcile()
    first = exporter(copied(cluster))
    cluster.change({"storage.export": {"adapter": "pvc://results/crafter"}})
    assert cluster.reconcile().deletions == (first,)
    assert exporter(cluster) != first
    assert "results/crafter" in cluster.objects[Ref("ConfigMap", "demo-config")]["data"]["job.json"]
    mounts = cluster.objects[exporter(cluster)]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert "/var/lib/visionrl/export/results" in [mount["mountPath"] for mount in mounts]


@pytest.mark.parametrize("writes", range(6))
def test_killed_after_any_write_of_an_export_it_ends_alike(writes: int) -> None:
    cluster = running(EXPORT)
    cluster.trainer_ends(0)
    cluster.reconcile(writes)
    cluster.reconcile()
    cluster.exports[exporter(cluster).name] = ExportRun("Succeeded", copies=(COPY,))
    cluster.reconcile(writes)
    cluster.reconcile()
    assert reason(cluster.status, "Exported") == "Exported"
    assert len(cluster.exports) == 1
    assert not cluster.reconcile().manifests


# --- what hangs


def test_a_trainer_that_reports_nothing_new_is_followed_by_another() -> None:
    cluster = running({"lifecycle.progressDeadlineSeconds": 600})
    cluster.report = TrainerReport(phase="Training", message="update 3", progress=Progress(iteration=2, total=3))
    cluster.idle = timedelta(seconds=599)
    assert cluster.reconcile().requeue_at == cluster.now + timedelta(seconds=1)
    assert cluster.status.phase == "Running"
    cluster.wait(1)
    cluster.idle = timedelta(seconds=600)
    assert cluster.reconcile().deletions == (trainer(0),)
    assert cluster.status.phase == "Restarting"
    [entry] = cluster.status.failures
    assert (entry.type, entry.counted) == ("Hung", True)
    assert entry.cause == "trainer: NoProgress: nothing new for 600 s after: Training update 3"
    cluster.deletions_complete()
    cluster.wait(60)
    cluster.reconcile()
    cluster.trainer_starts()
    cluster.reconcile()
    assert cluster.status.phase == "Running"


def test_a_trainer_that_always_hangs_fails_the_job() -> None:
    cluster = running({"failurePolicy.maxRestarts": 1})
    for _ in range(2):
        cluster.idle = timedelta(hours=1)
        cluster.reconcile()
        cluster.idle = timedelta(0)
        cluster.deletions_complete()
        cluster.wait(300)
        cluster.reconcile()
        cluster.trainer_starts()
        cluster.reconcile()
    assert reason(cluster.status, "Failed") == "MaxRestartsExceeded"
    assert "NoProgress" in cluster.status.reason


def test_every_attempt_has_a_deadline_for_its_start() -> None:
    cluster = running({"lifecycle.preRunningDeadlineSeconds": 600})
    cluster.trainer_ends(137)
    cluster.reconcile()
    cluster.deletions_complete()
    cluster.wait(20)
    cluster.reconcile()
    waiting = ObservedComponent(pods=1, reason="Unschedulable", message="0/4 nodes")
    cluster.trainers[1] = replace(cluster.trainers[1], state=waiting)
    cluster.report = TrainerReport(phase="Training")
    cluster.reconcile()
    assert cluster.status.phase == "Pending", "it does not run, whatever its predecessor reported last"
    cluster.wait(600)
    cluster.reconcile()
    assert reason(cluster.status, "Failed") == "PreRunningDeadlineExceeded"
    assert cluster.status.reason == "attempt 1 of the trainer did not run within 600 s"


def test_suspended_time_does_not_count_against_the_start_of_an_attempt() -> None:
    cluster = running({"lifecycle.preRunningDeadlineSeconds": 600})
    cluster.change({"suspend": True})
    cluster.reconcile()
    cluster.deletions_complete()
    cluster.wait(86_400)
    cluster.change({"suspend": False})
    cluster.reconcile()
    assert not cluster.status.finished
    cluster.wait(600)
    cluster.reconcile()
    assert reason(cluster.status, "Failed") == "PreRunningDeadlineExceeded"


def lost_node(cluster: FakeCluster, confirmed: bool) -> None:
    """The node of the trainer is silent; the cluster wants its pods elsewhere, and the pod cannot end."""
    run = cluster.trainers[0]
    going = replace(run.state, ready=False, exit_reason="Terminated", reason="Terminating")
    cluster.trainers[0] = replace(run, outcome="Failed", state=going)
    cluster.stuck = (StuckPod("demo-trainer-0-x", "trainer", "n1", cluster.now, confirmed),)
    cluster.reconcile()


def test_a_silent_node_is_told_to_a_person_and_nothing_runs_beside_its_pod() -> None:
    cluster = running()
    lost_node(cluster, confirmed=False)
    for _ in range(3):
        cluster.wait(86_400)
        decision = cluster.reconcile()
        assert decision.forced == ()
    assert list(cluster.trainers) == [0]
    assert "node n1 has not confirmed" in cluster.status.reason
    assert "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in cluster.status.reason


def test_a_pod_of_a_node_that_is_lost_is_given_up() -> None:
    cluster = running({"lifecycle.nodeLostSeconds": 120})
    lost_node(cluster, confirmed=True)
    assert cluster.decide().forced == ()
    cluster.wait(120)
    assert cluster.decide().forced == (Ref("Pod", "demo-trainer-0-x"),)


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
