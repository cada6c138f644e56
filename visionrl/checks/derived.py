"""What follows from several fields of a job: whether it sees, what it plays, which components it needs."""

from __future__ import annotations

import re

from visionrl.job import JobSpec

# Names of models that take images, as published on the hubs and by API providers.
VISION_MODELS = re.compile(
    r"gpt-4o|gpt-4\.1|gpt-4-turbo|gpt-5|claude-3|claude-(sonnet|opus|haiku)|gemini|qwen[\d.]*-?vl|pixtral|llava"
    r"|internvl|phi-[34][\w.]*-(vision|multimodal)|molmo|smolvlm|gemma-?3|llama-3\.2.*vision|llama-4|glm-4[\w.]*v",
    re.IGNORECASE,
)


def takes_images(model: str) -> bool:
    """Whether a model of this name is known to take images."""
    return model == "tiny" or VISION_MODELS.search(model) is not None


def uses_vision(spec: JobSpec) -> bool:
    """Whether episodes send frames: the explicit setting wins, then the model's."""
    explicit = spec.rollout.policy_config.use_vision
    if explicit is not None:
        return explicit
    supported = spec.model.supports_vision
    return takes_images(spec.model.base) if supported is None else supported


def evaluation_seeds(spec: JobSpec) -> range:
    """The held-out seeds."""
    first = spec.evaluation.first_seed
    return range(first, first + spec.evaluation.episodes)


def exports_base(spec: JobSpec) -> bool:
    """Whether the warm start makes a new base model, which the server fetches from the trainer."""
    warm_start = spec.training.warm_start
    return warm_start is not None and warm_start.trains != "adapter"


def runs_inference(spec: JobSpec) -> bool:
    """Whether a server is needed: supervised training alone needs one only to be evaluated."""
    return spec.algorithm.type == "rl" or spec.evaluation.episodes > 0


def runs_task_app(spec: JobSpec) -> bool:
    """Whether the job starts a task app: not one that runs elsewhere already."""
    return spec.task_app.url is None


def undetermined(spec: JobSpec, game: str, deterministic: bool) -> str | None:
    """Why the job cannot play a game that does not promise determinism; None where it can."""
    if spec.algorithm.advantage != "state_anchored" or deterministic:
        return None
    return (
        f"spec.algorithm.advantage: state_anchored compares equal states of a group, and {game} does not promise that "
        "the same seed and actions lead to the same state; use outcome or turn"
    )


def policy_iterations(spec: JobSpec) -> int:
    """Iterations of policy updates; none for supervised training alone."""
    return spec.training.iterations if spec.algorithm.type == "rl" else 0
