"""From the command's arguments to the episodes: policy, environment, seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from visionrl.checks import evaluation_seeds, runs_task_app, uses_vision
from visionrl.documents import DocumentError, parse_toml, read_text
from visionrl.job import DEFAULT_ENVIRONMENT, Job, JobSpec, Rollout
from visionrl.jobfile import JobFileError, load_job
from visionrl.problems import Problem, problems
from visionrl.reference.evaluation import EvalFile, convert_eval
from visionrl.rollout import PolicyConfig, PolicyName, PolicySpec
from visionrl_cli.evaluation import protocol
from visionrl_cli.evaluation.local_policy import LocalPolicy, default_job, open_model, open_run
from visionrl_cli.evaluation.text import EvalError
from visionrl_taskapp.envs.registry import EnvironmentRefused, prepare


@dataclass(frozen=True)
class EvalOptions:
    """What the user asked for. One of `policy`, `model` and `run` is given, or an ``[eval]`` file with a model."""

    policy: PolicyName | None = None
    """`<environment>-<kind>`, or the kind alone: of the environment of `config`."""
    model: str | None = None
    inference_url: str | None = None
    run: Path | None = None
    version: str | None = None
    base: bool = False
    config: Path | None = None
    env: str | None = None
    protocol: Literal["standard"] | None = None
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
    """What is played. A policy that is served here gets its server's address when that runs."""

    job: Job
    policy: PolicySpec
    seeds: tuple[int, ...]
    local: LocalPolicy | None = None

    @property
    def player(self) -> str:
        return self.local.title if self.local else self.policy.config.model or self.policy.policy_name

    def settings(self) -> dict[str, Any]:
        """All that the scores depend on: two evaluations with the same settings measure the same."""
        rollout = self.job.spec.rollout
        return {
            **({} if rollout.env_name == DEFAULT_ENVIRONMENT else {"env_name": rollout.env_name}),
            "env": rollout.env_config.model_dump(),
            "policy_name": self.policy.policy_name,
            "policy": self.policy.config.model_dump(exclude={"inference_url", "banned_token_ids"}),
            "max_ops": rollout.max_ops,
            "max_time_s": rollout.max_time_s,
            "base": self.job.spec.model.base if self.local else None,
            "adapter_sha256": self.local.adapter_sha256 if self.local else None,
        }


def make_plan(options: EvalOptions) -> Plan:
    """Read the named files and combine everything.

    Raises :class:`EvalError`, :class:`visionrl.jobfile.JobFileError`, ``OSError``.
    """
    options = with_eval_file(options)
    _refuse_contradictions(options)
    settings = _settings(options)
    local = _local_policy(options, settings)
    job = local.job if local else default_job()
    if local and not runs_task_app(job.spec):
        raise EvalError(
            f"the task app of {job.name} runs elsewhere ({job.spec.task_app.url}) and cannot reach a model that is "
            "served here; the job's own evaluation plays there"
        )
    if settings:
        chosen = {"rollout": settings.spec.rollout, "evaluation": settings.spec.evaluation}
        job = job.model_copy(update={"spec": job.spec.model_copy(update=chosen)})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"rollout": _rollout(options, job.spec.rollout)})})
    seeds = options.seeds or (protocol.SEEDS if options.protocol else tuple(evaluation_seeds(job.spec)))
    if options.protocol:
        protocol.check_seeds(seeds)
    if not seeds:
        raise EvalError("the job file has no evaluation seeds (evaluation.episodes is 0); name them with --seeds")
    kind = (options.policy or "react").rpartition("-")[2]
    name = f"{job.spec.rollout.env_name}-{kind}"
    return Plan(job, PolicySpec(policy_name=name, config=_policy_config(options, job.spec, local)), seeds, local)


