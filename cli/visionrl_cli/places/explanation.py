"""Why a job is where it is, and what to do about it: from its status, its events and its attempts alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from visionrl.job import Component
from visionrl.status import ComponentStatus, Condition, JobStatus
from visionrl_cli.places.place import CANCELLED, STOPPED, Event, JobRecord

Command = Callable[[str], str]
""" "jobs resume demo" → the whole command."""


@dataclass(frozen=True)
class Cause:
    """One thing that keeps a job from going on, or that ended it."""

    what: str
    fix: str
    """What the user can do; empty where waiting is enough."""


@dataclass(frozen=True)
class Fix:
    """What to do about a component in a state. ``pattern`` matches "Reason: message"."""

    pattern: str
    text: str
    """With ``{section}``, the component's section of the job; ``{logs}``, the command that shows its log."""


# Of a component, by what its pod, its container or its process says of itself. The first that matches applies.
FIXES = (
    Fix(
        r"Insufficient nvidia\.com/gpu",
        "no node has so many free GPUs: lower spec.{section}.gpu.count, suspend another job, or add a node; "
        "visionrl doctor lists the GPU nodes",
    ),
    Fix(
        r"Insufficient (cpu|memory|ephemeral-storage)",
        "no node has so much free: lower spec.{section}.resources, or add a node",
    ),
    Fix(
        r"persistentvolumeclaim .* not found",
        "make the claim, or let the operator make one: spec.storage.runSize in place of spec.storage.runClaim",
    ),
    Fix(
        r"unbound immediate PersistentVolumeClaims",
        "the claim waits for a volume: kubectl describe pvc says why; the cluster needs a storage class that makes "
        "volumes (spec.storage.storageClassName)",
    ),
    Fix(r"untolerated taint", "allow the nodes' taint: spec.{section}.gpu.tolerations or spec.overrides.*.tolerations"),
    Fix(
        r"node affinity|node selector|nodeSelector",
        "no node has these labels: compare spec.placement.nodeSelector and spec.{section}.gpu.products with "
        "kubectl get nodes --show-labels",
    ),
    Fix(r"no nodes available", "the cluster has no node that takes pods: kubectl get nodes"),
    Fix(r"^Unschedulable", "no node takes the pod: what the scheduler says is above"),
    Fix(
        r"^SchedulingGated",
        "Kueue has not admitted the job: kubectl get workloads, and the quota of the queue in spec.queueName",
    ),
    Fix(
        r"^(ErrImagePull|ImagePullBackOff|InvalidImageName|ErrImageNeverPull)",
        "the node cannot get the image: check spec.{section}.image (or jobImages.prefix of the chart), and "
        "spec.overrides.{section}.imagePullSecrets for a private registry",
    ),
    Fix(
        r"^CreateContainerConfigError|^CreateContainerError",
        "the container cannot be made: the message names the Secret, ConfigMap or setting that is missing",
    ),
    Fix(r"FailedMount|FailedAttachVolume", "a volume cannot be mounted: kubectl describe pod names it"),
    Fix(
        r"exceeded quota",
        "the namespace's quota is used up: kubectl describe resourcequota; suspend another job or lower "
        "spec.{section}.resources",
    ),
    Fix(
        r"PodSecurity|violates",
        "the namespace's pod security refuses the pod: the message names the rule; spec.overrides may satisfy it",
    ),
    Fix(r"^FailedCreate", "the API server refuses the pod: the message says why"),
    Fix(
        r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory",
        "the GPU's memory does not suffice: lower spec.training.microBatchTokens (trainer) or "
        "spec.inference.vllm.gpuMemoryUtilization and maxModelLen (inference)",
    ),
    Fix(
        r"OOMKilled|exit code 137",
        "it took more memory than it may: raise spec.{section}.resources.memory, or lower "
        "spec.training.microBatchTokens (trainer) or spec.rollout.maxConcurrent (task app)",
    ),
    Fix(
        r"401 Client Error|gated repo|Repository Not Found|is not a valid model identifier",
        "the hub does not give the model: check spec.model.base; a gated one is fetched with the user's own token into "
        "spec.storage.modelCacheClaim first",
    ),
    Fix(
        r"No space left on device",
        "a disk is full: a larger spec.storage.runSize (runClaim), fewer spec.training.keepCheckpoints",
    ),
    Fix(r"exit code 2\b", "the configuration cannot work and a retry would fail in the same way: the message says why"),
    Fix(
        r"^NoProgress|NoProgress",
        "it ran and reported nothing new: {logs}; where an update takes longer than that, raise "
        "spec.lifecycle.progressDeadlineSeconds",
    ),
    Fix(
        r"^(Evicted|Preempted|Preempting|NodeLost|NodeShutdown|Terminated|Deletion|Eviction)",
        "the cluster took the pod away; another one is started, and this does not count as a failure",
    ),
    Fix(r"^(CrashLoopBackOff|Error|ContainerCannotRun|RunContainerError)", "it ended by itself: {logs}"),
    Fix(r"exit code [0-9]+", "it ended by itself: {logs}"),
)

