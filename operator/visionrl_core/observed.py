"""What exists now: the values that ``decide`` reads. Filled from informers and pods in a cluster, from processes on
this machine; no I/O here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from visionrl.job import Component, Job
from visionrl.status import Copy, TrainerReport
from visionrl_core.container_images import RELEASED, Images
from visionrl_core.kueue import Queue
from visionrl_core.manifests.common import Owner, Ref
from visionrl_core.manifests.merge import NO_DEFAULTS, PodDefaults


@dataclass(frozen=True)
class JobObject:
    """A VisionRLJob as the API server holds it; ``document`` may be invalid."""

    owner: Owner
    generation: int
    document: Mapping[str, Any]
    """``apiVersion``, ``kind``, ``metadata`` (name, namespace, labels, annotations) and ``spec``."""

    @property
    def name(self) -> str:
        return self.owner.name


@dataclass(frozen=True)
class ObservedComponent:
    """The pod of a component, as far as it exists."""

    ready: bool = False
    pods: int = 0
    """Pods that still exist, those that are ending included."""
    restarts: int = 0
    exit_code: int | None = None
    """Of the container's last end."""
    exit_reason: str = ""
    """Of the container's or pod's last end: OOMKilled, Error, Evicted."""
    reason: str = ""
    """Why it is not ready now, a CamelCase word: CrashLoopBackOff, Unschedulable, SchedulingGated, ImagePullBackOff;
    empty where it is merely starting."""
    message: str = ""
    """One line for people, the scheduler's or the container's."""
    log: str = ""
    """Last lines of the container before its last end, where it failed."""
    node: str | None = None
    started: datetime | None = None
    instance: str = ""
    """What distinguishes this pod (or process) from former ones."""
    created: datetime | None = None
    """Of the instance."""
    ends: int = 0
    """How often the container of this instance has ended so far without a request to end."""
    ended: datetime | None = None
    """When it ended last."""


@dataclass(frozen=True)
class TrainerRun:
    """The Kubernetes Job of one attempt."""

    attempt: int
    outcome: Literal["Active", "Succeeded", "Failed"] = "Active"
    deleting: bool = False
    state: ObservedComponent = ObservedComponent()
    report: TrainerReport | None = None
    """What the trainer left when it completed."""
    key: str = ""
    """Digest of the key that it was started with; empty where nobody knows."""
    holds_node: bool = False
    """A pod of it has not ended yet, and holds what it asked its node for."""


@dataclass(frozen=True)
class ExportRun:
    """The Kubernetes Job that copies the trained policy."""

    outcome: Literal["Active", "Succeeded", "Failed"] = "Active"
    message: str = ""
    """Why it does not start, or what its last try failed with."""
    version: str = ""
    """Policy version that it has copied."""
    copies: tuple[Copy, ...] = ()
    holds_node: bool = False
    """A pod of it has not ended yet."""


@dataclass(frozen=True)
class StuckPod:
    """A pod that should have ended: its node does not confirm that it did."""

    name: str
    component: str
    node: str
    since: datetime
    """When its grace period was over."""
    node_is_lost: bool
    """The node object is gone, or marked as out of service: the pod's processes run no more."""


@dataclass(frozen=True)
class ClusterRules:
    """What holds for all jobs of a cluster: the operator is told so when it is installed."""

    images: Images = field(default_factory=lambda: RELEASED)
    """For components of a new job that names none."""
    allowed_images: tuple[str, ...] = ()
    """Prefixes that the images of a new job may have; none allow every image."""
    allow_privileged: bool = False
    """Whether a new job's pod templates may go beyond the *restricted* Pod Security Standard."""
    pod_defaults: PodDefaults = NO_DEFAULTS
    """What all pods of jobs get."""
    resource_claims: bool = True
    """Whether new jobs may ask for GPUs by ``gpu.resourceClaim``."""
    scraped_by: tuple[Mapping[str, Any], ...] = ()
    """NetworkPolicy peers that may read metrics of servers and trainers; none of them without one."""


NO_RULES = ClusterRules()


@dataclass(frozen=True)
class Observed:
    """Everything that exists of a job."""

    rules: ClusterRules = NO_RULES
    accepted: Job | None = None
    """The job in the ConfigMap: the specification that the components run with."""
    objects: Mapping[Ref, Mapping[str, Any]] = field(default_factory=dict)
    """Every owned object that exists, with what is compared of it: labels, annotations, owners, ``spec``, ``data``; of
    a Secret, a Job, a claim and Kueue's Workload nothing is compared."""
    deleting: frozenset[Ref] = frozenset()
    """Those of them that are being deleted."""
    key: str | None = None
    """Digest of the key in the Secret; None where there is none."""
    contested: Mapping[Ref, str] = field(default_factory=dict)
    """Objects that do not stay as the manifests say, however often they are repaired, and what differs."""
    task_app: ObservedComponent = ObservedComponent()
    inference: ObservedComponent = ObservedComponent()
    trainers: tuple[TrainerRun, ...] = ()
    """By attempt, oldest first."""
    exports: Mapping[str, ExportRun] = field(default_factory=dict)
    """By name of the Job."""
    orphaned_trainer_pods: int = 0
    """Trainer pods that still exist without their Job."""
    stuck: tuple[StuckPod, ...] = ()
    report: TrainerReport | None = None
    """Of the trainer that runs now."""
    cache_access: tuple[str, ...] = ()
    """Access modes of the claim with the model cache; empty where nobody knows them."""
    queue: Queue | None = None
    """Of a job that names a queue, where the executor has queues."""
    run_folder: str = ""
    """Of an executor that keeps it itself, whatever volumes the job asks for."""
    idle: timedelta = timedelta(0)
    """How long the running trainer has reported nothing new, or has not answered. The executor measures it, by a clock
    that does not jump, from when it began to look: one that was away for hours knows nothing of them."""

    @property
    def servers(self) -> tuple[tuple[Component, ObservedComponent], ...]:
        return ("taskApp", self.task_app), ("inference", self.inference)

    def trainer(self, attempt: int) -> TrainerRun | None:
        return next((run for run in self.trainers if run.attempt == attempt), None)

    def has(self, ref: Ref) -> bool:
        return ref in self.objects

    @property
    def has_deployments(self) -> bool:
        return any(ref.kind == "Deployment" for ref in self.objects)
