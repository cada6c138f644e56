"""What exists of a job in the cluster, as one value for ``decide``. No I/O: the store was fed before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from visionrl.job import Job
from visionrl.status import TrainerReport
from visionrl_core import accepted
from visionrl_core.clock import moment
from visionrl_core.kinds import POD, WORKLOAD
from visionrl_core.kueue import Queue, WorkloadView
from visionrl_core.manifests.common import SUFFIXES, Ref, component_name
from visionrl_core.manifests.config import JOB_FILE, config_name, key_name
from visionrl_core.manifests.export import EXPORT
from visionrl_core.manifests.queue import workload_name
from visionrl_core.observed import ClusterRules, ExportRun, Observed, StuckPod, TrainerRun
from visionrl_core.pods import ENDED, PodView, RunView, component_of, export_of, run_of
from visionrl_operator.store import OwnedObject, StoredJob


@dataclass(frozen=True)
class TrainerPod:
    """The pod that may be asked for a report."""

    uid: str
    address: str | None
    """None once it has ended or while it is ending."""


@dataclass(frozen=True)
class Asked:
    """What no watch reports of a job and the API server was asked for."""

    key: str | None
    """Digest of the key in the job's Secret; None where it has none."""
    cache_access: tuple[str, ...] = ()
    """Access modes of the claim with the model cache, before the job is accepted."""
    queue: Queue | None = None
    """Of a job that names one; its Workload is watched."""
    creation_failures: Mapping[int, str] = field(default_factory=dict)
    """Why an attempt has no pod, by attempt."""
    stuck: tuple[StuckPod, ...] = ()
    problems: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Reason and message of what keeps a pod's containers from starting, by the pod's uid."""


def own_objects(job: StoredJob, objects: Mapping[Ref, OwnedObject]) -> dict[Ref, OwnedObject]:
    """Those that this very object owns: not those of another object that had its name before, and no pods."""
    return {ref: found for ref, found in objects.items() if ref.kind != POD.name and found.owner_uid == job.owner.uid}


def observe(
    job: StoredJob,
    objects: Mapping[Ref, OwnedObject],
    asked: Asked,
    report: TrainerReport | None,
    idle: timedelta,
    rules: ClusterRules,
    contested: Mapping[Ref, str],
) -> Observed:
    own, name = own_objects(job, objects), job.owner.name
    existing: dict[Ref, Mapping[str, Any]] = {ref: found.live() for ref, found in own.items()}
    if asked.key is not None:
        existing[Ref("Secret", key_name(name))] = {}
    config = own.get(Ref("ConfigMap", config_name(name)))
    pods = {uid: _with_problem(pod, asked.problems.get(uid)) for uid, pod in pods_of(objects).items()}
    servers = [_current(pod, asked.key) for pod in pods.values() if pod.job_uid in ("", job.uid)]
    runs = {found.uid: _run(found, pods, asked) for found in _jobs(own, SUFFIXES["trainer"])}
    orphans = [
        pod
        for pod in pods.values()
        if pod.component == SUFFIXES["trainer"] and pod.owner_uid not in runs and pod.phase not in ENDED
    ]
    return Observed(
        rules=rules,
        accepted=accepted_job(config) if config and not job.status.get("accepted") else None,
        objects=existing,
        deleting=frozenset(ref for ref, found in own.items() if found.deleting),
        key=asked.key,
        contested=contested,
        task_app=component_of(_of(servers, "taskapp"), _failure(own, component_name(name, "taskApp"))),
        inference=component_of(_of(servers, "inference"), _failure(own, component_name(name, "inference"))),
        trainers=tuple(sorted(runs.values(), key=lambda run: run.attempt)),
        exports={found.ref.name: _export(found, pods) for found in _jobs(own, EXPORT)},
        orphaned_trainer_pods=len(orphans),
        stuck=asked.stuck,
        report=report,
        cache_access=asked.cache_access,
        queue=asked.queue,
        idle=idle,
    )


def workload_of(job: StoredJob, objects: Mapping[Ref, OwnedObject]) -> tuple[OwnedObject, WorkloadView] | None:
    """Kueue's Workload of this very job, and what decisions depend on of it."""
    found = objects.get(Ref(WORKLOAD, workload_name(job.owner.name)))
    if found is None or found.owner_uid != job.uid or not isinstance(found.detail, WorkloadView):
        return None
    return found, found.detail