NORMAL = {
    "WaitingForBase": "the trainer makes the base model first (warm start)",
    "WaitingForTaskApp": "the task app is not ready yet",
    "WaitingForInference": "the inference server is not ready yet: it loads the model",
    "Starting": "it is starting: images are pulled and models loaded, which takes minutes at first",
    "NotCreated": "nothing of it exists yet",
    "Terminating": "its former pod is ending",
}

FAILED = {
    "ConfigurationError": "mend the file (visionrl validate FILE) and start the job anew",
    "MaxRestartsExceeded": "mend the cause; spec.failurePolicy.maxRestarts and windowSeconds limit the failures that a "
    "job survives",
    "FailurePolicy": "a rule of spec.failurePolicy.rules says that this failure ends the job",
    "ActiveDeadlineExceeded": "raise spec.lifecycle.activeDeadlineSeconds, or ask for fewer spec.training.iterations",
    "PreRunningDeadlineExceeded": "the trainer did not run in time: what it waited for is below; or raise "
    "spec.lifecycle.preRunningDeadlineSeconds",
    "FailedToStart": "change spec.placement or spec.queueName: the queue's flavors contradict what the job asks for",
}

# By the beginning of the reason of the condition Admitted.
NOT_ADMITTED = {
    "NoKueue": "install Kueue and give the operator its rights (chart: kueue.enabled), or leave spec.queueName out",
    "Deactivated": "mend why it was deactivated, then set spec.active of its Workload to true",
    "Inadmissible": "kubectl get localqueues: is there one of this name, and does its ClusterQueue exist?",
    "": "kubectl get workloads, kubectl describe clusterqueue: what its quota is used for",
}


def explain(record: JobRecord, events: Sequence[Event], command: Command) -> tuple[str, list[Cause]]:
    """The job's state in one line, and what there is to know about it. No cause: it goes on by itself."""
    return _headline(record), list(dict.fromkeys(_causes(record, events, command)))


def _headline(record: JobRecord) -> str:
    return f"{record.name}: {record.phase}{f': {record.status.reason}' if record.status.reason else ''}"


def _causes(record: JobRecord, events: Sequence[Event], command: Command) -> Iterator[Cause]:
    status, name = record.status, record.name
    if record.phase == CANCELLED:
        yield Cause("somebody cancelled it; its results are kept", f"to continue: {command(f'jobs resume {name}')}")
        return
    if record.phase == STOPPED:
        fix = f"{_local_fix(status.reason)}{command(f'jobs resume {name}')}"
        yield Cause(f"nothing executes it: {status.reason}", fix)
    if record.phase == "Suspended":
        yield Cause("spec.suspend is true" if record.generation else "it was suspended", command(f"jobs resume {name}"))
        return
    if record.generation and not status.conditions:
        yield Cause(
            "no operator has seen it",
            "is one running? kubectl get pods -A -l app.kubernetes.io/name=visionrl; and does it watch this namespace?",
        )
        yield from _warnings(events)
        return
    if 0 < status.observed_generation < record.generation:
        yield Cause("the operator has not seen the last change yet", "wait a moment; then look at the operator's log")
    yield from _conditions(status)
    failed = status.condition("Failed")
    if failed is not None and failed.status == "True":
        yield from _failure(status, failed, name, command)
    elif not status.finished:
        for component in status.components:
            if not component.ready:
                yield from _component(component, name, command)
        yield from _attempts(status, name, command)
    if not status.finished:
        yield from _warnings(events)


