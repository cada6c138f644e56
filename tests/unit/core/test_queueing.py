"""A queued job, as its user sees it: it waits for Kueue, runs where it was admitted, and gives its quota back last."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.support.fake_cluster import OWNER, TASK_APP, FakeCluster, started
from tests.support.fake_kueue import FakeKueue, condition, true, webhook
from tests.support.jobs import WARM_START, job
from visionrl.status import JobStatus
from visionrl_core.kueue import Flavor, Queue, workload_view
from visionrl_core.manifests.common import Ref
from visionrl_core.manifests.merge import PodDefaults
from visionrl_core.manifests.queue import workload
from visionrl_core.observed import ClusterRules
from visionrl_core.policies.failure import QUEUED_AGAIN

WORKLOAD = Ref("Workload", "demo-workload")


def queued(spec: dict[str, Any] | None = None, **kueue: Any) -> FakeCluster:
    cluster = FakeCluster({"queueName": "gpus", **(spec or {})}, kueue=FakeKueue(**kueue))
    cluster.reconcile()
    cluster.kueue_acts()
    cluster.reconcile()
    return cluster


def running(spec: dict[str, Any] | None = None, **kueue: Any) -> FakeCluster:
    return started(queued(spec, **kueue))


def evicted(cluster: FakeCluster, reason: str = "Preempted") -> FakeCluster:
    assert cluster.kueue is not None
    cluster.workload = cluster.kueue.preempt(the_workload(cluster), reason)
    return cluster


def the_workload(cluster: FakeCluster) -> dict[str, Any]:
    assert cluster.workload is not None
    return cluster.workload


def admitted(status: JobStatus) -> tuple[str, str]:
    found = status.condition("Admitted")
    assert found is not None
    return found.status, found.reason


def ready(cluster: FakeCluster) -> tuple[str, str]:
    found = condition(the_workload(cluster), "PodsReady")
    return found["status"], found["reason"]


# --- waiting


def test_no_pod_is_made_before_kueue_admits_all_of_them() -> None:
    cluster = queued(quota=2)
    assert TASK_APP not in cluster.objects
    assert Ref("Service", "demo-taskapp") in cluster.objects
    assert cluster.status.phase == "Queued"
    assert cluster.status.reason.startswith("couldn't assign flavors to pod set taskapp: insufficient unused quota")
    assert admitted(cluster.status) == ("False", "Pending")


def test_a_queue_that_does_not_exist_is_told() -> None:
    cluster = queued(queue="others")
    assert cluster.status.reason == "LocalQueue gpus doesn't exist"
    assert admitted(cluster.status) == ("False", "Inadmissible")


def test_a_two_pod_job_is_admitted() -> None:
    cluster = queued({**WARM_START, "algorithm.type": "sft", "evaluation.episodes": 0}, quota=2)
    assert [each["name"] for each in the_workload(cluster)["spec"]["podSets"]] == ["taskapp", "trainer"]
    assert TASK_APP in cluster.objects


def test_waiting_counts_for_no_deadline() -> None:
    cluster = queued({"lifecycle.activeDeadlineSeconds": 600, "lifecycle.preRunningDeadlineSeconds": 300}, quota=2)
    cluster.wait(7200)
    cluster.reconcile()
    assert cluster.status.phase == "Queued"
    assert cluster.status.active_seconds == 0


def test_without_kueue_a_queued_job_waits_and_says_so() -> None:
    cluster = FakeCluster({"queueName": "gpus"}, kueue=FakeKueue())
    cluster._queue = lambda: Queue()  # type: ignore[method-assign]
    cluster.reconcile()
    assert cluster.status.phase == "Queued"
    assert "finds no Kueue" in cluster.status.reason
    assert TASK_APP not in cluster.objects


def test_on_this_machine_a_queue_means_nothing() -> None:
    cluster = FakeCluster({"queueName": "gpus"})
    cluster.reconcile()
    assert TASK_APP in cluster.objects
    assert not cluster.trainers, "components start in order, as without a queue"


def test_admission_checks_are_waited_for_and_may_change_pods() -> None:
    cluster = queued(checks=("capacity",))
    assert cluster.status.reason == "waits for admission checks capacity: not yet"
    assert TASK_APP not in cluster.objects
    assert cluster.kueue is not None
    update = {"name": "trainer", "labels": {"pool": "p1"}, "nodeSelector": {"node": "n1"}}
    cluster.kueue.passed["capacity"] = [update]
    cluster.kueue_acts()
    cluster.reconcile()
    cluster.servers_ready()
    cluster.reconcile()
    template = cluster.objects[Ref("Job", "demo-trainer-0")]["spec"]["template"]
    assert template["metadata"]["labels"]["pool"] == "p1"
    assert template["spec"]["nodeSelector"] == {"gpu": "h200", "node": "n1"}
    assert "node" not in cluster.objects[TASK_APP]["spec"]["template"]["spec"]["nodeSelector"]


# --- the Workload


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2"])
def test_the_workload_asks_for_what_the_pods_ask_for(version: str) -> None:
    spec = {"queueName": "gpus", "queuePriorityClass": "high", "trainer.gpu": {"count": 1}}
    made = workload(job(spec), OWNER, f"kueue.x-k8s.io/{version}", 100)
    assert webhook(None, made) is None
    pod_sets = {each["name"]: each for each in made["spec"]["podSets"]}
    assert set(pod_sets) == {"taskapp", "inference", "trainer"}
    [container] = pod_sets["trainer"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert pod_sets["trainer"]["template"]["spec"]["affinity"], "flavors are chosen by it"
    assert made["spec"]["priority"] == 100
    named = "priorityClassName" if version == "v1beta1" else "priorityClassRef"
    assert named in made["spec"]
    assert made["metadata"]["ownerReferences"][0]["controller"]
    assert "kueue.x-k8s.io/job-uid" not in made["metadata"]["labels"]


def test_a_priority_class_that_does_not_exist_is_waited_for() -> None:
    cluster = queued({"queuePriorityClass": "high"})
    assert cluster.workload is None
    assert cluster.status.reason == "WorkloadPriorityClass high does not exist"


def test_pods_go_where_their_flavor_says() -> None:
    cluster = queued()
    spec = cluster.objects[TASK_APP]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"gpu": "h200"}
    tolerated = Queue(
        "kueue.x-k8s.io/v1beta2",
        workload_view(the_workload(cluster)),
        {"h200": Flavor({"gpu": "h200"}, ({"key": "spot", "operator": "Exists"},))},
    )
    cluster.objects.pop(TASK_APP)
    cluster._queue = lambda: tolerated  # type: ignore[method-assign]
    cluster.reconcile()
    spec = cluster.objects[TASK_APP]["spec"]["template"]["spec"]
    assert {"key": "spot", "operator": "Exists"} in spec["tolerations"]


def test_a_flavor_that_contradicts_the_job_fails_it() -> None:
    cluster = queued({"placement.nodeSelector": {"gpu": "a100"}})
    assert cluster.status.phase == "Failed"
    assert "nodeSelector gpu is a100 in the job and h200 where it was admitted" in cluster.status.reason
    cluster.reconcile()
    assert condition(the_workload(cluster), "Finished")["reason"] == "FailedToStart"


@pytest.mark.parametrize("spec", [{}, {"placement.nodeSelector": {"gpu": "a100"}}])
def test_a_flavor_that_contradicts_the_clusters_defaults_fails_it_and_says_whose_words_they_are(
    spec: dict[str, Any],
) -> None:
    """A job that says the same as the defaults can change nothing by saying something else."""
    cluster = FakeCluster({"queueName": "gpus", **spec}, kueue=FakeKueue())
    cluster.rules = ClusterRules(pod_defaults=PodDefaults({"spec": {"nodeSelector": {"gpu": "a100"}}}))
    cluster.reconcile()
    for pod_set in the_workload(cluster)["spec"]["podSets"]:
        assert pod_set["template"]["spec"]["nodeSelector"] == {"gpu": "a100"}, "Kueue chooses a flavor by these"
    cluster.kueue_acts()
    cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert "nodeSelector gpu is a100 in the chart's jobPods.template and h200 where it" in cluster.status.reason


def test_a_job_may_say_otherwise_than_the_clusters_defaults_and_goes_where_it_is_admitted() -> None:
    cluster = FakeCluster({"queueName": "gpus", "placement.nodeSelector": {"gpu": "h200"}}, kueue=FakeKueue())
    cluster.rules = ClusterRules(pod_defaults=PodDefaults({"spec": {"nodeSelector": {"gpu": "a100"}}}))
    cluster.reconcile()
    cluster.kueue_acts()
    cluster.reconcile()
    assert cluster.objects[TASK_APP]["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "h200"}


def test_nodes_chosen_by_topology_are_refused() -> None:
    cluster = queued(quota=2)
    assert cluster.kueue is not None
    cluster.kueue.quota = 3
    cluster.kueue_acts()
    for each in the_workload(cluster)["status"]["admission"]["podSetAssignments"]:
        each["topologyAssignment"] = {"levels": ["kubernetes.io/hostname"]}
    cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert "topology" in cluster.status.reason


def test_a_flavor_that_cannot_be_read_stops_nothing() -> None:
    cluster = running()
    found = Queue("kueue.x-k8s.io/v1beta2", workload_view(the_workload(cluster)))
    cluster._queue = lambda: found  # type: ignore[method-assign]
    decision = cluster.reconcile()
    assert decision.deletions == ()
    assert cluster.status.reason == "ResourceFlavor h200 cannot be read"


# --- pods are ready


def test_pods_are_ready_when_the_first_stage_is() -> None:
    cluster = queued()
    cluster.reconcile()
    assert ready(cluster) == ("False", "WaitForStart")
    cluster.servers_ready()
    cluster.reconcile()
    assert ready(cluster) == ("True", "Started"), "the trainer starts after it"
    cluster.reconcile()
    assert ready(cluster) == ("True", "Started")


def test_a_lost_trainer_is_waited_for_under_the_same_admission() -> None:
    cluster = running()
    before = copy.deepcopy(the_workload(cluster)["status"]["admission"])
    cluster.trainer_ends(137, "OOMKilled")
    cluster.reconcile()
    cluster.reconcile()
    assert ready(cluster) == ("False", "WaitForRecovery")
    cluster.next_attempt_starts(after=60)
    assert ready(cluster) == ("True", "Recovered")
    assert the_workload(cluster)["status"]["admission"] == before


def test_a_job_whose_pods_are_not_ready_in_time_gives_way_and_comes_back() -> None:
    cluster = queued(pods_ready_timeout=300, backoff_limit=1)
    cluster.reconcile()
    cluster.wait(301)
    cluster.kueue_acts()
    cluster.reconcile()
    assert TASK_APP not in cluster.objects
    cluster.reconcile()
    assert not true(the_workload(cluster), "QuotaReserved")
    assert condition(the_workload(cluster), "Requeued")["status"] == "False"
    cluster.reconcile()
    assert "Exceeded the PodsReady timeout" in cluster.status.reason
    assert "again at" in cluster.status.reason
    cluster.wait(61)
    cluster.kueue_acts()
    cluster.kueue_acts()
    cluster.reconcile()
    assert TASK_APP in cluster.objects
    cluster.wait(301)
    cluster.kueue_acts()
    for _ in range(3):
        cluster.reconcile()
    assert the_workload(cluster)["spec"]["active"] is False
    assert admitted(cluster.status)[1] == "DeactivatedDueToRequeuingLimitExceeded"
    assert TASK_APP not in cluster.objects
    for _ in range(3):
        cluster.wait(3600)
        cluster.kueue_acts()
        cluster.reconcile()
    assert cluster.status.phase == "Queued", "a person has to look at it"


# --- losing the quota


def test_a_preempted_job_gives_its_quota_back_after_its_last_pod_and_goes_on_later() -> None:
    cluster = evicted(running())
    cluster.reconcile()
    assert cluster.status.phase == "Queued"
    assert cluster.status.reason.startswith("Preempted to accommodate")
    assert cluster.status.reason.endswith("pods are ending")
    assert TASK_APP not in cluster.objects
    cluster.reconcile()
    assert true(the_workload(cluster), "QuotaReserved"), "the trainer has not ended"
    cluster.deletions_complete()
    cluster.reconcile()
    status = the_workload(cluster)["status"]
    assert "admission" not in status
    assert condition(the_workload(cluster), "QuotaReserved")["status"] == "False"
    assert condition(the_workload(cluster), "Admitted")["reason"] == "NoReservation"
    assert condition(the_workload(cluster), "Requeued")["status"] == "True", "it stands in line again at once"
    cluster.settle()
    assert cluster.status.phase == "Complete"
    assert cluster.status.attempts[0].cause == QUEUED_AGAIN
    assert cluster.status.restarts == 0


@pytest.mark.parametrize("reason", ["ClusterQueueStopped", "AdmissionCheck", "LocalQueueStopped"])
def test_after_other_evictions_kueue_says_when_it_queues_again(reason: str) -> None:
    cluster = evicted(running(), reason)
    cluster.reconcile()
    cluster.deletions_complete()
    cluster.reconcile()
    assert condition(the_workload(cluster), "Requeued")["status"] == "False"
    cluster.kueue_acts()
    assert not true(the_workload(cluster), "QuotaReserved")


def test_a_deactivated_job_stops_and_stays_until_somebody_activates_it() -> None:
    cluster = running()
    the_workload(cluster)["spec"]["active"] = False
    cluster.reconcile()
    assert TASK_APP not in cluster.objects, "its quota is anybody's by now"
    cluster.kueue_acts()
    cluster.deletions_complete()
    for _ in range(3):
        cluster.reconcile()
        cluster.kueue_acts()
    assert cluster.status.phase == "Queued"
    assert cluster.status.reason == "The workload is deactivated"
    assert "admission" not in the_workload(cluster)["status"]
    cluster.change({"suspend": True})
    cluster.reconcile()
    cluster.change({"suspend": False})
    cluster.reconcile()
    assert the_workload(cluster)["spec"]["active"] is False, "suspending a job does not activate it"
    the_workload(cluster)["spec"]["active"] = True
    cluster.settle()
    assert cluster.status.phase == "Complete"


def test_a_suspended_job_gives_its_quota_back_after_its_pods() -> None:
    cluster = running()
    cluster.change({"suspend": True})
    cluster.reconcile()
    assert cluster.workload is not None, "the trainer has not ended"
    cluster.deletions_complete()
    cluster.reconcile()
    assert cluster.workload is None
    assert cluster.status.phase == "Suspended"
    cluster.change({"suspend": False})
    cluster.settle()
    assert cluster.status.phase == "Complete"


def test_a_deleted_workload_stops_the_pods_and_is_made_again_after_them() -> None:
    cluster = running()
    cluster.workload = None
    cluster.reconcile()
    assert cluster.workload is None
    assert TASK_APP not in cluster.objects
    cluster.deletions_complete()
    cluster.reconcile()
    assert cluster.workload is not None
    assert cluster.status.restarts == 0


def test_other_resources_of_the_task_app_need_another_admission() -> None:
    cluster = running()
    cluster.change({"taskApp.resources": {"cpu": "8"}})
    cluster.reconcile()
    cluster.deletions_complete()
    cluster.reconcile()
    cluster.reconcile()
    [task_app, *_] = the_workload(cluster)["spec"]["podSets"]
    assert task_app["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "8"
    assert cluster.status.phase == "Queued"


# --- the end


@pytest.mark.parametrize(("code", "reason"), [(0, "Succeeded"), (2, "Failed")])
def test_at_the_end_the_quota_is_free_once_the_pods_are_gone(code: int, reason: str) -> None:
    cluster = running()
    cluster.trainer_ends(code)
    cluster.reconcile()
    assert not true(the_workload(cluster), "Finished"), "the servers have not ended"
    cluster.deletions_complete()
    cluster.reconcile()
    assert condition(the_workload(cluster), "Finished")["reason"] == reason
    assert cluster.decide().workload_status is None


def test_servers_that_are_kept_keep_their_quota() -> None:
    cluster = running({"lifecycle.cleanupPolicy": "KeepAll"})
    cluster.trainer_ends(0)
    for _ in range(3):
        cluster.reconcile()
        cluster.deletions_complete()
    assert not true(the_workload(cluster), "Finished")


def test_more_iterations_of_a_complete_job_queue_again() -> None:
    cluster = running({"storage.runSize": "1Gi"})
    cluster.trainer_ends(0)
    for _ in range(3):
        cluster.reconcile()
        cluster.deletions_complete()
    cluster.change({"training.iterations": 9})
    cluster.trainers.clear()
    cluster.reconcile()
    assert cluster.status.phase == "Queued"
    cluster.settle()
    assert cluster.status.phase == "Complete"


def test_another_version_of_the_operator_sends_no_running_job_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = running()
    monkeypatch.setattr("visionrl_core.manifests.pods.STOP_SECONDS", 45)
    monkeypatch.setattr("visionrl_core.manifests.queue.COUNTED", ("nodeSelector",))
    decision = cluster.reconcile()
    assert decision.manifests == ()
    assert decision.deletions == ()
