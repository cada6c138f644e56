"""The status of a job, and the trainer's report that it is made from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from visionrl.job import Component, Model, NonNegativeInt

ConditionType = Literal[
    "Accepted",
    "Admitted",
    "TaskAppReady",
    "InferenceReady",
    "TrainerRunning",
    "ResultKept",
    "Drifted",
    "Suspended",
    "Complete",
    "Failed",
    "Exported",
]
Phase = Literal[
    "Pending", "Queued", "Starting", "WarmStart", "Running", "Restarting", "Suspended", "Complete", "Failed"
]


class Condition(Model):
    """`metav1.Condition`."""

    type: ConditionType
    """What it is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is true."""
    reason: str
    """CamelCase word."""
    message: str = ""
    """For people."""
    last_transition_time: str
    """RFC 3339, UTC; changes with `status` only."""
    observed_generation: int = 0
    """Generation of the job that it describes."""


class Score(Model):
    """A mean over episodes with its bootstrap interval."""

    mean: float
    """Mean."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    episodes: int
    """Episodes that it is the mean of."""


class EvaluationProgress(Model):
    """Return of an episode on the held-out seeds; in Crafter its unique achievements."""

    before: Score | None = None
    latest: Score | None = None
    latest_iteration: int | None = None
    """Iteration after which `latest` was measured."""
    played: NonNegativeInt | None = None
    """Held-out seeds that an evaluation under way has played; none where none is."""
    seeds: NonNegativeInt | None = None
    """Those that it plays."""


class Progress(Model):
    """Progress of training."""

    iteration: NonNegativeInt = 0
    """Iterations completed."""
    total: NonNegativeInt = 0
    """Iterations of the whole run."""
    episodes: NonNegativeInt = 0
    """Training episodes completed."""
    episodes_per_minute: float | None = None
    """Training episodes per minute, recently."""
    reward: float | None = None
    """Mean return of the last iteration's episodes."""
    evaluation: EvaluationProgress = EvaluationProgress()
    mismatch_kl: float | None = Field(default=None, alias="mismatchKL")
    """KL divergence between serving and training logprobs of the last batch."""
    entropy: float | None = None
    """Of the policy at its answers' tokens, nats, in the last batch."""
    clip_fraction: float | None = None
    """Share of tokens (of answers, for GSPO) whose ratio was clipped in the last updates."""
    ratio_mean: float | None = None
    """Mean over tokens (over answers, for GSPO) of the ratio to the policy before the last updates: near 1."""
    ratio_max: float | None = None
    """Largest such ratio."""
    advantage_std: float | None = None
    """Standard deviation of the last batch's advantages; 0 where there was no learning signal."""
    zero_variance_groups: int | None = None
    """Groups of the last batch whose episodes all have the same return, and so no learning signal."""
    invalid_rate: float | None = None
    """Share of the last batch's answers without a valid tool call."""
    rejected_rate: float | None = None
    """Share of the last batch's answers that could not be trained on and were replayed."""
    masked_rate: float | None = None
    """Share of the last batch's decisions that were left out because serving and training disagree about them."""
    grad_norm: float | None = None
    """Largest gradient norm of the last updates, before clipping."""
    staleness: int | None = None
    """Policy versions that the last batch lagged behind."""
    trainer_idle: float | None = None
    """Share of the last iteration in which the trainer waited for episodes."""
    server_idle: float | None = None
    """Share of the last iteration in which no episode was played."""
    sync_seconds: float | None = None
    """Seconds from publishing the last adapter to its first use by inference."""
    eta: str | None = None
    """Expected completion, RFC 3339."""


class PolicyVersions(Model):
    """Adapter names."""

    trained: str | None = None
    """Last version that training produced."""
    serving: str | None = None
    """Version that passed the canary and serves rollouts."""


TrainerPhase = Literal["Starting", "WarmStart", "WaitingForInference", "Evaluating", "Training", "Complete", "Failed"]


class TrainerReport(Model):
    """The answer of the trainer's `GET /status`."""

    phase: TrainerPhase
    message: str = ""
    """One line for people: what it does or waits for."""
    base_ready: bool = False
    """The base model can be fetched (`GET /base/manifest.json`); always true without a warm start."""
    task_app_ready: bool = False
    """A task app that runs elsewhere has answered."""
    progress: Progress = Progress()
    policy: PolicyVersions = PolicyVersions()


