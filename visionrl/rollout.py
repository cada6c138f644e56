"""The rollout contract: what a client asks of the task app, and the trajectory that it gets.

Field names follow the reference system's HTTP API (snake_case), so that its clients work. What training needs in
addition (exact token ids, logprobs, image hashes, the serving adapter) is on every :class:`Decision`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from visionrl.job import (
    DEFAULT_ENVIRONMENT,
    ENV_NAME,
    POLICIES,
    EnvSettings,
    NonNegativeInt,
    PolicySettings,
    PositiveFloat,
    PositiveInt,
    Rewards,
)

PolicyKind = Literal["react", "scripted", "random", "blind"]
PolicyName = Annotated[str, Field(pattern=f"^{ENV_NAME}-({'|'.join(POLICIES)})$")]
"""`<environment>-<kind>`."""

Seed = Annotated[int, Field(ge=0, le=2**53)]
RunId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:/-]+$")]


class Wire(BaseModel):
    """Strict message: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


# --- request


class PolicyConfig(PolicySettings):
    """The job's policy settings, the model's address, and settings of this call."""

    model: str = ""
    """Model or adapter name for the inference server; empty only for policies without a model."""
    inference_url: str = ""
    """Base URL of an OpenAI-compatible server, with or without `/v1`; `?cid=…` is echoed as correlation id."""
    supports_vision: bool | None = None
    """Overrides the detection by model name, below `use_vision`."""
    banned_token_ids: list[int] = Field(default_factory=list)
    """Tokens that must not be sampled (`logit_bias` −100), such as image placeholders."""
    top_k: int | None = None
    """Number of candidates per token; empty means all."""
    image_control: Literal["none", "grey", "shuffled"] = "none"
    """Control experiment: `grey` sends a grey frame, `shuffled` the frame of another episode."""
    perturbation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Scripted policy only: mean share of turns whose executed actions are random."""
    tool_choice: Literal["auto", "required"] = "auto"
    """`required` enforces a tool call by grammar, which changes the logprobs: not for training."""


class EnvSpec(Wire):
    env_name: Annotated[str, Field(pattern=f"^{ENV_NAME}$")] = DEFAULT_ENVIRONMENT
    config: EnvSettings = EnvSettings()
    seed: Seed = 42


class PolicySpec(Wire):
    policy_name: PolicyName = f"{DEFAULT_ENVIRONMENT}-react"
    config: PolicyConfig = PolicyConfig()

    @property
    def kind(self) -> PolicyKind:
        return cast(PolicyKind, self.policy_name.rpartition("-")[2])


class Record(Wire):
    """What the answer carries."""

    trajectories: bool = True
    """Step records in the reference's form."""
    logprobs: bool = False
    """Token ids and logprobs on every decision (asks the server for them)."""
    images: bool = False
    """The frames of the episode, each once, by hash."""
    messages: bool = False
    """The prompt of every decision, images as `{"type": "image", "sha256": …}`."""
    return_trace: bool = False
    """The session trace inline."""
    trace_format: Literal["compact", "full", "structured"] = "compact"


class Safety(Wire):
    max_ops: PositiveInt = 1000
    """Model calls plus environment steps; an episode that reaches it is truncated, not aborted."""
    max_time_s: PositiveFloat = 3600.0


class RolloutRequest(Wire):
    """Play one episode. A repeated `run_id` with the same request returns the same episode."""

    run_id: RunId
    mode: Literal["rl", "eval"]
    env: EnvSpec = EnvSpec()
    policy: PolicySpec = PolicySpec()
    ops: list[Literal["agent", "env"]] | None = None
    """Alternating operations; the number of "agent" bounds the turns. Empty: `max_llm_calls` turns."""
    record: Record = Record()
    safety: Safety = Safety()
    rewards: Rewards = Rewards()
    training_session_id: str | None = None


# --- response

AbortReason = Literal["turn_timeout", "inference_error", "max_time", "max_ops", "cancelled", "environment_error"]


