"""The specification of a VisionRLJob: one pydantic model that everything else is made from.

The CRD's schema, the printed plan, the configuration that the pods read and the local run all come from
:class:`Job`. Keys are camelCase in files (Kubernetes API conventions) and snake_case in Python; unknown keys and
values of the wrong type are refused. Rules that span several fields are in :mod:`visionrl.checks`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

API_GROUP = "visionrl.dev"
API_VERSION = f"{API_GROUP}/v1alpha1"
KIND = "VisionRLJob"

# Evaluation seeds lie below this bound, training and teacher seeds above it: disjoint by construction.
FIRST_TRAINING_SEED = 1_000_000

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$", examples=["500m", "16Gi"])]
# Longest child name is "<job>-inference" plus the pod's hash; 45 leaves room for every suffix within 63.
JobName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=45)]


class Model(BaseModel):
    """Strict, immutable, camelCase in files; a value that is not declared here is an error."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        strict=True,
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


# --- algorithm, model


class Algorithm(Model):
    """What is optimised, and how advantages are formed."""

    type: Literal["rl", "sft"] = "rl"
    """`rl` samples rollouts and follows the policy gradient; `sft` stops after the supervised warm start."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "gspo"
    """Policy-gradient loss. Token-level ratios: GRPO, Dr.GRPO, DAPO, CISPO; sequence-level ratio: GSPO."""
    advantage: Literal["outcome", "turn", "state_anchored"] = "outcome"
    """`outcome` compares whole episodes of a group, `turn` the return-to-go at the same turn of the group,
    `state_anchored` adds a comparison of decisions taken from the same simulator state (GiGPO)."""
    scale: Literal["group", "batch", "none"] = "group"
    """Standard deviation that advantages are divided by."""
    gamma: Fraction = 1.0
    """Discount per turn of the return-to-go; used by `turn` and `state_anchored`."""
    clip_low: PositiveFloat | None = None
    """Lower clip range ε of the ratio; empty takes the loss's published default."""
    clip_high: PositiveFloat | None = None
    """Upper clip range ε of the ratio; empty takes the loss's published default."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the base model (the same model with the adapter off)."""
    importance_cap: PositiveFloat = 2.0
    """Truncation of the importance ratio between training and serving logprobs (truncated importance sampling)."""


class Lora(Model):
    """Low-rank adapter on the language model's linear layers."""

    r: Annotated[int, Field(ge=1, le=256)] = 16
    """Rank."""
    alpha: PositiveInt = 32
    """Scale numerator: the update is multiplied by alpha / r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input during supervised training. Policy-gradient updates run without it."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names of linear layers, such as q_proj; `all-linear` is every linear of the language model (the vision
    tower is frozen: vLLM would not serve an adapter on it)."""


class TinyModel(Model):
    """Shape of the random-weight Qwen3-VL that is built on first use where `base` is `tiny`."""

    hidden_size: PositiveInt = 64
    """Width of the language model."""
    layers: PositiveInt = 2
    """Layers of the language model."""
    heads: PositiveInt = 4
    """Attention heads of the language model."""
    intermediate_size: PositiveInt = 128
    """Width of the MLP."""
    vision_hidden_size: PositiveInt = 64
    """Width of the vision tower."""
    vision_depth: PositiveInt = 1
    """Layers of the vision tower."""
    spatial_merge_size: Literal[1, 2] = 1
    """Patches (16 px) merged into one visual token along each side: an image of n px has (n / 16 / merge)² tokens."""
    seed: NonNegativeInt = 0
    """Seed of the random weights."""


class PolicyModel(Model):
    """The base model and its adapter."""

    base: Annotated[str, Field(min_length=1)]
    """Model id on the hub, a path that every part can read, or `tiny` (built on first use, see `tiny`)."""
    revision: str | None = None
    """Revision of the hub's model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Weights and computation of server and trainer."""
    supports_vision: bool | None = None
    """Overrides the detection of vision models by their name."""
    tiny: TinyModel | None = None
    """Shape of the tiny model; only with `base: tiny`."""
    lora: Lora = Lora()


# --- the three parts


class Resources(Model):
    """Requests and, where given, limits of the part's container."""

    cpu: Quantity = "1"
    """CPU request."""
    memory: Quantity = "2Gi"
    """Memory request and limit."""
    ephemeral_storage: Quantity | None = None
    """Local disk request and limit."""


class Toleration(Model):
    """A Kubernetes toleration."""

    key: str | None = None
    """Taint key; empty with operator Exists matches every taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether `value` is compared."""
    value: str | None = None
    """Taint value, with operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; empty matches every effect."""


