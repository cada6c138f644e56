"""The whole job as a user writes it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from visionrl.job.base import JobName, LabelKey, LabelValue, Model, Namespace, ObjectName, QueueName
from visionrl.job.components import Inference, TaskApp, Trainer
from visionrl.job.model import PolicyModel
from visionrl.job.operations import FailurePolicy, Lifecycle, Overrides, Placement, Storage
from visionrl.job.rollout import Rollout
from visionrl.job.tracking import Tracking
from visionrl.job.training import Algorithm, Evaluation, Training


class JobSpec(Model):
    """The desired state."""

    algorithm: Algorithm = Algorithm()
    model: PolicyModel
    task_app: TaskApp = TaskApp()
    inference: Inference = Inference()
    trainer: Trainer = Trainer()
    rollout: Rollout = Rollout()
    training: Training
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    storage: Storage = Storage()
    placement: Placement = Placement()
    failure_policy: FailurePolicy = FailurePolicy()
    lifecycle: Lifecycle = Lifecycle()
    suspend: bool = False
    """No pods run while true; afterwards, training continues from the last checkpoint."""
    queue_name: QueueName | None = None
    """Kueue LocalQueue that admits the job: all of its pods together."""
    queue_priority_class: ObjectName | None = None
    """Kueue WorkloadPriorityClass of the job; needs `queueName`."""
    overrides: Overrides = Overrides()


class Metadata(Model):
    """The fields of Kubernetes' object metadata that a job file may set."""

    name: JobName
    namespace: Namespace | None = None
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    annotations: dict[LabelKey, str] = Field(default_factory=dict)


class Job(Model):
    """A VisionRLJob as a user writes it."""

    api_version: Literal["visionrl.dev/v1alpha1"]
    kind: Literal["VisionRLJob"]
    metadata: Metadata
    spec: JobSpec

    @property
    def name(self) -> str:
        return self.metadata.name
