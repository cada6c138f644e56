"""The specification of a VisionRLJob: one pydantic model that everything else is made from.

The CRD's schema, ``visionrl render``, the configuration that pods read and the local run all come from
:class:`Job`. Keys are camelCase in files (Kubernetes API conventions) and snake_case in Python; unknown keys and
values of the wrong type are refused. Rules that span several fields are in :mod:`visionrl.checks`.
"""

from visionrl.job.base import (
    API_GROUP,
    API_VERSION,
    FIRST_TRAINING_SEED,
    INT64_MAX,
    KIND,
    MAX_SECONDS,
    Model,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from visionrl.job.components import (
    DeviceClaim,
    Gpu,
    ImageLimits,
    Inference,
    Resources,
    TaskApp,
    Toleration,
    Trainer,
    Vllm,
)
from visionrl.job.model import LINEAR_LAYERS, Lora, PolicyModel, TinyModel
from visionrl.job.operations import (
    Component,
    EnvSource,
    EnvVar,
    Export,
    FailurePolicy,
    FailureRule,
    Lifecycle,
    Overrides,
    Placement,
    PodPatch,
    Retention,
    SecretKey,
    Storage,
)
from visionrl.job.rollout import DEFAULT_ENVIRONMENT, ENV_NAME, POLICIES, EnvSettings, PolicySettings, Rollout
from visionrl.job.spec import Job, JobSpec, Metadata
from visionrl.job.tracking import Mlflow, Tracking, Trackio, Wandb
from visionrl.job.training import Algorithm, Evaluation, Guards, Rewards, SupervisedData, Training, WarmStart

__all__ = [
    "API_GROUP",
    "API_VERSION",
    "DEFAULT_ENVIRONMENT",
    "ENV_NAME",
    "FIRST_TRAINING_SEED",
    "INT64_MAX",
    "KIND",
    "LINEAR_LAYERS",
    "MAX_SECONDS",
    "POLICIES",
    "Algorithm",
    "Component",
    "DeviceClaim",
    "EnvSettings",
    "EnvSource",
    "EnvVar",
    "Evaluation",
    "Export",
    "FailurePolicy",
    "FailureRule",
    "Gpu",
    "Guards",
    "ImageLimits",
    "Inference",
    "Job",
    "JobSpec",
    "Lifecycle",
    "Lora",
    "Metadata",
    "Mlflow",
    "Model",
    "NonNegativeInt",
    "Overrides",
    "Placement",
    "PodPatch",
    "PolicyModel",
    "PolicySettings",
    "PositiveFloat",
    "PositiveInt",
    "Resources",
    "Retention",
    "Rewards",
    "Rollout",
    "SecretKey",
    "Storage",
    "SupervisedData",
    "TaskApp",
    "TinyModel",
    "Toleration",
    "Tracking",
    "Trackio",
    "Trainer",
    "Training",
    "Vllm",
    "Wandb",
    "WarmStart",
]
