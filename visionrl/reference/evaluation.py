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
    file.put("spec.rollout.maxConcurrent", file.integer("eval.concurrency"), "eval.concurrency")
    episode_settings(file, "eval.env_config", (policy,), (f"{policy}.max_llm_calls", "eval.max_turns"))
    file.notes = [note for note in file.notes if not note.path.endswith("topP")]  # evaluations use it
    model, _ = file.agreed(file.text, "eval.model", f"{policy}.model")
    file.text(f"{policy}.provider")
    file.note(f"{policy}.provider", "not used: any server with OpenAI's API is named by its inference_url")
    url, address = file.text(f"{policy}.inference_url"), file.text("eval.task_app_url")
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


def _seeds(file: Conversion) -> tuple[int, ...] | None:
    """A list of integers, or a text such as "100-199"."""
    found = file.raw("eval.seeds")
    if found is None:
        return None
    text = ",".join(map(str, found)) if isinstance(found, list) else str(found)
    try:
        return parse_seeds(text)
    except ValueError as error:
        file.refuse("eval.seeds", str(error))
        return None
