"""From the command's arguments and the job file to model and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visionrl.component import ConfigurationError
from visionrl.job import Algorithm, Job, JobSpec, Rollout, SupervisedData, Training, WarmStart
from visionrl.jobfile import JobFileError
from visionrl.problems import problems
from visionrl_cli.changes import job_file


@dataclass(frozen=True)
class TrainOptions:
    """What the user asked for."""

    config: Path | None
    data: Path | None
    val: Path | None
    output: Path | None
    settings: Mapping[str, Any]
    """Fields of ``training.warmStart`` that take precedence over those of the job file."""
    changes: Mapping[str, Any]
    """Values by their dotted paths below ``spec`` that take precedence over those of the job file."""
    fresh: bool
    as_json: bool


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    job: Job
    """Only with the sections that supervised training reads."""
    output: Path
    data: SupervisedData

    @property
    def warm_start(self) -> WarmStart:
        assert self.job.spec.training.warm_start is not None
        return self.job.spec.training.warm_start


def make_plan(options: TrainOptions) -> Plan:
    """Raises :class:`ConfigurationError`, or what :func:`visionrl.jobfile.read_job_file` raises."""
    job = job_file(options.config, options.changes, options.data).job
    known = job.spec.training.warm_start
    data = _data(options, known)
    values = {**(known.model_dump() if known else {}), **options.settings, "episodes": None, "data": data}
    try:
        warm_start = WarmStart.model_validate(values, by_alias=False, by_name=True)
    except ValidationError as error:
        listed = list(problems(error, WarmStart, "spec.training.warmStart"))
        raise JobFileError(str(options.config or "visionrl"), listed) from None
    if warm_start.until_loss is not None and data.val is None:
        raise ConfigurationError("spec.training.warmStart.untilLoss is measured on held-out decisions: add --val FILE")
    output = options.output or Path("runs") / f"{job.name}-sft"
    return Plan(job.model_copy(update={"spec": _supervised(job.spec, warm_start)}), output, data)


def _data(options: TrainOptions, known: WarmStart | None) -> SupervisedData:
    """The files named by flags, else those of the job file."""
    if options.data is not None:
        train, val = options.data.absolute(), options.val.absolute() if options.val else None
        return SupervisedData(train=str(train), val=str(val) if val else None)
    if known is None or known.data is None:
        raise ConfigurationError(
            f"--data FILE is needed: {options.config or 'without a job file, nothing'} names no files"
            + (" (its episodes are played by visionrl run)" if known else "")
        )
    return known.data.model_copy(update={"val": str(options.val.absolute())}) if options.val else known.data


def _supervised(spec: JobSpec, warm_start: WarmStart) -> JobSpec:
    """Sections that supervised training does not read have their defaults: whoever changes them can still resume."""
    return JobSpec(
        algorithm=Algorithm(type="sft"),
        model=spec.model,
        rollout=Rollout(env_config=spec.rollout.env_config),
        training=Training(
            iterations=1,
            seed=spec.training.seed,
            micro_batch_tokens=spec.training.micro_batch_tokens,
            micro_batch_size=spec.training.micro_batch_size,
            activation_checkpointing=spec.training.activation_checkpointing,
            warm_start=warm_start,
        ),
    )
