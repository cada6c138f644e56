"""A file of reinforcement learning (``[algorithm] type = "online"``) as a job."""

from __future__ import annotations

import itertools

from visionrl.reference.conversion import Conversion
from visionrl.reference.shared import adapter, base_model, episode_settings, gpus, labels, whole_vllm

LOSSES = ("gspo", "grpo", "dr_grpo", "dapo", "cispo")


def convert_rl(file: Conversion, name: str) -> None:
    """Put everything that the file says into our document, section by section."""
    _algorithm(file)
    _services(file)
    labels(file, name)
    base_model(file)
    adapter(file, "training.lora", "lora")
    gpus(file)
    whole_vllm(file)
    _rollout(file)
    _batches(file)
    _training(file)
    _rewards(file)
    _evaluation(file)
    _judge(file)
    file.note("smoke", "the reference's local smoke test; here visionrl run runs the whole job on this machine")


def _algorithm(file: Conversion) -> None:
    file.put("spec.algorithm.type", "rl", "algorithm.type")
    file.only("algorithm.method", ("policy_gradient",), "write policy_gradient, or sft with type offline")
    variety = file.text("algorithm.variety")
    if variety is not None and variety not in LOSSES:
        file.refuse("algorithm.variety", f"is {variety!r}; there are {', '.join(LOSSES)}")
    else:
        file.put("spec.algorithm.loss", variety, "algorithm.variety")


def _services(file: Conversion) -> None:
    file.text("services.task_url")
    file.note(
        "services.task_url",
        "not used: a job starts its own task app, from spec.taskApp.image; one that runs already is "
        "spec.taskApp.url, with spec.taskApp.keySecret",
    )
    if file.text("services.judge_url"):
        file.refuse("services.judge_url", _NO_JUDGE)


def _rollout(file: Conversion) -> None:
    file.require("rollout.env_name")
    file.require("rollout.policy_name")
    file.put("spec.rollout.envName", file.text("rollout.env_name"), "rollout.env_name")
    file.put("spec.rollout.policyName", file.text("rollout.policy_name"), "rollout.policy_name")
    concurrent = file.integer("rollout.max_concurrent_rollouts")
    file.put("spec.rollout.maxConcurrent", concurrent, "rollout.max_concurrent_rollouts")
    turns = ("rollout.policy_config.max_llm_calls", "rollout.max_turns", "training.max_turns")
    episode_settings(file, "rollout.env_config", ("rollout.policy_config", "policy"), turns)
    ops = file.texts("rollout.ops")
    if ops and (set(ops) != {"agent", "env"} or any(a == b for a, b in itertools.pairwise(ops))):
        file.refuse("rollout.ops", 'must be ["agent", "env"]: every turn asks the model, then plays its actions')
    file.only(
        "rollout.task_app_origin_rewards_only",
        (True,),
        "rewards come from the task app alone here; write true, or nothing",
    )