class Gpu(Model):
    """GPUs of a part and the nodes that have them."""

    count: Annotated[int, Field(ge=1, le=16)] = 1
    """GPUs of the pod."""
    products: list[str] = Field(default_factory=lambda: ["NVIDIA-H200"])
    """Accepted values of the node label `product_label`; empty accepts any node."""
    product_label: str = "nvidia.com/gpu.product"
    """Node label that names the product (GPU feature discovery)."""
    resource_name: str = "nvidia.com/gpu"
    """Extended resource that is requested."""
    tolerations: list[Toleration] = Field(default_factory=lambda: [Toleration(key="nvidia.com/gpu")])
    """Tolerations for GPU nodes."""
    runtime_class_name: str | None = None
    """RuntimeClass, where the cluster needs one for GPUs."""


class TaskApp(Model):
    """The environment server."""

    image: str = "visionrl/taskapp:0.1.0"
    """Container image."""
    resources: Resources = Resources()


class ImageLimits(Model):
    """Multi-modal items that one prompt may carry."""

    image: Annotated[int, Field(ge=0, le=64)] = 1
    """Images a prompt."""


class Vllm(Model):
    """vLLM's engine arguments. Those that the job already decides (model, adapters, keys) are not offered."""

    tensor_parallel_size: PositiveInt = 1
    """GPUs that one model copy is split over."""
    max_model_len: Annotated[int, Field(ge=128)] = 4096
    """Longest prompt plus completion, in tokens."""
    limit_mm_per_prompt: ImageLimits = ImageLimits()
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM takes."""
    max_num_seqs: PositiveInt = 64
    """Sequences decoded together."""
    enforce_eager: bool = False
    """Skip CUDA graphs: quicker start, slower decoding."""
    cpu_kv_cache_gib: PositiveInt = 1
    """KV cache of the CPU backend, in GiB; ignored on a GPU."""
    extra_args: list[str] = Field(default_factory=list)
    """Further arguments of the vLLM server, in order; one that the job itself sets is refused."""


class Inference(Model):
    """The vLLM server. Without `gpu` it runs vLLM's CPU backend."""

    image: str = "visionrl/inference:0.1.0"
    """Container image."""
    gpu: Gpu | None = None
    vllm: Vllm = Vllm()
    resources: Resources = Resources(cpu="4", memory="32Gi")
    startup_timeout_seconds: PositiveInt = 1800
    """Time that loading the model may take before the container is restarted."""


class Trainer(Model):
    """The trainer. Without `gpu` it trains on the CPU."""

    image: str = "visionrl/trainer:0.1.0"
    """Container image."""
    gpu: Gpu | None = None
    resources: Resources = Resources(cpu="4", memory="32Gi")


# --- rollout


class EnvSettings(Model):
    """The environment of an episode."""

    image_size: Annotated[int, Field(ge=63, le=1024)] = 288
    """Side of the square frame in pixels. 288 px make a Crafter cell 32 px: one visual token of Qwen3-VL."""
    difficulty: Literal["easy", "normal", "hard"] = "normal"
    """`normal` is stock Crafter."""
    length: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    """Environment steps after which the episode ends."""


class PolicySettings(Model):
    """How the policy turns observations into prompts and answers into actions."""

    use_vision: bool | None = None
    """Send frames; empty detects it from the model's name."""
    image_only_mode: bool = True
    """Send the frame alone, no state as text."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus of evaluation episodes. Training samples the whole distribution: a nucleus biases the ratios."""
    max_tokens: PositiveInt = 512
    """Longest answer of one turn, in tokens."""
    max_llm_calls: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Turns of an episode."""
    max_actions: Annotated[int, Field(ge=1, le=8)] = 5
    """Actions that one tool call may carry."""
    history_turns: Annotated[int, Field(ge=0, le=64)] = 1
    """Former answers that stay in the prompt as the model's own turns (without their frames)."""
    segment_turns: Annotated[int, Field(ge=1, le=64)] = 1
    """Turns that share a prompt: within a segment, frames and answers stay and each prompt continues the one before;
    then the context starts afresh. 1 is one frame a prompt. A segment is trained as one row."""
    system_prompt: str | None = None
    """Replaces the built-in prompt (rules, strategy, tool use)."""
    turn_timeout_s: PositiveFloat = 120.0
    """Deadline of one turn in seconds, retries included; the episode is aborted beyond it."""


