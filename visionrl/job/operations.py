"""Operation in a cluster: volumes, placement, failures, deadlines, pod settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from visionrl.job.base import (
    MAX_SECONDS,
    ExportUrl,
    LabelKey,
    LabelValue,
    Model,
    NonNegativeInt,
    ObjectName,
    Quantity,
    Seconds,
)
from visionrl.job.components import SecretKey, Toleration


class Retention(Model):
    """What becomes of the claim that the operator makes. A claim that is retained is deleted by a person."""

    when_deleted: Literal["Retain", "Delete"] = "Retain"
    """When the job object is deleted."""
    when_finished: Literal["Retain", "Delete"] = "Retain"
    """When the job has ended, whether complete or failed; after the export, where there is one."""


class Export(Model):
    """Copies of the trained policy, made when the job is complete."""

    adapter: ExportUrl | None = None
    """Where the adapter is copied to: `pvc://CLAIM/path` (an existing claim), `s3://BUCKET/path`, `hf://OWNER/NAME` (a
    private repository), or `gs://`, `abfs://` with a trainer image that has gcsfs or adlfs."""
    merged_model: ExportUrl | None = None
    """Where the base model with the adapter merged into it is copied to."""
    secret_name: ObjectName | None = None
    """Secret whose keys become environment variables of the copying pod: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_ENDPOINT_URL; HF_TOKEN."""


class Storage(Model):
    """Volumes. The run folder holds checkpoints and the trained policy; by default, the operator makes a claim for it.
    Without a claim, the model cache is lost with its pod."""

    run_claim: ObjectName | None = None
    """Existing PersistentVolumeClaim for the run folder."""
    run_size: Quantity | None = None
    """Size of the claim that the operator makes for the run folder; empty: 20Gi."""
    storage_class_name: ObjectName | None = None
    """Storage class of the claim that the operator makes; empty: the cluster's default."""
    ephemeral: bool = False
    """No claim: the run folder lives, and what was trained is lost, with the trainer's pod."""
    retention: Retention = Retention()
    export: Export | None = None
    model_cache_claim: ObjectName | None = None
    """Existing claim with model weights, mounted by inference and trainer."""


class Placement(Model):
    """Where inference and trainer run relative to each other."""

    topology: Literal["Any", "SameNode", "DifferentNodes"] = "Any"
    """Both on one node, on two nodes, or wherever they fit."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Labels that the nodes of all three components must have."""


Component = Literal["taskApp", "inference", "trainer"]


class FailureRule(Model):
    """The first rule that matches applies. A rule matches when all of its conditions hold."""

    action: Literal["Fail", "Restart", "RestartIgnoreLimit"]
    """`Fail` ends the job, `Restart` starts another attempt of the trainer within `maxRestarts`, `RestartIgnoreLimit`
    starts one that does not count; also where task app or inference failed."""
    component: Component | None = None
    """Component that failed."""
    exit_codes: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=list)
    """Exit codes of its container."""
    reasons: list[str] = Field(default_factory=list)
    """Reasons of its pod or container, such as OOMKilled, Evicted, Preempted."""


class FailurePolicy(Model):
    """What happens when a component fails."""

    max_restarts: NonNegativeInt = 6
    """Failures of one component within `windowSeconds` that the job survives; one more fails it. As many as Kubernetes'
    own Jobs survive: with the doubling delay, ten minutes in which a hub or a file server is away are not the job's
    end."""
    window_seconds: Seconds = 21_600
    """Failures older than this are forgotten."""
    backoff_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 10.0
    """Delay before an attempt; doubles with each failure in a row, up to 300 s."""
    rules: Annotated[list[FailureRule], Field(max_length=32)] = Field(default_factory=list)
    """Checked in order. A component whose failure no rule matches is restarted alone; a failure that the cluster caused
    does not count."""


class Lifecycle(Model):
    """Deadlines and cleanup."""

    pre_running_deadline_seconds: Seconds | None = None
    """The job fails when an attempt of the trainer does not run this long after it could have started."""
    active_deadline_seconds: Seconds | None = None
    """The job fails when it is not complete this long after its start; suspended time does not count."""
    progress_deadline_seconds: Seconds = 3600
    """An attempt whose trainer runs and reports nothing new for this long has failed: no iteration, no episode, no
    other phase. More than the longest update takes."""
    node_lost_seconds: Seconds = 300
    """A pod that does not end for this long, on a node that is gone or marked out of service, is deleted by force."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=MAX_SECONDS)] | None = None
    """The job object is deleted this long after its end."""
    cleanup_policy: Literal["DeletePods", "KeepAll"] = "DeletePods"
    """Pods at the end: `DeletePods` frees the GPUs, `KeepAll` leaves inference and task app running."""


class EnvSource(Model):
    """Where a variable's value comes from."""

    secret_key_ref: SecretKey
    """A Secret."""


class EnvVar(Model):
    """An environment variable: a literal value, or a Secret's."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name; names that begin with VISIONRL_ are reserved for the operator."""
    value: str | None = None
    """Literal value; what is secret must not be one."""
    value_from: EnvSource | None = None
    """Instead of `value`."""


class PodPatch(Model):
    """Settings of a pod that a cluster may need."""

    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Additional labels of the pod."""
    annotations: dict[LabelKey, str] = Field(default_factory=dict)
    """Additional annotations of the pod."""
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    """Additional labels that the node must have."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Additional tolerations."""
    env: list[EnvVar] = Field(default_factory=list)
    """Additional environment variables of the container."""
    service_account_name: ObjectName | None = None
    """Service account of the pod; its token is not mounted."""
    priority_class_name: ObjectName | None = None
    """Priority class of the pod."""
    image_pull_secrets: list[ObjectName] = Field(default_factory=list)
    """Names of Secrets for private registries."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the container image is pulled; empty takes Kubernetes' default."""
    pod_template: dict[str, Any] = Field(default_factory=dict)
    """`metadata` and `spec` of a pod template, merged over the operator's as a strategic merge patch: volumes, mounts,
    `env` with `valueFrom`, `envFrom`, limits, security context, scheduler, sidecars. The component's own container is
    found by its name: taskapp, inference, trainer."""


class Overrides(Model):
    """Pod settings per component."""

    task_app: PodPatch = PodPatch()
    inference: PodPatch = PodPatch()
    trainer: PodPatch = PodPatch()