class Attempt(Model):
    """One life of the trainer."""

    number: NonNegativeInt
    """Counts from 0."""
    started: str
    """RFC 3339."""
    ended: str | None = None
    """RFC 3339; empty while it runs."""
    cause: str | None = None
    """Why it ended, e.g. "trainer: exit code 137 (OOMKilled)"; empty while it runs or when it completed."""
    counted: bool = True
    """Whether its failure counts against `maxRestarts`."""
    iteration: NonNegativeInt = 0
    """Iterations of the job that were complete when it ended."""


class ComponentFailure(Model):
    """An end of a component that nobody asked for."""

    component: Component
    """Which component."""
    type: Literal["Rejected", "Disrupted", "Crashed", "Hung"]
    """`Rejected`: the kubelet did not take the pod; `Disrupted`: the cluster took it away; `Hung`: it ran without doing
    its work; `Crashed`: every other end."""
    at: str
    """RFC 3339; of the last one, where `count` is more than 1."""
    cause: str
    """One line, e.g. "inference: exit code 137 (OOMKilled)"."""
    counted: bool
    """Whether it counts against `maxRestarts`."""
    count: NonNegativeInt = 1
    """Failures that this entry stands for."""
    instance: str = ""
    """Pod (its uid), process or attempt that ended."""
    ends: NonNegativeInt = 0
    """Ends of this instance so far."""


class ComponentStatus(Model):
    """The state of one component."""

    name: Component
    """Which component."""
    ready: bool
    """Whether it is ready."""
    restarts: NonNegativeInt = 0
    """How often its container was restarted."""
    node: str | None = None
    """Node of its pod."""
    message: str = ""
    """Why it is not ready."""


class Copy(Model):
    """A copy of the trained policy."""

    to: str
    """Where it lies, as `storage.export` says."""
    digest: str
    """SHA-256 of its manifest, hex: of names, sizes and digests of its files."""
    bytes: NonNegativeInt
    """Size of its files."""


class Result(Model):
    """Where the trained policy lies."""

    claim: str | None = None
    """Claim of the run folder, while it is there."""
    version: str | None = None
    """Name of the adapter, in the run folder's `adapters` folder."""
    export: Literal["Exporting", "Exported", "Failed"] | None = None
    """What became of the copies of `storage.export`; empty where none are asked for."""
    export_job: str | None = None
    """Kubernetes Job that makes them; deleted by hand after a failure, it is made again."""
    message: str = ""
    """What the copies wait for or fail with."""
    copies: list[Copy] = Field(default_factory=list)
    """Copies that are whole."""


class JobStatus(Model):
    """The status subresource."""

    observed_generation: int = 0
    """Generation of the job that this status describes."""
    phase: Phase = "Pending"
    """Derived from the conditions; nothing depends on it."""
    reason: str = ""
    """Why the job is in this state, in one line."""
    conditions: list[Condition] = Field(default_factory=list)
    """One of each type, in the order in which a job reaches them."""
    attempt: NonNegativeInt = 0
    """Current attempt; children of older ones are deleted before it starts."""
    restarts: NonNegativeInt = 0
    """Failures of the trainer that counted, over the whole life of the job."""
    attempts: list[Attempt] = Field(default_factory=list)
    """The last ten."""
    failures: list[ComponentFailure] = Field(default_factory=list)
    """Failures of all components within `failurePolicy.windowSeconds`, oldest first; of more than 16 of one component,
    the oldest are merged."""
    failure_log: str = ""
    """Last lines of the component whose failure failed the job; its pod may be gone."""
    accepted: str = ""
    """The specification that the components run with, as JSON: fields that are fixed keep these values."""
    start_time: str | None = None
    """RFC 3339."""
    completion_time: str | None = None
    """RFC 3339; of success or failure."""
    active_seconds: NonNegativeInt = 0
    """Time not suspended, up to `active_since`."""
    active_since: str | None = None
    """Start of the current unsuspended period."""
    components: list[ComponentStatus] = Field(default_factory=list)
    """The three components."""
    progress: Progress = Progress()
    policy: PolicyVersions = PolicyVersions()
    result: Result | None = None
    """Of a job that has ended."""

    def condition(self, type_: ConditionType) -> Condition | None:
        return next((condition for condition in self.conditions if condition.type == type_), None)

    @property
    def finished(self) -> bool:
        return any(c.type in ("Complete", "Failed") and c.status == "True" for c in self.conditions)
