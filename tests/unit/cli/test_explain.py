"""Why a job waits or failed: each state, what is said of it, and what to do."""

from __future__ import annotations

from typing import Any, Literal, cast

import pytest

from visionrl.status import Attempt, ComponentFailure, ComponentStatus, Condition, ConditionType, JobStatus
from visionrl_cli.places.explanation import Cause, explain
from visionrl_cli.places.place import Event, JobRecord

TIME = "2026-01-01T00:00:00Z"


def condition(type_: ConditionType, status: Literal["True", "False"], reason: str, message: str = "") -> Condition:
    return Condition(type=type_, status=status, reason=reason, message=message, last_transition_time=TIME)


def causes(status: JobStatus, phase: str = "", events: list[Event] | None = None, generation: int = 1) -> list[Cause]:
    record = JobRecord("demo", "default", TIME, phase or status.phase, status, {"spec": {}}, generation)
    return explain(record, events or [], lambda words: f"kubectl visionrl {words}")[1]


def waiting(component: str, message: str, **more: Any) -> JobStatus:
    names = ("taskApp", "inference", "trainer")
    return JobStatus(
        observed_generation=1,
        conditions=[condition("Accepted", "True", "Valid")],
        components=[
            ComponentStatus(name=cast(Any, name), ready=name != component, message=message if name == component else "")
            for name in names
        ],
        **more,
    )


def failed(reason: str, message: str, log: str = "") -> JobStatus:
    entry = ComponentFailure(component="trainer", type="Crashed", at=TIME, cause=message, counted=True)
    conditions = [condition("Accepted", "True", "Valid"), condition("Failed", "True", reason, message)]
    return JobStatus(phase="Failed", conditions=conditions, failures=[entry], failure_log=log)


WAITS = {
    "no GPU": (
        waiting("trainer", "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        "lower spec.trainer.gpu.count",
    ),
    "no memory": (
        waiting("inference", "Unschedulable: 0/3 nodes are available: 3 Insufficient memory."),
        "spec.inference.resources",
    ),
    "no claim": (
        waiting("trainer", 'Unschedulable: persistentvolumeclaim "runs" not found'),
        "spec.storage.runSize in place of spec.storage.runClaim",
    ),
    "labels": (
        waiting("inference", "Unschedulable: 1 node(s) didn't match Pod's node affinity/selector"),
        "spec.inference.gpu.products",
    ),
    "taint": (
        waiting("inference", "Unschedulable: 1 node(s) had untolerated taint {gpu: true}"),
        "spec.inference.gpu.tolerations",
    ),
    "image": (
        waiting("taskApp", "ImagePullBackOff: Back-off pulling image"),
        "spec.overrides.taskApp.imagePullSecrets",
    ),
    "queue": (waiting("trainer", "SchedulingGated"), "spec.queueName"),
    "quota": (
        waiting("trainer", 'FailedCreate: pods "demo" is forbidden: exceeded quota: small'),
        "kubectl describe resourcequota",
    ),
    "memory limit": (
        waiting("inference", "CrashLoopBackOff: exit code 137 (OOMKilled)"),
        "spec.inference.resources.memory",
    ),
    "crash": (
        waiting("inference", "CrashLoopBackOff: back-off 10s"),
        "kubectl visionrl jobs logs demo --component inference",
    ),
    "unknown": (
        waiting("trainer", "SomethingNew: of a later Kubernetes"),
        "kubectl visionrl jobs logs demo --component trainer",
    ),
    "configuration": (failed("ConfigurationError", "trainer: exit code 2: bad"), "visionrl validate FILE"),
    "often": (failed("MaxRestartsExceeded", "trainer: exit code 1"), "spec.failurePolicy.maxRestarts"),
    "late": (failed("ActiveDeadlineExceeded", "not complete within 5 s"), "spec.lifecycle.activeDeadlineSeconds"),
    "GPU memory": (
        failed("MaxRestartsExceeded", "trainer: exit code 1", "torch.OutOfMemoryError: CUDA out of memory."),
        "lower spec.training.microBatchTokens",
    ),
    "gated": (
        failed("FailurePolicy", "inference: exit code 1", "OSError: You are trying to access a gated repo."),
        "spec.storage.modelCacheClaim",
    ),
    "refused": (
        JobStatus(conditions=[condition("Accepted", "False", "Invalid", "spec.training.groupSize: must be 2")]),
        "visionrl validate FILE",
    ),
    "fixed field": (
        JobStatus(conditions=[condition("Accepted", "False", "Immutable", "spec.model.base cannot change")]),
        "start a new job",
    ),
    "Kueue": (
        JobStatus(
            conditions=[
                condition("Accepted", "True", "Valid"),
                condition("Admitted", "False", "Pending", "waits for queue q"),
            ]
        ),
        "kubectl get workloads",
    ),
    "deactivated": (
        JobStatus(
            conditions=[
                condition("Accepted", "True", "Valid"),
                condition("Admitted", "False", "DeactivatedDueToRequeuingLimitExceeded", "too many retries"),
            ]
        ),
        "spec.active of its Workload",
    ),
    "no Kueue": (
        JobStatus(
            conditions=[condition("Accepted", "True", "Valid"), condition("Admitted", "False", "NoKueue", "waits")]
        ),
        "kueue.enabled",
    ),
    "no operator": (JobStatus(), "app.kubernetes.io/name=visionrl"),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_is_in_the_way_is_said_with_what_to_do(name: str) -> None:
    status, fix = WAITS[name]
    found = causes(status)
    assert any(fix in cause.fix for cause in found), found


def test_the_message_of_the_cluster_is_shown() -> None:
    (found,) = causes(WAITS["no GPU"][0])
    assert found.what == "trainer: Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def test_what_is_normal_asks_for_nothing() -> None:
    (found,) = causes(waiting("inference", "WaitingForBase: waits for the trainer's warm start"))
    assert found.fix == ""
    assert causes(waiting("nothing", "")) == []


def test_the_last_attempt_and_the_last_lines_are_shown() -> None:
    ended = Attempt(number=0, started=TIME, ended=TIME, cause="trainer: exit code 137 (OOMKilled)")
    (found,) = causes(waiting("nothing", "", attempts=[ended], attempt=1))
    assert found.what == "attempt 0 ended: trainer: exit code 137 (OOMKilled); attempt 1 follows"
    assert "spec.trainer.resources.memory" in found.fix
    assert any("    the end" in cause.what for cause in causes(failed("FailurePolicy", "x", "a\nthe end")))


def test_warnings_of_the_cluster_are_added_once() -> None:
    event = Event(TIME, "Warning", "FailedMount", 'secret "x" not found', "Pod/demo-trainer-0-a")
    normal = Event(TIME, "Normal", "Pulled", "image", "Pod/demo-trainer-0-a")
    found = causes(waiting("nothing", ""), events=[event, normal, event])
    assert [cause.what for cause in found] == [
        'the cluster says: Pod/demo-trainer-0-a: FailedMount: secret "x" not found'
    ]


@pytest.mark.parametrize("phase", ["Suspended", "Cancelled", "Stopped"])
def test_a_job_that_somebody_stopped_says_how_to_continue(phase: str) -> None:
    found = causes(waiting("nothing", ""), phase, generation=0)
    assert "jobs resume demo" in found[0].fix