def _conditions(status: JobStatus) -> Iterator[Cause]:
    accepted, admitted = status.condition("Accepted"), status.condition("Admitted")
    if accepted is not None and accepted.status == "False":
        fix = {
            "Immutable": "undo the change, or start a new job; this one keeps the fields that it was accepted with",
            "ImageNotAllowed": "use an image that jobImages.allowed of the chart permits",
            "RunFolderGone": "start a new job, with spec.storage.runSize",
        }.get(accepted.reason, "change the field and apply the file again; visionrl validate FILE names the line")
        yield Cause(f"the job is refused: {accepted.message}", fix)
    elif accepted is not None and accepted.message:
        yield Cause(f"a warning: {accepted.message}", "nothing, where it is meant")
    if admitted is not None and admitted.status == "False":
        fix = next(fix for reason, fix in NOT_ADMITTED.items() if admitted.reason.startswith(reason))
        yield Cause(f"Kueue has not admitted it: {admitted.message}", fix)
    if (drifted := status.condition("Drifted")) is not None and drifted.status == "True":
        yield Cause(
            f"somebody else keeps changing its objects: {drifted.message}",
            "find who does (kubectl get -o yaml --show-managed-fields) and make it leave them alone",
        )


def _failure(status: JobStatus, failed: Condition, name: str, command: Command) -> Iterator[Cause]:
    message = failed.message or status.reason
    yield Cause(f"it failed: {failed.reason}: {message}", FAILED.get(failed.reason, ""))
    component: Component = status.failures[-1].component if status.failures else "trainer"
    text = "\n".join((message, status.failure_log))
    if fix := _fix(text, component, name, command):
        yield Cause("the cause", fix)
    if status.failure_log:
        yield Cause(
            "its last lines:\n" + "\n".join(f"    {line}" for line in status.failure_log.splitlines()[-10:]), ""
        )


def _component(component: ComponentStatus, name: str, command: Command) -> Iterator[Cause]:
    reason = component.message.partition(":")[0] or "NotCreated"
    if reason in ("NotNeeded", "Completed", ""):
        return
    if reason in NORMAL:
        said = component.message.partition(": ")[2]
        yield Cause(f"{component.name}: {NORMAL[reason]}{f' ({said})' if said else ''}", "")
        return
    yield Cause(f"{component.name}: {component.message}", _fix(component.message, component.name, name, command))


def _local_fix(said: str) -> str:
    """What to do before a job on this machine is started again."""
    if "GPUs" in said:
        return (
            "run it on a machine that has them or in a cluster (train --type rl --context NAME), or lower or drop gpu "
            "in the file; visionrl doctor lists this machine's; then "
        )
    return ""


def _attempts(status: JobStatus, name: str, command: Command) -> Iterator[Cause]:
    """Why the trainer's last attempt ended, where another one follows."""
    last = status.attempts[-1] if status.attempts else None
    if last is not None and last.cause and last.counted:
        fix = _fix(last.cause, "trainer", name, command)
        yield Cause(f"attempt {last.number} ended: {last.cause}; attempt {status.attempt} follows", fix)


def _warnings(events: Sequence[Event]) -> Iterator[Cause]:
    """What the cluster complained about last."""
    told = [
        f"{each.about}: {each.reason}: {each.message}".removeprefix(": ") for each in events if each.type == "Warning"
    ]
    yield from (Cause(f"the cluster says: {text}", "") for text in list(dict.fromkeys(reversed(told)))[:3])


def _fix(text: str, component: Component, name: str, command: Command) -> str:
    found = next((fix for fix in FIXES if re.search(fix.pattern, text, re.MULTILINE)), None)
    logs = command(f"jobs logs {name} --component {component}")
    return found.text.format(section=component, logs=logs) if found else logs
