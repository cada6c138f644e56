"""What a user sees of a job whose parts fail: restarts, their delays and limits, and what is never tried again."""

from __future__ import annotations

from datetime import timedelta

from tests.support.fake_cluster import (
    INFERENCE,
    OWNER,
    TASK_APP,
    FakeCluster,
    reason,
    running,
    trainer,
)
from visionrl_core.manifests.common import Ref
from visionrl_core.manifests.storage import claim_of

CLAIM = claim_of(OWNER)


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
        cluster.next_attempt_starts(after=300)
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