class Rollout(Model):
    """Episodes: which environment, which policy, how many at once."""

    env_name: Literal["crafter"] = "crafter"
    """Environment."""
    policy_name: Literal["crafter-react"] = "crafter-react"
    """Policy that talks to the model."""
    max_concurrent: Annotated[int, Field(ge=1, le=4096)] = 8
    """Episodes in flight."""
    max_ops: PositiveInt = 1000
    """Safety bound: model calls plus environment steps of one episode."""
    max_time_s: PositiveFloat = 3600.0
    """Safety bound: wall-clock seconds of one episode."""
    env_config: EnvSettings = EnvSettings()
    policy_config: PolicySettings = PolicySettings()


# --- training


class Rewards(Model):
    """Rewards of the decisions. The event reward is +1 for each achievement unlocked for the first time."""

    step_rewards: Literal["off", "consistent", "per_achievement"] = "off"
    """`consistent`: `step_lambda` for a decision that unlocks anything; `per_achievement`: the sum of `weights`."""
    step_lambda: NonNegativeFloat = 1.0
    """Size of the *consistent* step reward."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight per achievement of *per_achievement*; one that is not named weighs 1."""
    invalid_penalty: NonNegativeFloat = 0.0
    """Subtracted from a decision whose answer is no valid tool call."""


class WarmStart(Model):
    """Supervised steps on a scripted player's episodes, before reinforcement learning."""

    trains: Literal["all", "language_model", "adapter"] = "all"
    """`all` weights or those of the `language_model` (the vision tower stays): the result is the base model that
    adapters are trained on, and is served in place of `model.base`. `adapter`: the base stays, the result is the
    first version of the adapter."""
    episodes: PositiveInt
    """Episodes that the scripted player plays."""
    steps: PositiveInt
    """Optimizer steps."""
    batch_size: PositiveInt = 32
    """Decisions a step."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate (linear warm-up, cosine decay)."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of the matrices and leaves the rest to AdamW."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    perturbation: Fraction = 0.25
    """Mean share of turns whose executed actions are random; the label is always the player's."""
    turns: PositiveInt = 30
    """Turns of a teacher's episode."""


class Guards(Model):
    """Limits at which a run is stopped, with the reason; a limit that is null is not watched."""

    max_mismatch_kl: PositiveFloat | None = Field(default=0.015, alias="maxMismatchKL")
    """KL divergence between serving and training logprobs of one version, nats per token; checked before every
    update."""
    max_invalid_rate: Fraction | None = 0.9
    """Share of answers without a usable tool call, in each of `patience` iterations."""
    min_entropy: NonNegativeFloat | None = None
    """Entropy of the policy, nats per token: not above this in `patience` iterations is a collapse."""
    patience: PositiveInt = 3
    """Iterations in a row that must break a limit."""


class Training(Model):
    """Iterations, batch and optimizer."""

    iterations: PositiveInt
    """Policy updates from rollouts. May be raised while the job runs."""
    groups_per_iteration: PositiveInt = 2
    """Start states sampled for one iteration."""
    group_size: PositiveInt = 8
    """Episodes from one start state."""
    max_resampling: Annotated[int, Field(ge=0, le=10)] = 0
    """Times that groups whose episodes all earned the same are replaced by other start states (dynamic sampling)."""
    learning_rate: PositiveFloat = 5e-5
    """AdamW's learning rate on the adapter."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay on the adapter."""
    updates_per_iteration: PositiveInt = 1
    """Optimizer steps into which an iteration's decisions are split."""
    micro_batch_size: PositiveInt = 64
    """Decisions in one forward and backward pass; bounds memory, leaves the gradient as it is."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient norm clip."""
    max_staleness: Annotated[int, Field(ge=0, le=8)] = 0
    """Versions that rollouts may lag behind training; 0 is in step."""
    checkpoint_every: PositiveInt = 1
    """Iterations between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept on disk."""
    seed: NonNegativeInt = 0
    """Seed of start states, batches and the adapter's initial weights."""
    rewards: Rewards = Rewards()
    guards: Guards = Guards()
    warm_start: WarmStart | None = None


class Evaluation(Model):
    """Episodes on held-out seeds, before, during and after training."""

    first_seed: Annotated[int, Field(ge=0, lt=FIRST_TRAINING_SEED)] = 0
    """First seed; the seeds are consecutive."""
    episodes: NonNegativeInt = 8
    """Number of seeds; 0 switches evaluation off."""
    every_iterations: NonNegativeInt = 0
    """Iterations between evaluations during training; 0 evaluates before and after only."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Sampling temperature; empty takes the policy's."""


# --- storage and operations


