"""What hangs: a trainer without progress, a start that takes too long, a node that is lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.support.fake_cluster import FakeCluster, reason, running, trainer
from visionrl.component import EXIT_HUNG
from visionrl.status import Progress, TrainerReport
from visionrl_core.manifests.common import Ref
from visionrl_core.observed import ObservedComponent, StuckPod


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
    cluster.next_attempt_starts(after=60)
    assert cluster.status.phase == "Running"


def test_a_component_that_finds_itself_hanging_is_started_again_and_called_hung() -> None:
    cluster = running()
    cluster.crash("inference", EXIT_HUNG)
    cluster.reconcile()
    cluster.servers_ready()
    cluster.trainer_ends(EXIT_HUNG)
    cluster.reconcile()
    assert cluster.status.phase == "Restarting"
    assert [(entry.component, entry.type) for entry in cluster.status.failures] == [
        ("inference", "Hung"),
        ("trainer", "Hung"),
    ]


def test_an_attempt_that_was_killed_while_it_trained_is_followed_without_a_longer_delay() -> None:
    cluster = running({"training.iterations": 9, "failurePolicy.maxRestarts": 9})
    for iteration in range(1, 5):
        cluster.report = TrainerReport(phase="Training", progress=Progress(iteration=iteration, total=9))
        cluster.reconcile()
        cluster.trainer_ends(137)
        cluster.reconcile()
        cluster.next_attempt_starts(after=10)
        assert cluster.status.phase == "Running"


def test_a_trainer_that_always_hangs_fails_the_job() -> None:
    cluster = running({"failurePolicy.maxRestarts": 1})
    for _ in range(2):
        cluster.idle = timedelta(hours=1)
        cluster.reconcile()
        cluster.idle = timedelta(0)
        cluster.next_attempt_starts(after=300)
    assert reason(cluster.status, "Failed") == "MaxRestartsExceeded"
    assert "NoProgress" in cluster.status.reason


def test_the_log_of_a_trainer_that_hung_is_kept_when_its_container_stops() -> None:
    cluster = running({"failurePolicy.maxRestarts": 0})
    cluster.idle = timedelta(hours=1)
    cluster.reconcile()
    assert reason(cluster.status, "Failed") == "MaxRestartsExceeded"
    assert cluster.status.failure_log == "nothing new for 3600 s after: no report"
    stopped = replace(cluster.trainers[0].state, exit_code=137, log="step 41\nwaiting for a lock")
    cluster.trainers[0] = replace(cluster.trainers[0], state=stopped)
    for _ in range(2):
        cluster.reconcile()
        cluster.deletions_complete()
    assert cluster.status.failure_log == "nothing new for 3600 s after: no report\nstep 41\nwaiting for a lock"


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
