"""What a cluster's owner cares for: volumes, placement, failures, lifetimes, pod settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from visionrl.job.base import Model, NonNegativeFloat, NonNegativeInt, PositiveInt, Quantity
from visionrl.job.components import Toleration


class Storage(Model):
    """Volumes. Without claims, the run folder and the model cache live as long as their pods."""

    run_claim: str | None = None
    """Existing PersistentVolumeClaim for the run folder."""
    run_size: Quantity | None = None
    """Size of a claim that the operator makes for the run folder."""
    storage_class_name: str | None = None
    """Storage class of the claim that the operator makes."""
    model_cache_claim: str | None = None
    """Existing claim with model weights, mounted by server and trainer."""


class Placement(Model):
    """Where server and trainer run relative to each other."""

    topology: Literal["Any", "SameNode", "DifferentNodes"] = "Any"
    """Both on one node, on two nodes, or wherever they fit."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the nodes of all three parts must have."""


Component = Literal["taskApp", "inference", "trainer"]


class FailureRule(Model):
    """First rule that matches decides. A rule matches when every condition that it names holds."""

    action: Literal["Fail", "Restart", "RestartIgnoreLimit"]
    """`Fail` ends the job, `Restart` starts another attempt within `maxRestarts`, `RestartIgnoreLimit` does not
    count it."""
    component: Component | None = None
    """Part that failed."""
    exit_codes: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=list)
    """Exit codes of its container."""
    reasons: list[str] = Field(default_factory=list)
    """Reasons of its pod or container, such as OOMKilled, Evicted, Preempted."""


class FailurePolicy(Model):
    """What happens when a part fails."""

    max_restarts: NonNegativeInt = 3
    """Attempts after the first one."""
    backoff_seconds: NonNegativeFloat = 10.0
    """Delay before an attempt; doubles with each one, at most 300 s."""
    rules: Annotated[list[FailureRule], Field(max_length=32)] = Field(default_factory=list)
    """Checked in order. A failure that none matches restarts; one that the cluster caused is not counted."""


class Lifecycle(Model):
    """Deadlines and what is left behind."""

    pre_running_deadline_seconds: PositiveInt | None = None
    """The job fails when the trainer does not run after this time."""
    active_deadline_seconds: PositiveInt | None = None
    """The job fails when it is not complete this long after its start; suspended time does not count."""
    ttl_seconds_after_finished: NonNegativeInt | None = None
    """The job object is deleted this long after its end."""
    cleanup_policy: Literal["DeletePods", "KeepAll"] = "DeletePods"
    """Pods at the end: `DeletePods` frees the GPUs, `KeepAll` leaves server and task app up."""


class EnvVar(Model):
    """An environment variable with a literal value."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name; those that begin with VISIONRL_ are the operator's."""
    value: str
    """Value."""


class PodPatch(Model):
    """The parts of a pod that a cluster's owner may need to set."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of the pod."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Further annotations of the pod."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Further node labels that the pod needs."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Further tolerations."""
    env: list[EnvVar] = Field(default_factory=list)
    """Further environment variables of the container."""
    service_account_name: str | None = None
    """Service account of the pod; its token is not mounted."""
    priority_class_name: str | None = None
    """Priority class of the pod."""
    image_pull_secrets: list[str] = Field(default_factory=list)
    """Names of Secrets for private registries."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled; empty takes Kubernetes' default."""


class Overrides(Model):
    """Pod settings by part."""

    task_app: PodPatch = PodPatch()
    inference: PodPatch = PodPatch()
    trainer: PodPatch = PodPatch()
