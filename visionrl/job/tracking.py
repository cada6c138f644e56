"""Where a run's numbers go beside the run folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from visionrl.job.base import WITH_A_PORT, Model, ObjectName

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ /-]*$")]


class Trackio(Model):
    """Trackio: a local store in the run folder, or a Space of the hub."""

    project: Name
    """Project."""
    space_id: Name | None = None
    """Space of the hub, such as OWNER/NAME; empty keeps the run in the run folder. Needs HF_TOKEN."""


class Wandb(Model):
    """Weights & Biases."""

    project: Name
    """Project."""
    entity: Name | None = None
    """User or team."""
    mode: Literal["online", "offline"] = "online"
    """`offline` keeps the run in the run folder, for `wandb sync`. `online` needs WANDB_API_KEY."""


class Mlflow(Model):
    """MLflow."""

    experiment: Name
    """Experiment."""
    tracking_uri: Annotated[str, Field(min_length=1, max_length=2048), WITH_A_PORT] | None = None
    """Tracking server or store; empty is a store in the run folder. A server may need MLFLOW_TRACKING_TOKEN."""


class Otlp(Model):
    """OpenTelemetry spans of all components, by OTLP over HTTP."""

    endpoint: Annotated[
        str,
        Field(max_length=512, pattern=r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:[0-9]+)?(/[A-Za-z0-9_./-]*)?$"),
        WITH_A_PORT,
    ]
    """Base URL of the collector, such as http://collector.observability:4318. Keys are no part of it: give them by
    `overrides` in OTEL_EXPORTER_OTLP_HEADERS, from a Secret."""


class Tracking(Model):
    """Trackers that get every iteration's and evaluation's numbers. None of them can end a run."""

    tensorboard: bool = True
    """Event files in the run folder, `tensorboard/`."""
    trackio: Trackio | None = None
    wandb: Wandb | None = None
    mlflow: Mlflow | None = None
    otlp: Otlp | None = None
    secret_ref: ObjectName | None = None
    """Secret whose keys become environment variables of the trainer: WANDB_API_KEY, HF_TOKEN, MLFLOW_TRACKING_TOKEN. On
    this machine, the environment has them."""
