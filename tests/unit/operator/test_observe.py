"""What the store keeps of the cluster, and what is seen in it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import jobs
from tests.support.jobs import document
from visionrl_core.manifests.common import Ref
from visionrl_core.observed import NO_RULES, Observed
from visionrl_core.pods import component_of, pod_view, replica_failure, run_of, run_view
from visionrl_operator.observe import Asked, observe, podless_attempts, trainer_pod
from visionrl_operator.store import Entry, Key, OwnedObject, Store

DEMO = Key("default", "demo")
OWNED = [{"uid": "job-uid", "controller": True}]


def metadata(name: str, version: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"visionrl.dev/job": "demo"},
        "ownerReferences": OWNED,
        **more,
    }


def pod(name: str, component: str = "taskapp", owner: str = "rs", version: int = 1, **more: Any) -> dict[str, Any]:
    labels = {"visionrl.dev/job": "demo", "visionrl.dev/component": component}
    status = more.pop("status", {"phase": "Pending"})
    owners = [{"uid": owner, "controller": True}]
    return {
        "metadata": metadata(name, version, labels=labels, ownerReferences=owners, **more),
        "spec": {"nodeName": more.get("node")},
        "status": status,
    }


def trainer_job(attempt: int, version: int = 1, status: Any = None, **more: Any) -> dict[str, Any]:
    labels = {"visionrl.dev/job": "demo", "visionrl.dev/attempt": str(attempt)}
    return {
        "metadata": metadata(f"demo-trainer-{attempt}", version, labels=labels, **more),
        "status": status or {},
    }


def job(version: int = 1, **more: Any) -> dict[str, Any]:
    found = document()
    found["metadata"] |= {
        "namespace": "default", "uid": "job-uid", "resourceVersion": str(version),
        "creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1,
    }  # fmt: skip
    return {**found, **more}


class Listener:
    def __init__(self) -> None:
        self.heard: list[Key] = []
        self.store = Store(self.hear)

    def hear(self, key: Key, entry: Entry | None) -> None:
        self.heard.append(key)

    def take(self) -> list[Key]:
        heard, self.heard = self.heard, []
        return heard


def test_news_wake_the_job_and_echoes_do_not() -> None:
    listener = Listener()
    store = listener.store
    store.feed("VisionRLJob", job())
    assert listener.take() == [DEMO]
    store.note("ConfigMap", {"metadata": metadata("demo-config", 5), "data": {}})
    assert listener.take() == [], "our own write"
    store.feed("ConfigMap", {"metadata": metadata("demo-config", 5), "data": {}})
    assert listener.take() == [], "its echo"
    store.feed("ConfigMap", {"metadata": metadata("demo-config", 4), "data": {"job.json": "old"}})
    assert listener.take() == []
    assert store.owned(DEMO)[Ref("ConfigMap", "demo-config")].version == 5
    store.feed("ConfigMap", {"metadata": metadata("demo-config", 6), "data": {}})
    assert listener.take() == [], "nothing that matters changed"
    store.feed("ConfigMap", {"metadata": metadata("demo-config", 7), "data": {"job.json": "{}"}})
    assert listener.take() == [DEMO]
    store.remove("ConfigMap", {"metadata": metadata("demo-config", 8)})
    assert listener.take() == [DEMO]
    assert not store.owned(DEMO)


def test_late_news_do_not_bring_back_what_is_gone() -> None:
    store = Store()
    store.feed("Pod", pod("a", version=3))
    store.remove("Pod", pod("a", version=5))
    store.feed("Pod", pod("a", version=4))
    assert not store.owned(DEMO)


def test_the_end_of_a_former_object_is_not_the_end_of_its_successor() -> None:
    store = Store()
    store.feed("Pod", pod("a", version=9, uid="new"))
    store.remove("Pod", pod("a", version=8, uid="old"))
    assert store.owned(DEMO)


def test_annotations_of_kubectl_stay_out_of_the_job_file() -> None:
    found = job()
    found["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "vision"}
    store = Store()
    store.feed("VisionRLJob", found)
    stored = store.job(DEMO)
    assert stored is not None
    assert stored.object.document["metadata"]["annotations"] == {"team": "vision"}


# --- pods


def waiting(reason: str) -> dict[str, Any]:
    return {
        "phase": "Pending",
        "containerStatuses": [{"name": "taskapp", "restartCount": 2, "state": {"waiting": {"reason": reason}}}],
    }


UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
        }
    ],
}


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (UNSCHEDULABLE, "Unschedulable", "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."),
        (
            {
                "phase": "Pending",
                "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}],
            },
            "SchedulingGated",
            "",
        ),
        (waiting("ImagePullBackOff"), "ImagePullBackOff", ""),
        (waiting("ContainerCreating"), "", ""),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "Evicted", "low on memory"),
        ({"phase": "Pending"}, "", ""),
    ],
)
def test_why_a_pod_is_not_ready(status: dict[str, Any], reason: str, message: str) -> None:
    state = pod_view(pod("a", status=status)).state
    assert (state.ready, state.reason, state.message) == (False, reason, message)


def test_how_a_container_ended() -> None:
    ended = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "startedAt": "2026-01-01T00:00:01Z"}}
    crashing = {
        "phase": "Running",
        "containerStatuses": [
            {
                "name": "taskapp",
                "restartCount": 4,
                "lastState": ended,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "x"}},
            }
        ],
    }
    state = pod_view(pod("a", status=crashing)).state
    assert (state.restarts, state.exit_code, state.exit_reason, state.reason) == (
        4,
        137,
        "OOMKilled",
        "CrashLoopBackOff",
    )
    disrupted = {
        "phase": "Failed",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
        "containerStatuses": [{"name": "taskapp", "restartCount": 0, "state": ended}],
    }
    assert pod_view(pod("a", status=disrupted)).state.exit_reason == "PreemptionByScheduler"


def test_a_part_is_its_newest_pod_that_stays() -> None:
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    old = pod("old", status=ready, deletionTimestamp="now")
    new = pod("new", creationTimestamp="2026-01-01T00:01:00Z", status=waiting("ErrImagePull"))
    state = component_of([pod_view(old), pod_view(new)])
    assert (state.pods, state.ready, state.reason) == (2, False, "ErrImagePull")
    assert component_of([pod_view(old)]).reason == "Terminating"
    assert not component_of([pod_view(old)]).ready, "a pod that is ending serves nobody"


def test_a_quota_is_the_reason_of_a_part_without_pods() -> None:
    state = component_of([], "exceeded quota: gpus")
    assert (state.reason, state.message, state.pods) == ("FailedCreate", "exceeded quota: gpus", 0)


# What the API server of Kubernetes 1.20 and a newer one say.
ABOVE_MAXIMUM = (
    'pods "demo-taskapp-6c5b8" is forbidden: maximum memory usage per Container is 256Mi, but limit is 512Mi',
    'pods "demo-taskapp-6c5b8" is forbidden: [minimum cpu usage per Container is 2, but request is 1, maximum memory '
    "usage per Container is 256Mi, but limit is 512Mi]",
)
BELOW_REQUEST = (
    'Pod "demo-taskapp-6c5b8" is invalid: spec.containers[0].resources.requests: Invalid value: "1": must be less '
    "than or equal to cpu limit",
    'Pod "demo-taskapp-6c5b8" is invalid: spec.containers[0].resources.requests: Invalid value: "1": must be less '
    "than or equal to cpu limit of 100m",
)


@pytest.mark.parametrize("message", [*ABOVE_MAXIMUM, *BELOW_REQUEST])
def test_a_limit_range_that_allows_no_pod_is_the_reason(message: str) -> None:
    server = component_of([], replica_failure({"status": {"conditions": [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    ]}}))  # fmt: skip
    trainer = run_of(run_view(trainer_job(0)), False, [], message).state
    for state in (server, trainer):
        assert state.reason == "FailedCreate"
        assert state.message.startswith(message)
        assert ("kubectl get limitrange" in state.message) == (message in BELOW_REQUEST), "else it says so itself"
        assert len(state.message) <= 300, "as much as REASON shows"


FAILED = {
    "conditions": [{"type": "Failed", "status": "True", "message": "Job has reached the specified backoff limit"}]
}


def test_a_trainers_end_is_known_when_job_and_pod_have_told() -> None:
    run = run_view(trainer_job(0, status=FAILED))
    going = pod_view(pod("a", "trainer", status={"phase": "Running"}))
    ended = pod_view(
        pod(
            "a",
            "trainer",
            status={
                "phase": "Failed",
                "containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 2}}}],
            },
        )
    )
    assert run_of(run, False, [going]).outcome == "Active"
    assert (run_of(run, False, [ended]).outcome, run_of(run, False, [ended]).state.exit_code) == ("Failed", 2)
    assert run_of(run, False, []).outcome == "Failed", "a pod that is gone has no exit code to show"
    assert "backoff limit" in run_of(run, False, []).state.message


def test_a_trainer_whose_pod_is_taken_away_has_failed_unless_we_took_it() -> None:
    run, taken = run_view(trainer_job(0)), pod_view(pod("a", "trainer", deletionTimestamp="now"))
    assert (run_of(run, False, [taken]).outcome, run_of(run, False, [taken]).state.exit_reason) == (
        "Failed",
        "Terminated",
    )
    assert run_of(run, True, [taken]).outcome == "Active"


# --- all together


def look(store: Store, asked: Asked | None = None) -> Observed:
    stored = store.job(DEMO)
    assert stored is not None
    return observe(stored, store.owned(DEMO), asked or Asked(key=None), None, timedelta(0), NO_RULES, {})


def test_only_what_the_job_owns_exists() -> None:
    store = Store()
    store.feed("VisionRLJob", job())
    store.feed("Service", {"metadata": metadata("demo-trainer", 2)})
    store.feed("Service", {"metadata": metadata("demo-taskapp", 3, ownerReferences=[])})
    assert set(look(store).objects) == {Ref("Service", "demo-trainer")}
    assert look(store, Asked("digest")).has(Ref("Secret", "demo-key"))


def test_what_a_newer_operator_accepted_is_still_accepted_after_going_back() -> None:
    written = document()
    written["spec"]["training"]["fromTheFuture"] = 1
    store = Store()
    store.feed("VisionRLJob", job())
    store.feed("ConfigMap", {"metadata": metadata("demo-config", 2), "data": {"job.json": json.dumps(written)}})
    assert look(store).accepted == jobs.job()


def test_trainer_pods_without_their_job_are_orphans_until_they_have_ended() -> None:
    store = Store()
    store.feed("VisionRLJob", job())
    store.feed("Pod", pod("a", "trainer", "gone-job", status={"phase": "Running"}))
    assert look(store).orphaned_trainer_pods == 1
    store.feed("Pod", pod("a", "trainer", "gone-job", version=2, status={"phase": "Failed"}))
    assert look(store).orphaned_trainer_pods == 0


def test_the_pod_that_is_asked_for_a_report() -> None:
    store = Store()
    store.feed("VisionRLJob", job())
    store.feed("Job", trainer_job(1))
    stored = store.job(DEMO)
    assert stored is not None
    assert trainer_pod(stored, store.owned(DEMO), 1) is None
    assert set(podless_attempts(stored, store.owned(DEMO))) == {1}
    running = {
        "phase": "Running", "podIP": "10.0.0.7",
        "containerStatuses": [{"name": "trainer", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}],
    }  # fmt: skip
    store.feed("Pod", pod("a", "trainer", "uid-demo-trainer-1", status=running))
    found = trainer_pod(stored, store.owned(DEMO), 1)
    assert found is not None
    assert found.address == "10.0.0.7"
    assert podless_attempts(stored, store.owned(DEMO)) == {}
    store.feed("Pod", pod("a", "trainer", "uid-demo-trainer-1", version=2, status={"phase": "Succeeded"}))
    found = trainer_pod(stored, store.owned(DEMO), 1)
    assert found is not None
    assert found.address is None


OBJECTS: list[tuple[str, dict[str, Any]]] = [
    ("VisionRLJob", job(version=3)),
    ("Job", trainer_job(0, version=5)),
    ("Job", trainer_job(0, version=9, status=FAILED)),
    ("Pod", pod("a", "trainer", "uid-demo-trainer-0", version=6, status={"phase": "Running"})),
    ("Pod", pod("a", "trainer", "uid-demo-trainer-0", version=8, status={"phase": "Failed"})),
    ("Service", {"metadata": metadata("demo-trainer", 4)}),
]


@given(st.permutations(OBJECTS), st.lists(st.sampled_from(OBJECTS), max_size=6))
def test_news_may_come_in_any_order_and_twice(order: list[Any], repeated: list[Any]) -> None:
    store, expected = Store(), Store()
    for kind, body in [*order, *repeated]:
        store.feed(kind, body)
    for kind, body in OBJECTS:
        expected.feed(kind, body)
    assert look(store) == look(expected)


def test_children_compare_by_what_matters() -> None:
    found = OwnedObject(Ref("Service", "a"), "uid", 1, "owner", False, "2026")
    assert found.same(OwnedObject(Ref("Service", "a"), "uid", 2, "owner", False, "2026"))
    assert not found.same(OwnedObject(Ref("Service", "a"), "uid", 2, "owner", True, "2026"))
    assert not found.same(None)


# --- pods with more containers than ours


def sidecar(**state: Any) -> dict[str, Any]:
    return {
        "name": "istio-proxy",
        "restartCount": 0,
        "state": state or {"running": {"startedAt": "2026-01-01T00:00:01Z"}},
    }


def with_containers(*statuses: dict[str, Any], component: str = "trainer", phase: str = "Running") -> dict[str, Any]:
    status = {"phase": phase, "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": list(statuses)}
    found = pod("a", component, status=status)
    found["spec"]["restartPolicy"] = "Never" if component == "trainer" else "Always"
    return found


@pytest.mark.parametrize(("code", "outcome"), [(2, "Failed"), (0, "Succeeded")])
def test_a_trainer_beside_a_sidecar_ends_when_its_own_container_does(code: int, outcome: str) -> None:
    ended = {"name": "trainer", "restartCount": 0, "state": {"terminated": {"exitCode": code, "message": "bad config"}}}
    run = run_of(run_view(trainer_job(0)), False, [pod_view(with_containers(sidecar(), ended))])
    assert (run.outcome, run.state.exit_code) == (outcome, code)
    assert run.holds_node, "the sidecar keeps the GPU"


@pytest.mark.parametrize("job_status", [{}, FAILED])
def test_a_sidecar_that_fails_makes_no_failure_of_a_completed_trainer(job_status: dict[str, Any]) -> None:
    """As an operator sees it that was away when the trainer ended: the pod, and its Job, have failed."""
    ended = {"name": "trainer", "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    found = with_containers(sidecar(terminated={"exitCode": 143, "reason": "Error"}), ended, phase="Failed")
    run = run_of(run_view(trainer_job(0, status=job_status)), False, [pod_view(found)])
    assert run.outcome == "Succeeded"
    found["status"]["reason"] = "Evicted"
    run = run_of(run_view(trainer_job(0, status=job_status)), False, [pod_view(found)])
    assert (run.outcome, run.state.exit_reason) == ("Failed", "Evicted")


def test_a_sidecars_end_is_not_the_trainers() -> None:
    running = {"name": "trainer", "restartCount": 0, "state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}}}
    crashed = sidecar(terminated={"exitCode": 1, "reason": "Error"})
    run = run_of(run_view(trainer_job(0)), False, [pod_view(with_containers(crashed, running))])
    assert (run.outcome, run.state.ends, run.state.exit_code) == ("Active", 0, None)
    assert (run.state.reason, run.state.message) == ("Error", "container istio-proxy: exit code 1")


def test_an_init_container_that_cannot_start_is_the_reason() -> None:
    waiting = {"name": "trainer", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}
    body = with_containers(waiting, phase="Pending")
    body["status"]["initContainerStatuses"] = [
        {"name": "vault-agent", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    ]
    state = pod_view(body).state
    assert (state.reason, state.message) == ("ImagePullBackOff", "init container vault-agent: no such image")


@pytest.mark.parametrize(
    ("container", "ends"),
    [
        ({"restartCount": 0, "state": {"running": {}}}, 0),
        ({"restartCount": 3, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}, 3),
        ({"restartCount": 3, "state": {"terminated": {"exitCode": 1}}}, 4),
        (
            {
                "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1}},
            },
            4,
        ),
        ({"restartCount": 0, "state": {"waiting": {"reason": "ContainerCreating"}}}, 0),
    ],
)
def test_how_often_a_container_has_ended(container: dict[str, Any], ends: int) -> None:
    body = with_containers(sidecar(), {"name": "inference", **container}, component="inference")
    assert pod_view(body).state.ends == ends
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:10:00Z"
    assert pod_view(body).state.ends == 0, "it was told to end"