class Storage(Model):
    """Volumes. Without claims, the run folder and the model cache live as long as their pods."""

    run_claim: str | None = None
    """Existing PersistentVolumeClaim for the run folder."""
    run_size: Quantity | None = None
    """Size of a claim that the operator makes for the run folder."""
    storage_class_name: str | None = None
    """Storage class of the claim that the operator makes."""
    model_cache_claim: str | None = None
    """Existing claim with model weights, mounted by server and trainer."""


class Placement(Model):
    """Where server and trainer run relative to each other."""

    topology: Literal["Any", "SameNode", "DifferentNodes"] = "Any"
    """Both on one node, on two nodes, or wherever they fit."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the nodes of all three parts must have."""


Component = Literal["taskApp", "inference", "trainer"]


class FailureRule(Model):
    """First rule that matches decides. A rule matches when every condition that it names holds."""

    action: Literal["Fail", "Restart", "RestartIgnoreLimit"]
    """`Fail` ends the job, `Restart` starts another attempt within `maxRestarts`, `RestartIgnoreLimit` does not
    count it."""
    component: Component | None = None
    """Part that failed."""
    exit_codes: list[Annotated[int, Field(ge=0, le=255)]] = Field(default_factory=list)
    """Exit codes of its container."""
    reasons: list[str] = Field(default_factory=list)
    """Reasons of its pod or container, such as OOMKilled, Evicted, Preempted."""


class FailurePolicy(Model):
    """What happens when a part fails."""

    max_restarts: NonNegativeInt = 3
    """Attempts after the first one."""
    backoff_seconds: NonNegativeFloat = 10.0
    """Delay before an attempt; doubles with each one, at most 300 s."""
    rules: Annotated[list[FailureRule], Field(max_length=32)] = Field(default_factory=list)
    """Checked in order. A failure that none matches restarts; one that the cluster caused is not counted."""


class Lifecycle(Model):
    """Deadlines and what is left behind."""

    pre_running_deadline_seconds: PositiveInt | None = None
    """The job fails when the trainer does not run after this time."""
    active_deadline_seconds: PositiveInt | None = None
    """The job fails when it is not complete this long after its start; suspended time does not count."""
    ttl_seconds_after_finished: NonNegativeInt | None = None
    """The job object is deleted this long after its end."""
    cleanup_policy: Literal["DeletePods", "KeepAll"] = "DeletePods"
    """Pods at the end: `DeletePods` frees the GPUs, `KeepAll` leaves server and task app up."""


class EnvVar(Model):
    """An environment variable with a literal value."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Name; those that begin with VISIONRL_ are the operator's."""
    value: str
    """Value."""


class PodPatch(Model):
    """The parts of a pod that a cluster's owner may need to set."""

    labels: dict[str, str] = Field(default_factory=dict)
    """Further labels of the pod."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Further annotations of the pod."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Further node labels that the pod needs."""
    tolerations: list[Toleration] = Field(default_factory=list)
    """Further tolerations."""
    env: list[EnvVar] = Field(default_factory=list)
    """Further environment variables of the container."""
    service_account_name: str | None = None
    """Service account of the pod; its token is not mounted."""
    priority_class_name: str | None = None
    """Priority class of the pod."""
    image_pull_secrets: list[str] = Field(default_factory=list)
    """Names of Secrets for private registries."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the image is pulled; empty takes Kubernetes' default."""


class Overrides(Model):
    """Pod settings by part."""

    task_app: PodPatch = PodPatch()
    inference: PodPatch = PodPatch()
    trainer: PodPatch = PodPatch()


# --- the object


class JobSpec(Model):
    """What the user wants."""

    algorithm: Algorithm = Algorithm()
    model: PolicyModel
    task_app: TaskApp = TaskApp()
    inference: Inference = Inference()
    trainer: Trainer = Trainer()
    rollout: Rollout = Rollout()
    training: Training
    evaluation: Evaluation = Evaluation()
    storage: Storage = Storage()
    placement: Placement = Placement()
    failure_policy: FailurePolicy = FailurePolicy()
    lifecycle: Lifecycle = Lifecycle()
    suspend: bool = False
    """No pods run while true; training goes on from the last checkpoint afterwards."""
    queue_name: str | None = None
    """Kueue LocalQueue that admits the job."""
    overrides: Overrides = Overrides()


class Metadata(Model):
    """The part of Kubernetes' object metadata that a job file may set."""

    name: JobName
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)] | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Job(Model):
    """A VisionRLJob as a user writes it."""

    api_version: Literal["visionrl.dev/v1alpha1"]
    kind: Literal["VisionRLJob"]
    metadata: Metadata
    spec: JobSpec

    @property
    def name(self) -> str:
        return self.metadata.name
