"""A file of an evaluation (``[eval]``) as settings of ``visionrl eval``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from visionrl.documents import Lines
from visionrl.job import Rollout
from visionrl.problems import problems
from visionrl.reference.conversion import Conversion
from visionrl.reference.shared import episode_settings
from visionrl.seeds import parse_seeds

PROVIDERS = {"openai": "https://api.openai.com", "groq": "https://api.groq.com/openai"}
"""Servers that a file names by their providers alone."""


@dataclass(frozen=True)
class EvalFile:
    """What a file asks for; None where it says nothing."""

    rollout: Rollout
    model: str | None = None
    inference_url: str | None = None
    task_app_url: str | None = None
    seeds: tuple[int, ...] | None = None


def convert_eval(data: Mapping[str, Any], lines: Lines) -> tuple[EvalFile, Conversion]:
    """The settings, and the conversion with its notes and problems."""
    file = Conversion(data, lines)
    policy = "eval.policy_config"
    for key, why in (
        ("eval.app_id", "not used: the task app is started here, or named with --task-app"),
        ("eval.trace_format", "not used: traces are kept with --trace-db DIR"),
    ):
        file.text(key)
        file.note(key, why)
    file.flag("eval.return_trace")
    file.note("eval.return_trace", "not used: traces are kept with --trace-db DIR")
    file.put("spec.rollout.envName", file.text("eval.env_name"), "eval.env_name")
    file.put("spec.rollout.policyName", file.text("eval.policy_name"), "eval.policy_name")
    file.put("spec.rollout.maxConcurrent", *file.agreed(file.integer, "eval.concurrency", "eval.parallel_episodes"))
    episode_settings(file, "eval.env_config", (policy, "eval"), (f"{policy}.max_llm_calls", "eval.max_turns"))
    _older_form(file)
    file.notes = [note for note in file.notes if not note.path.endswith("topP")]  # evaluations use it
    model, _ = file.agreed(file.text, "eval.model", f"{policy}.model")
    provider, key = file.agreed(file.text, f"{policy}.provider", "eval.provider")
    known = PROVIDERS.get(provider or "")
    told = f"its server is {known}" if known else "not used: any server with OpenAI's API is named by its inference_url"
    file.note(key, told)
    url, address = file.text(f"{policy}.inference_url") or known, file.text("eval.task_app_url")
    seeds = _seeds(file)
    rollout = Rollout()
    try:
        document = file.document().get("spec", {}).get("rollout", {})
        rollout = Rollout.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        file.problems += map(file.translated, problems(error, Rollout, "spec.rollout"))
    file.problems += file.unknown()
    file.problems.sort(key=lambda problem: file.line(problem.path) or 0)
    return EvalFile(rollout, model, url, address, seeds), file


def _older_form(file: Conversion) -> None:
    """Files that have the policy's settings in ``[eval]``, and a table ``[task]``."""
    for key in ("eval.collect_traces", "eval.trace_db"):
        file.note(key, "not used: traces are kept with --trace-db DIR")
    given = ("eval.max_steps_per_episode", "task.config.max_episode_length")
    lengths = {key: value for key in given if (value := file.integer(key)) is not None}
    if lengths:
        key = min(lengths, key=lambda each: lengths[each])
        file.put("spec.rollout.envConfig.length", lengths[key], key, "the smallest of the limits" * (len(lengths) > 1))
    for key in ("task.name", "task.environment"):
        name = file.text(key)
        if name not in (None, "crafter", "crafter-classic"):
            file.refuse(key, f"is {name!r}; write eval.env_name")
    size = file.integers("task.config.render_size")
    if size is not None and (len(size) != 2 or size[0] != size[1]):
        file.refuse("task.config.render_size", f"is {size}: frames are square; write [64, 64]")
    elif size is not None:
        file.put("spec.rollout.envConfig.imageSize", size[0], "task.config.render_size")


def _seeds(file: Conversion) -> tuple[int, ...] | None:
    """A list of integers, or a text such as "100-199"; else those that a number of episodes and a first seed make."""
    found, count = file.raw("eval.seeds"), file.integer("eval.num_episodes")
    first = file.integer("task.config.seed_start")
    if found is None:
        if count is None:
            return None
        found = f"{first or 0}-{(first or 0) + count - 1}"
    text = ",".join(map(str, found)) if isinstance(found, list) else str(found)
    try:
        seeds = parse_seeds(text)
    except ValueError as error:
        file.refuse("eval.seeds" if file.has("eval.seeds") else "eval.num_episodes", str(error))
        return None
    if count is not None and count != len(seeds):
        file.refuse("eval.num_episodes", f"is {count}, but there are {len(seeds)} seeds; write one of them")
    return seeds
