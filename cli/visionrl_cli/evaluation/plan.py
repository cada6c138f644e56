"""From the command's arguments to the episodes: policy, environment, seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from visionrl.checks import evaluation_seeds, uses_vision
from visionrl.documents import DocumentError, parse_toml, read_text
from visionrl.job import Job, JobSpec
from visionrl.jobfile import load_job
from visionrl.problems import located, problems
from visionrl.reference.evaluation import EvalFile, convert_eval
from visionrl.rollout import MODEL_POLICY, PolicyConfig, PolicyName, PolicySpec
from visionrl_cli.evaluation.run_folder import LocalRun, open_run
from visionrl_cli.evaluation.text import EvalError

DEFAULT_JOB: dict[str, Any] = {
    "apiVersion": "visionrl.dev/v1alpha1",
    "kind": "VisionRLJob",
    "metadata": {"name": "evaluation"},
    "spec": {"model": {"base": "tiny"}, "training": {"iterations": 1}},
}
"""Without a file: a job file's defaults. Its model is not used."""


@dataclass(frozen=True)
class EvalOptions:
    """What the user asked for. Exactly one of `policy`, `model` and `run` is given."""

    policy: PolicyName | None = None
    model: str | None = None
    inference_url: str | None = None
    run: Path | None = None
    version: str | None = None
    base: bool = False
    config: Path | None = None
    seeds: tuple[int, ...] | None = None
    turns: int | None = None
    temperature: float | None = None
    concurrency: int | None = None
    control: Literal["grey", "shuffled"] | None = None
    policy_config: dict[str, Any] | None = None
    task_app: str | None = None
    task_app_key_file: Path | None = None
    trace_db: Path | None = None
    out: Path | None = None
    against: Path | None = None
    as_json: bool = False
    eval_file: EvalFile | None = None
    """What `config` says, where it is a file of the reference system's evaluations."""


@dataclass(frozen=True)
class Plan:
    """What is played. The policy of a local run gets its server's address when that runs."""

    job: Job
    policy: PolicySpec
    seeds: tuple[int, ...]
    run: LocalRun | None = None

    @property
    def player(self) -> str:
        return self.policy.config.model or self.policy.policy_name

    def settings(self) -> dict[str, Any]:
        """All that the scores depend on: two evaluations with the same settings measure the same."""
        rollout = self.job.spec.rollout
        return {
            "env": rollout.env_config.model_dump(),
            "policy_name": self.policy.policy_name,
            "policy": self.policy.config.model_dump(exclude={"inference_url", "banned_token_ids"}),
            "max_ops": rollout.max_ops,
            "max_time_s": rollout.max_time_s,
            "adapter_sha256": self.run.adapter_sha256 if self.run else None,
        }


def make_plan(options: EvalOptions) -> Plan:
    """Read the named files and combine everything.

    Raises :class:`EvalError`, :class:`visionrl.jobfile.JobFileError`, ``OSError``.
    """
    options = with_eval_file(options)
    _refuse_contradictions(options)
    run = open_run(options.run, options.version, options.base) if options.run else None
    job = run.job if run else Job.model_validate(DEFAULT_JOB)
    if options.config:
        configured = _configured(options.config, options.eval_file)
        job = job.model_copy(update={"spec": job.spec.model_copy(update=configured)})
    if options.concurrency:
        rollout = job.spec.rollout.model_copy(update={"max_concurrent": options.concurrency})
        job = job.model_copy(update={"spec": job.spec.model_copy(update={"rollout": rollout})})
    seeds = options.seeds or tuple(evaluation_seeds(job.spec))
    if not seeds:
        raise EvalError("the job file has no evaluation seeds (evaluation.episodes is 0); name them with --seeds")
    policy = PolicySpec(policy_name=options.policy or MODEL_POLICY, config=_policy_config(options, job.spec, run))
    return Plan(job, policy, seeds, run)