def _batches(file: Conversion) -> None:
    """How many episodes an iteration plays, and in which groups."""
    for key in ("training.group_size", "rollout.episodes_per_batch"):
        file.require(key)
    group = file.integer("training.group_size")
    per_batch, batches = file.integer("rollout.episodes_per_batch"), file.integer("rollout.batches_per_step")
    episodes = (per_batch or 0) * (1 if batches is None else batches)
    file.put("spec.training.groupSize", group, "training.group_size")
    if group is not None and group > 0 and per_batch is not None:
        if episodes < group or episodes % group:
            file.refuse(
                "rollout.episodes_per_batch",
                f"episodes_per_batch × batches_per_step is {episodes}, which must be a multiple of training.group_size "
                f"({group}): a group is that many episodes from one start state",
            )
        else:
            note = f"{episodes} episodes an iteration (episodes_per_batch × batches_per_step), in groups of {group}"
            file.put("spec.training.groupsPerIteration", episodes // group, "rollout.episodes_per_batch", note)
    for key in ("training.batch_size", "training.gradient_accumulation_steps", "training.max_accumulated_minibatch"):
        file.integer(key)
        file.note(
            key,
            "not needed: all decisions of an iteration make one update (spec.training.updatesPerIteration), and "
            "spec.training.microBatchSize bounds the memory without changing the gradient",
        )


def _training(file: Conversion) -> None:
    for key in ("training.num_epochs", "training.iterations_per_epoch", "training.learning_rate"):
        file.require(key)
    epochs, each = file.integer("training.num_epochs"), file.integer("training.iterations_per_epoch")
    if epochs is not None and each is not None:
        note = "num_epochs × iterations_per_epoch" if epochs != 1 else ""
        file.put("spec.training.iterations", epochs * each, "training.iterations_per_epoch", note)
    file.put("spec.training.learningRate", file.number("training.learning_rate"), "training.learning_rate")
    file.integer("training.log_interval")
    file.note("training.log_interval", "not needed: every iteration is logged")
    interval, key = file.agreed(file.integer, "training.weight_sync_interval", "training.weight_sync.interval")
    if interval not in (None, 1):
        file.refuse(key, f"is {interval}: every iteration's policy is served here; write 1")
    file.only(
        "training.weight_sync.enable", (True,), "without it the server would never play what was learned; write true"
    )
    targets = file.texts("training.weight_sync.targets")
    if targets is not None and "policy" not in targets:
        file.refuse("training.weight_sync.targets", 'must have "policy", which is what is synchronised here')
    file.only("training.weight_sync.mode", ("direct",), "the server fetches adapters from the trainer; write direct")
    file.only("training.weight_sync.direct", (True,), "the server fetches adapters from the trainer; write true")
    file.integer("training.weight_sync.verify_every_k")
    file.note("training.weight_sync.verify_every_k", "not needed: every version is verified before it plays")
    file.integer("training.async_semaphore_max")
    file.note(
        "training.async_semaphore_max",
        "no effect: rollout.maxConcurrent bounds the episodes in flight, and training.maxStaleness how many versions "
        "rollouts may lag behind (0: in step)",
    )
    file.integer("training.max_images_per_message")
    file.note("training.max_images_per_message", "not needed: a message has one frame")


_FLAT, _NESTED, _ENV = "training.", "training.rewards.", "rollout.env_config.step_rewards."


def _rewards(file: Conversion) -> None:
    enabled, key = file.agreed(
        file.flag, f"{_FLAT}step_rewards_enabled", f"{_NESTED}step_rewards_enabled", f"{_ENV}enabled"
    )
    mode, mode_key = file.agreed(file.text, f"{_FLAT}step_rewards_mode", f"{_NESTED}step_rewards_mode", f"{_ENV}mode")
    strategy, strategy_key = file.agreed(
        file.text, f"{_FLAT}step_rewards_strategy", f"{_NESTED}step_rewards_strategy", f"{_ENV}strategy"
    )
    size, size_key = file.agreed(
        file.number,
        f"{_FLAT}step_rewards_indicator_lambda",
        f"{_NESTED}step_rewards_indicator_lambda",
        f"{_ENV}indicator_lambda",
    )
    beta, beta_key = file.agreed(
        file.number, f"{_FLAT}step_rewards_beta", f"{_NESTED}step_rewards_beta", f"{_ENV}step_beta"
    )
    kind, kind_key = file.agreed(file.text, f"{_FLAT}event_rewards_kind", f"{_NESTED}event_rewards_kind")
    if mode not in (None, "off", "decision_stepwise", "env_sparse"):
        file.refuse(mode_key, f"is {mode!r}; there are off, decision_stepwise and env_sparse")
    if strategy not in (None, "consistent", "per_achievement"):
        file.refuse(strategy_key, f"is {strategy!r}; there are consistent and per_achievement")
        strategy = None
    if beta:
        file.refuse(beta_key, f"is {beta:g}: step rewards do not depend on time here; write 0.0")
    if kind not in (None, "unique"):
        file.refuse(
            kind_key, f"is {kind!r}: an achievement counts when it is unlocked for the first time; write unique"
        )
    if mode == "env_sparse":
        file.note(mode_key, "the event reward alone: +1 for each achievement that is unlocked for the first time")
    active = bool(enabled) and mode == "decision_stepwise"
    chosen = (strategy or "consistent") if active else "off"
    file.put("spec.training.rewards.stepRewards", chosen, mode_key if mode is not None else key)
    if chosen == "consistent":
        file.put("spec.training.rewards.stepLambda", size, size_key)
    elif size:
        file.note(size_key, f"no effect: step rewards are {chosen}")
    _weights(file, chosen)


def _weights(file: Conversion, chosen: str) -> None:
    weights = file.table(_given(file, "step_rewards_weights", "weights"))
    limits = file.table(_given(file, "step_rewards_k_limits", "k_limits"))
    key = _given(file, "step_rewards_weights", "weights")
    if weights and chosen == "per_achievement":
        file.put("spec.training.rewards.weights", dict(weights), key)
    elif weights:
        file.note(key, f"no effect: step rewards are {chosen}")
    if any(limit != 1 for limit in limits.values()):
        file.refuse(
            _given(file, "step_rewards_k_limits", "k_limits"),
            "each achievement counts once, when it is unlocked for the first time; leave the limits out",
        )


def _given(file: Conversion, flat: str, nested: str) -> str:
    """The place at which a table of weights is written."""
    places = (f"{_NESTED}{flat}", f"{_FLAT}{flat}", f"{_ENV}{nested}")
    return next((key for key in places if file.has(key)), places[0])


def _evaluation(file: Conversion) -> None:
    instances, every = file.integer("evaluation.instances"), file.integer("evaluation.every_n_iters")
    seeds = file.integers("evaluation.seeds")
    if seeds is not None:
        if not seeds or seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            file.refuse("evaluation.seeds", "must be consecutive, such as [0, 1, 2]; visionrl eval --seeds takes any")
        elif instances is not None and instances != len(seeds):
            file.refuse("evaluation.instances", f"is {instances}, but there are {len(seeds)} seeds; write one of them")
        else:
            file.put("spec.evaluation.firstSeed", seeds[0], "evaluation.seeds")
            file.put("spec.evaluation.episodes", len(seeds), "evaluation.seeds")
    else:
        file.put("spec.evaluation.episodes", instances, "evaluation.instances")
    note = "evaluations before and after training are made as well"
    file.put("spec.evaluation.everyIterations", every, "evaluation.every_n_iters", note)


_NO_JUDGE = (
    "there is no judge model: rewards come from the environment alone; leave it out, and shape rewards with "
    "[training.rewards]"
)


def _judge(file: Conversion) -> None:
    """A judge that judges nothing is passed over; one that would change rewards is refused."""
    kind = file.text("judge.type")
    if kind not in (None, "env"):
        file.refuse("judge.type", f"is {kind!r}: {_NO_JUDGE}")
    for key in ("judge.enabled", "rubric.enabled", "judge.rubric.enabled"):
        file.only(key, (False,), _NO_JUDGE)
    for key in ("judge.options.event", "judge.options.outcome"):
        file.only(key, (False,), _NO_JUDGE)
    file.number("judge.timeout_s")
    for key in ("judge.timeout_s", *(f"judge.options.{name}" for name in _JUDGE_OPTIONS)):
        file.note(key, "no effect: there is no judge model")
    for key in ("rubric.weights", "rubric.reward_blend", "judge.reward_blend", "judge.rubric.reward_blend"):
        others = [name for name, weight in file.table(key).items() if weight and name != "env"]
        if others:
            file.refuse(key, f"has {', '.join(others)}: {_NO_JUDGE}")
    for name in ("env", "event", "outcome"):
        weight = file.number(f"rubric.{name}")
        if weight and name != "env":
            file.refuse(f"rubric.{name}", _NO_JUDGE)


_JUDGE_OPTIONS = (
    "timeout_s",
    "provider",
    "model",
    "rubric_id",
    "rubric_overrides",
    "tracks",
    "weights",
    "max_concurrency",
)