def with_eval_file(options: EvalOptions) -> EvalOptions:
    """The options, completed by those of an ``[eval]`` file at `config`. Raises :class:`JobFileError`."""
    if options.config is None or options.config.suffix != ".toml":
        return options
    try:
        data, lines = parse_toml(read_text(options.config))
    except DocumentError as error:
        raise JobFileError(str(options.config), [Problem("", str(error))], {"": error.line or 0}) from None
    if "eval" not in data:
        return options
    found, conversion = convert_eval(data, lines)
    if conversion.problems:
        raise JobFileError(str(options.config), list(conversion.problems), lines)
    named = options.policy or options.model or options.run
    here = options.policy or options.run or (options.model and Path(options.model).expanduser().exists())
    url = options.inference_url or (None if here else found.inference_url)
    # A task app elsewhere cannot reach a model that is served here, and keeps its traces itself.
    elsewhere = not options.trace_db and bool(options.policy or url)
    return replace(
        options,
        eval_file=found,
        model=options.model or (None if named else found.model),
        inference_url=url,
        task_app=options.task_app or (found.task_app_url if elsewhere else None),
        seeds=options.seeds or found.seeds,
    )


def _settings(options: EvalOptions) -> Job | None:
    """What `config` says."""
    if options.eval_file is not None:
        job = default_job()
        return job.model_copy(update={"spec": job.spec.model_copy(update={"rollout": options.eval_file.rollout})})
    return load_job(options.config) if options.config else None


def _local_policy(options: EvalOptions, settings: Job | None) -> LocalPolicy | None:
    """The policy that is served here, if one is."""
    if options.run:
        return open_run(options.run, options.version, options.base)
    if options.model and not options.inference_url:
        return open_model(options.model, None if options.eval_file else settings)
    return None


def _rollout(options: EvalOptions, rollout: Rollout) -> Rollout:
    """The settings of episodes, under the flags."""
    flags = {"env_name": options.env, "max_concurrent": options.concurrency}
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        found = Rollout.model_validate({**rollout.model_dump(), **given}, by_name=True)
        if not options.task_app:  # another task app has environments of its own
            prepare(found.env_name, found.env_config)
    except EnvironmentRefused as error:
        raise EvalError("\n".join(f"rollout.{problem}" for problem in error.problems)) from None
    except ValidationError as error:
        listed = problems(error, Rollout, by_alias=False)
        raise EvalError("\n".join(f"--{str(problem).replace('env_name', 'env')}" for problem in listed)) from None
    return protocol.with_whole_episodes(found) if options.protocol else found


def _policy_config(options: EvalOptions, spec: JobSpec, local: LocalPolicy | None) -> PolicyConfig:
    """The job's settings, under those of --policy-config, under the flags of their own."""
    settings: dict[str, Any] = spec.rollout.policy_config.model_dump()
    if spec.evaluation.temperature is not None:
        settings["temperature"] = spec.evaluation.temperature
    if local:
        # The task app knows adapters only by name, so it is told here whether they take images.
        settings |= {"model": local.model, "use_vision": uses_vision(spec)}
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


def _is_served_here(options: EvalOptions) -> bool:
    """Whether a run, a folder or a model of the hub plays."""
    model = options.model
    return options.run is not None or (model is not None and ("/" in model or Path(model).exists()))


def _refuse_contradictions(options: EvalOptions) -> None:
    """Arguments that would have no effect are refused, never ignored."""
    wrong = {
        "name what plays: --policy, --model or --run": not (options.policy or options.model or options.run),
        "--inference-url goes with --model": options.inference_url and not options.model,
        "--turns contradicts --protocol standard, which plays whole episodes": options.turns and options.protocol,
        "--version and --base go with --run": (options.version or options.base) and not options.run,
        "--version and --base exclude each other": options.version and options.base,
        f"--temperature has no effect on {options.policy}, which has no model": (
            options.policy and options.temperature is not None
        ),
        f"--control changes the image that a model sees; {options.policy} has no model": (
            options.policy and options.control
        ),
        "a run or model that is served on this machine cannot be reached from a remote task app: "
        "leave out --task-app": options.task_app and not options.inference_url and _is_served_here(options),
        "--trace-db is for the task app that is started here; the one at --task-app keeps its own traces": (
            options.trace_db and options.task_app
        ),
        "--task-app-key-file goes with --task-app": options.task_app_key_file and not options.task_app,
        f"--out {options.out} is a folder; name a file in it": options.out and options.out.is_dir(),
        f"--trace-db {options.trace_db} is a file; name the folder that gets traces.db": (
            options.trace_db and (options.trace_db.is_file() or options.trace_db.suffix == ".db")
        ),
    }
    for message, holds in wrong.items():
        if holds:
            raise EvalError(message)