def with_eval_file(options: EvalOptions) -> EvalOptions:
    """The options, completed by those of an ``[eval]`` file at `config`. Raises :class:`EvalError`."""
    if options.config is None or options.config.suffix != ".toml":
        return options
    try:
        data, lines = parse_toml(read_text(options.config))
    except DocumentError as error:
        where = f"{options.config}:{error.line}" if error.line else str(options.config)
        raise EvalError(f"{where}: {error}") from None
    if "eval" not in data:
        return options
    found, conversion = convert_eval(data, lines)
    if conversion.problems:
        raise EvalError("\n".join(located(each, str(options.config), lines) for each in conversion.problems))
    plays = options.policy or options.model or options.run
    return replace(
        options,
        eval_file=found,
        model=options.model or (None if plays else found.model),
        inference_url=options.inference_url or (None if options.policy or options.run else found.inference_url),
        task_app=options.task_app or (None if options.run or options.trace_db else found.task_app_url),
        seeds=options.seeds or found.seeds,
    )


def _configured(config: Path, file: EvalFile | None) -> dict[str, Any]:
    """The sections of a job that an evaluation reads."""
    if file is not None:
        return {"rollout": file.rollout}
    spec = load_job(config).spec
    return {"rollout": spec.rollout, "evaluation": spec.evaluation}


def _policy_config(options: EvalOptions, spec: JobSpec, run: LocalRun | None) -> PolicyConfig:
    """The job's settings, under those of --policy-config, under the flags of their own."""
    settings: dict[str, Any] = spec.rollout.policy_config.model_dump()
    if spec.evaluation.temperature is not None:
        settings["temperature"] = spec.evaluation.temperature
    if run:
        # The task app knows adapters only by name, so it is told here whether they take images.
        settings |= {"model": run.model, "use_vision": uses_vision(spec)}
    elif options.model:
        settings |= {"model": options.model, "inference_url": options.inference_url}
    settings |= given_settings(options.policy_config or {})
    flags = {
        "max_llm_calls": options.turns,
        "temperature": options.temperature,
        "image_control": options.control,
    }
    settings |= {name: value for name, value in flags.items() if value is not None}
    try:
        return PolicyConfig.model_validate(settings)
    except ValidationError as error:
        raise EvalError("\n".join(str(problem) for problem in problems(error, PolicyConfig, by_alias=False))) from None


def given_settings(data: dict[str, Any]) -> dict[str, Any]:
    """Checked settings of --policy-config by their names in Python. Raises :class:`EvalError`."""
    for name, flag in (("model", "--model"), ("inference_url", "--inference-url"), ("inferenceUrl", "--inference-url")):
        if name in data:
            raise EvalError(f"--policy-config: {name}: say it with {flag}")
    try:
        settings = PolicyConfig.model_validate(data)
    except ValidationError as error:
        listed = problems(error, PolicyConfig, by_alias=False)
        raise EvalError("\n".join(f"--policy-config: {problem}" for problem in listed)) from None
    return settings.model_dump(include=settings.model_fields_set)


def _refuse_contradictions(options: EvalOptions) -> None:
    """Arguments that would have no effect are refused, never ignored."""
    wrong = {
        "name what plays: --policy, --model or --run": not (options.policy or options.model or options.run),
        "--model needs --inference-url, the base URL of its server": options.model and not options.inference_url,
        "--inference-url goes with --model": options.inference_url and not options.model,
        "--version and --base go with --run": (options.version or options.base) and not options.run,
        "--version and --base exclude each other": options.version and options.base,
        f"--temperature has no effect on {options.policy}, which has no model": (
            options.policy and options.temperature is not None
        ),
        f"--control changes the image that a model sees; {options.policy} has no model": (
            options.policy and options.control
        ),
        "--run starts its own inference server on this machine, which a remote task app cannot reach: "
        "leave out --task-app": options.run and options.task_app,
        "--trace-db is for the task app that is started here; the one at --task-app keeps its own traces": (
            options.trace_db and options.task_app
        ),
        "--task-app-key-file goes with --task-app": options.task_app_key_file and not options.task_app,
        f"--out {options.out} is a folder; name a file in it": options.out and options.out.is_dir(),
        f"--trace-db {options.trace_db} is a file; name the folder that gets traces.db": (
            options.trace_db and options.trace_db.is_file()
        ),
    }
    for message, holds in wrong.items():
        if holds:
            raise EvalError(message)
