"""Algorithm, training data, optimizer, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from visionrl.job.base import (
    FIRST_TRAINING_SEED,
    FilePath,
    Fraction,
    Model,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)


class Algorithm(Model):
    """The objective and its advantages."""

    type: Literal["rl", "sft"] = "rl"
    """`rl` samples rollouts and follows the policy gradient; `sft` stops after the supervised warm start."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "gspo"
    """Policy-gradient loss. Token-level ratios: GRPO, Dr.GRPO, DAPO, CISPO; sequence-level ratio: GSPO."""
    advantage: Literal["outcome", "turn", "state_anchored"] = "outcome"
    """`outcome` compares whole episodes of a group, `turn` the return-to-go at the same turn of the group,
    `state_anchored` adds a comparison of decisions taken from the same simulator state (GiGPO)."""
    scale: Literal["group", "batch", "none"] = "group"
    """Whose standard deviation advantages are divided by."""
    gamma: Fraction = 1.0
    """Discount per turn of the return-to-go; used by `turn` and `state_anchored`."""
    clip_low: PositiveFloat | None = None
    """Lower clip range ε of the ratio; empty takes the loss's published default."""
    clip_high: PositiveFloat | None = None
    """Upper clip range ε of the ratio; empty takes the loss's published default."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the policy that reinforcement learning begins with: the base model, or the adapter
    after a warm start that trains one."""
    importance_cap: PositiveFloat = 2.0
    """Truncation of the importance ratio between training and serving logprobs (truncated importance sampling)."""


class Rewards(Model):
    """Rewards of the decisions. The event reward is +1 for each achievement unlocked for the first time."""

    step_rewards: Literal["off", "consistent", "per_achievement"] = "off"
    """`consistent`: `step_lambda` for a decision that unlocks anything; `per_achievement`: the sum of `weights`."""
    step_lambda: NonNegativeFloat = 1.0
    """Size of the *consistent* step reward."""
    weights: dict[str, NonNegativeFloat] = Field(default_factory=dict)
    """Weight per achievement of *per_achievement*; one that is not named weighs 1."""
    invalid_penalty: NonNegativeFloat = 0.0
    """Subtracted from a decision whose answer is not a valid tool call."""


class SupervisedData(Model):
    """Files of supervised data, one JSON object per line, as `visionrl filter` writes them.

    Paths as the trainer sees them. In a cluster they are absolute, on a claim that its pod mounts:
    /var/cache/visionrl is `storage.modelCacheClaim`, /var/lib/visionrl/run is `storage.runClaim`. On this machine,
    relative paths start at the job file's folder.
    """

    train: FilePath
    """Training data."""
    val: FilePath | None = None
    """Validation data; empty measures no validation loss."""


class WarmStart(Model):
    """Supervised steps before reinforcement learning: on episodes of a player, or on data of files."""

    trains: Literal["all", "language_model", "adapter"] = "all"
    """`all` weights or those of the `language_model` (the vision tower stays): the result is the base model that
    adapters are trained on, and is served in place of `model.base`. `adapter`: the base stays, the result is the
    first version of the adapter."""
    player: Literal["scripted", "mixture", "random"] = "scripted"
    """Whose answers are imitated: those of the environment's player (`scripted`), what was executed where some of its
    turns are random (`mixture`, a weak teacher), or random calls (`random`: the tool's format and nothing else)."""
    episodes: PositiveInt | None = None
    """Episodes that the player plays; required unless `data` names files."""
    data: SupervisedData | None = None
    steps: PositiveInt
    """Optimizer steps, at most if `untilLoss` is set."""
    until_loss: PositiveFloat | None = None
    """Loss on held-out decisions, in nats per decision, at which training ends before all `steps`; it is measured as
    often as a tenth of the time allows. Empty: all steps."""
    batch_size: PositiveInt = 32
    """Decisions per step."""
    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate (linear warm-up, cosine decay)."""
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay a step of a moving average of the trained weights, which is what is kept and validated: 0.99 averages over
    about 100 steps. What an imitator does in states that its mistakes led to depends on the noise of its last steps,
    which an average does not have. It takes the trained weights' memory once more. Empty: the last step's weights."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of matrices and uses AdamW for the rest."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    perturbation: Fraction = 0.25
    """Mean share of turns of `episodes` whose executed actions are random. The player's answer is imitated there all
    the same, but with player `mixture`."""
    turns: PositiveInt = 30
    """Turns of each of `episodes`."""


class Guards(Model):
    """Limits at which a run is stopped, with the reason; a null limit is not checked."""

    max_mismatch_kl: PositiveFloat | None = Field(default=0.015, alias="maxMismatchKL")
    """KL divergence between serving and training logprobs of one version, nats per token, in bfloat16; a hundredth of
    it is the limit in float32. Checked before every update."""
    max_rejected_rate: Fraction | None = 0.5
    """Share of an iteration's answers that cannot be trained on, and share of its decisions that are left out because
    serving and training disagree about them; checked before every update."""
    max_invalid_rate: Fraction | None = 0.9
    """Share of answers without a usable tool call, in each of `patience` iterations."""
    min_entropy: NonNegativeFloat | None = None
    """Entropy of the policy, nats per token; the run stops when it is at or below this in `patience` iterations."""
    patience: PositiveInt = 3
    """Iterations in a row that must exceed a limit."""


class Training(Model):
    """Iterations, batch and optimizer."""

    iterations: PositiveInt
    """Policy updates from rollouts. May be raised while the job runs."""
    groups_per_iteration: PositiveInt = 2
    """Start states sampled for one iteration."""
    group_size: PositiveInt = 8
    """Episodes from one start state."""
    max_resampling: Annotated[int, Field(ge=0, le=10)] = 0
    """How often groups of equal returns are replaced by groups of other start states (dynamic sampling)."""
    learning_rate: PositiveFloat = 5e-5
    """AdamW's learning rate on the adapter."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay on the adapter."""
    updates_per_iteration: PositiveInt = 1
    """Optimizer steps per iteration; its decisions are split over them."""
    micro_batch_tokens: PositiveInt | None = None
    """Tokens, prompt and completion, in one forward and backward pass; limits memory and does not change the
    gradient. Empty: 16384 on a GPU, 4096 without one."""
    micro_batch_size: PositiveInt | None = None
    """Decisions in one forward and backward pass at most; empty leaves it to `microBatchTokens`."""
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Whether decoder layers are computed again in the backward pass instead of keeping what it needs: less memory, a
    third more time. `auto` does so where memory does not suffice."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient norm clip."""
    max_staleness: Annotated[int, Field(ge=0, le=8)] = 0
    """Policy versions that rollouts may lag behind training; 0 is synchronous."""
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
    """Evaluation on held-out seeds, before, during and after training. It is played beside the training."""

    first_seed: Annotated[int, Field(ge=0, lt=FIRST_TRAINING_SEED)] = 0
    """First seed; the seeds are consecutive."""
    episodes: NonNegativeInt = 8
    """Number of seeds; 0 switches evaluation off."""
    every_iterations: NonNegativeInt = 0
    """Iterations between evaluations during training; 0 evaluates before and after only."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Sampling temperature; empty takes the policy's."""