def trainer_pod(job: StoredJob, objects: Mapping[Ref, OwnedObject], attempt: int) -> TrainerPod | None:
    """The newest pod of an attempt."""
    runs = {
        found.uid
        for found in _jobs(own_objects(job, objects), SUFFIXES["trainer"])
        if isinstance(found.detail, RunView) and found.detail.attempt == attempt
    }
    newest: tuple[str, TrainerPod] | None = None
    for found in objects.values():
        pod = found.detail
        if isinstance(pod, PodView) and pod.owner_uid in runs and (newest is None or newest[0] < pod.created):
            answers = not pod.deleting and pod.phase not in ENDED and pod.state.started is not None
            newest = pod.created, TrainerPod(found.uid, pod.address if answers else None)
    return newest[1] if newest else None


def podless_attempts(job: StoredJob, objects: Mapping[Ref, OwnedObject]) -> dict[int, OwnedObject]:
    """Jobs that have no pod yet."""
    owners = {pod.owner_uid for pod in pods_of(objects).values()}
    return {
        found.detail.attempt: found
        for found in _jobs(own_objects(job, objects), SUFFIXES["trainer"])
        if isinstance(found.detail, RunView)
        and found.detail.outcome == "Active"
        and not found.deleting
        and found.uid not in owners
    }


def pods_of(objects: Mapping[Ref, OwnedObject]) -> dict[str, PodView]:
    """Pods by uid."""
    return {found.uid: found.detail for found in objects.values() if isinstance(found.detail, PodView)}


def accepted_job(config: OwnedObject) -> Job | None:
    """The specification in the ConfigMap: jobs of an operator that did not keep it in the status have it there only."""
    return accepted.job_of(config.live().get("data", {}).get(JOB_FILE, ""))


def overdue_pods(objects: Mapping[Ref, OwnedObject], now: datetime, patience: timedelta) -> list[OwnedObject]:
    """Pods whose grace period was over so long ago and that still exist: their node does not answer."""
    return [
        found
        for found in objects.values()
        if isinstance(found.detail, PodView)
        and found.detail.grace_ends is not None
        and now - moment(found.detail.grace_ends) >= patience
    ]


def starting_pods(objects: Mapping[Ref, OwnedObject]) -> list[OwnedObject]:
    """Pods that have a node and whose containers are not up: what they mount may be missing."""
    return [
        found
        for found in objects.values()
        if isinstance(found.detail, PodView)
        and not found.deleting
        and found.detail.phase == "Pending"
        and found.detail.state.node is not None
    ]


def _run(found: OwnedObject, pods: Mapping[str, PodView], asked: Asked) -> TrainerRun:
    assert isinstance(found.detail, RunView)
    own = [pod for pod in pods.values() if pod.owner_uid == found.uid]
    return run_of(found.detail, found.deleting, own, asked.creation_failures.get(found.detail.attempt, ""))


def _jobs(objects: Mapping[Ref, OwnedObject], part: str) -> list[OwnedObject]:
    """The Jobs of a part."""
    return [found for found in objects.values() if isinstance(found.detail, RunView) and found.detail.part == part]


def _export(found: OwnedObject, pods: Mapping[str, PodView]) -> ExportRun:
    assert isinstance(found.detail, RunView)
    return export_of(found.detail, [pod for pod in pods.values() if pod.owner_uid == found.uid])


def _of(pods: Iterable[PodView], component: str) -> list[PodView]:
    return [pod for pod in pods if pod.component == component]


def _with_problem(pod: PodView, problem: tuple[str, str] | None) -> PodView:
    if problem is None or pod.state.reason:
        return pod
    return replace(pod, state=replace(pod.state, reason=problem[0], message=problem[1]))


def _current(pod: PodView, key: str | None) -> PodView:
    """A pod that was started with another key serves nobody: its successor is on the way."""
    if pod.key in ("", key) or not pod.state.ready:
        return pod
    return replace(pod, state=replace(pod.state, ready=False, reason="KeyReplaced"))


def _failure(own: Mapping[Ref, OwnedObject], deployment: str) -> str:
    found = own.get(Ref("Deployment", deployment))
    return str(found.detail) if found else ""