class RewardSplit(Wire):
    """A decision's reward by source."""

    event: float
    """What the decision added to the episode's return; in Crafter the number of achievements that it unlocked."""
    step: float = 0.0
    """Step reward by the job's strategy."""
    penalty: float = 0.0
    """Subtracted for an invalid answer."""
    env: float = 0.0
    """The environment's own reward, summed over the actions; for information."""

    @property
    def total(self) -> float:
        return self.event + self.step - self.penalty


class Timings(Wire):
    """Milliseconds of one decision."""

    inference_ms: float = 0.0
    decision_ms: float = 0.0
    env_step_ms: float = 0.0
    overhead_ms: float = 0.0


class ToolCall(Wire):
    tool_name: str
    arguments: dict[str, Any]


class Decision(Wire):
    """One turn: the prompt as the model saw it, its answer, and the result."""

    index: NonNegativeInt
    images: list[str]
    """SHA-256 (:func:`visionrl.frames.frame_hash`) of each frame in the prompt, in order."""
    text: str
    """The answer as text, tool call included."""
    tool_calls: list[ToolCall]
    valid: bool
    """Whether the answer was a usable tool call; an invalid one executes the environment's idle action, if any."""
    error: str | None = None
    """Why the answer was not valid."""
    actions: list[str]
    """Executed actions (fewer than requested when the episode ended)."""
    unlocked: list[str]
    """Events of the environment that happened for the first time; Crafter's are its achievements."""
    reward: RewardSplit
    done: bool
    model: str
    """Adapter (or model) that answered."""
    server: str = ""
    """The inference server that answered, another one after each start; empty where it does not name itself."""
    finish_reason: str | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    """Sampled ids, stop token included."""
    logprobs: list[float] | None = None
    """Of the sampled ids, under temperature and banned tokens, natural log; as long as `token_ids`."""
    state_hash: str
    """Hash of the environment's state before the decision."""
    messages: list[dict[str, Any]] | None = None
    label: str | None = None
    """Scripted policy: the answer to imitate (differs from `actions` where the execution was perturbed)."""
    timings: Timings = Timings()


class Step(Wire):
    """One decision in the reference's form."""

    obs: dict[str, Any]
    tool_calls: list[ToolCall]
    reward: float
    done: bool
    truncated: bool
    info: dict[str, Any]


class DecisionSample(Wire):
    decision_index: int
    indicator: int
    """1 where the decision unlocked anything."""
    r_i: float
    """Step reward."""
    base: float
    """Event reward."""
    actions: list[str]


class Trajectory(Wire):
    env_id: str
    policy_id: str
    inference_url: str
    length: int
    """Decisions."""
    steps: list[Step]
    final: dict[str, Any]
    decision_samples: list[DecisionSample]
    decisions: list[Decision]


class Metrics(Wire):
    episode_returns: list[float]
    """Return of the episode; Crafter's is its number of unique achievements."""
    mean_return: float
    num_steps: int
    """Environment steps."""
    num_episodes: int
    outcome_score: float
    """Share of the best return, where the environment has one; else the return."""
    events_score: float
    scores: dict[str, float] = Field(default_factory=dict)
    """The environment's other scores of the episode, by name."""
    details: dict[str, Any]


class RolloutResponse(Wire):
    run_id: str
    trajectories: list[Trajectory]
    metrics: Metrics
    images: dict[str, str] = Field(default_factory=dict)
    """PNG (base64) of every frame that the decisions name, by hash; with `record.images`."""
    tools: list[dict[str, Any]] | None = None
    """The tools offered to the model; with `record.messages`."""
    trace: dict[str, Any] | None = None
    trace_correlation_id: str | None = None
    pipeline_metadata: dict[str, Any] = Field(default_factory=dict)
    aborted: bool = False
    abort_reason: AbortReason | None = None
    abort_message: str | None = None
    ops_executed: int
