"""What leaves advantages and gradients as they are, and what does not: in float64, for every advantage and loss.

Rewards r become a·r + b (a > 0, b the same for every turn of every episode). Episodes of a group are equally long here
unless it is said otherwise: turns after an episode's end earn nothing, so a reward for each turn rewards living on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from visionrl.job import Algorithm
from visionrl_trainer.algo import advantages
from visionrl_trainer.algo.advantages import with_advantages
from visionrl_trainer.algo.losses import LossBatch, policy_loss
from visionrl_trainer.rollout.batch import EpisodeSamples, Group, Sample

Rewards = np.ndarray
LOSSES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
ADVANTAGES = ("outcome", "turn", "state_anchored")
GAMMA = 0.9
WIDE = {"clip_low": 0.3, "clip_high": 0.4}
"""A clip range that decides for some tokens of the batches below and not for others."""

REWARDS = arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(1, 5)), elements=st.integers(-3, 3).map(float))
SCALES = st.floats(0.25, 8)
SHIFTS = st.floats(-4, 4)


def own_states(rewards: Rewards) -> list[list[str]]:
    """Two states a turn, each visited at that turn alone."""
    return [[f"{t}:{g % 2}" for t in range(rewards.shape[1])] for g in range(len(rewards))]


def advantage_of(kind: str, rewards: Rewards, states: list[list[str]] | None = None) -> Rewards:
    functions: dict[str, Callable[[], Rewards]] = {
        "outcome": lambda: advantages.outcome(rewards),
        "turn": lambda: advantages.turn_level(rewards, GAMMA),
        "state_anchored": lambda: advantages.state_anchored(rewards, states or own_states(rewards), GAMMA),
    }
    return functions[kind]()


# --- advantages


@pytest.mark.parametrize("kind", ADVANTAGES)
@given(REWARDS, SCALES, SHIFTS)
def test_an_advantage_grows_with_the_scale_of_rewards_and_ignores_their_shift(
    kind: str, rewards: Rewards, scale: float, shift: float
) -> None:
    found = advantage_of(kind, scale * rewards + shift)
    assert found == pytest.approx(scale * advantage_of(kind, rewards), abs=1e-9)


def test_a_state_that_is_met_at_different_turns_makes_the_shift_matter() -> None:
    """The later visit has fewer turns left, so a reward for each turn is worth less there."""
    states, rewards = [["a", "b"], ["b", "a"]], np.zeros((2, 2))
    assert not advantages.state_anchored(rewards, states, GAMMA).any()
    assert advantages.state_anchored(rewards + 1, states, GAMMA).any()


def test_episodes_of_different_lengths_make_the_shift_matter() -> None:
    """The zeros after an end are no turns: a reward for each turn played is a reward for living on."""
    played = np.array([[1.0, 1.0], [1.0, 0.0]])
    assert advantages.outcome(played)[0, 0] == 0.5
    assert not advantages.outcome(np.zeros((2, 2))).any()


@pytest.mark.parametrize("kind", ADVANTAGES)
@given(REWARDS, st.randoms(use_true_random=False))
def test_the_order_of_a_group_does_not_matter(kind: str, rewards: Rewards, random: Any) -> None:
    order, states = list(range(len(rewards))), own_states(rewards)
    random.shuffle(order)
    found = advantage_of(kind, rewards[order], [states[g] for g in order])
    assert found == pytest.approx(advantage_of(kind, rewards, states)[order], abs=1e-9)


@pytest.mark.parametrize("kind", ADVANTAGES)
@given(REWARDS, st.integers(1, 4))
def test_turns_after_the_end_change_nothing_before_it(kind: str, rewards: Rewards, more: int) -> None:
    padded = np.pad(rewards, ((0, 0), (0, more)))
    states = own_states(rewards)  # an episode's states end with it
    found = advantage_of(kind, padded, states)[:, : rewards.shape[1]]
    assert found == pytest.approx(advantage_of(kind, rewards, states), abs=1e-9)


@pytest.mark.parametrize("kind", ADVANTAGES)
@given(REWARDS)
def test_a_group_played_twice_has_the_same_advantages(kind: str, rewards: Rewards) -> None:
    states = own_states(rewards)
    found = advantage_of(kind, np.concatenate([rewards, rewards]), states + states)
    assert found[: len(rewards)] == pytest.approx(advantage_of(kind, rewards, states), abs=1e-9)


@pytest.mark.parametrize("kind", ADVANTAGES)
@given(REWARDS)
def test_a_group_that_earned_the_same_teaches_nothing(kind: str, rewards: Rewards) -> None:
    alike = np.repeat(rewards[:1], len(rewards), axis=0)
    assert advantage_of(kind, alike) == pytest.approx(0, abs=1e-9)


# --- losses


def batch_of(lengths: list[int], seed: int, spread: float = 0.5, advantages_N: Tensor | None = None) -> LossBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, generator=generator, dtype=torch.float64)

    total = sum(lengths)
    old = -normal(total).abs() - 0.1
    return LossBatch(
        logprobs_T=old + spread * normal(total),
        old_logprobs_T=old,
        inference_logprobs_T=old + 0.2 * spread * normal(total),
        advantages_N=normal(len(lengths)) if advantages_N is None else advantages_N,
        decision_T=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        decisions=len(lengths),
        tokens=total,
        longest=9,
        reference_logprobs_T=old + 0.2 * normal(total),
    )


def gradient(algorithm: Algorithm, batch: LossBatch) -> Tensor:
    logprobs = batch.logprobs_T.detach().clone().requires_grad_()
    policy_loss(algorithm, replace(batch, logprobs_T=logprobs)).loss.backward()
    assert logprobs.grad is not None
    return logprobs.grad


def rows_of(batch: LossBatch, rows: list[int]) -> tuple[LossBatch, Tensor]:
    """These rows in this order, as a part of the same optimizer step, and where their tokens were."""
    places = torch.cat([torch.nonzero(batch.decision_T == row)[:, 0] for row in rows])
    lengths = torch.tensor([int((batch.decision_T == row).sum()) for row in rows])
    assert batch.reference_logprobs_T is not None
    part = replace(
        batch,
        logprobs_T=batch.logprobs_T[places],
        old_logprobs_T=batch.old_logprobs_T[places],
        inference_logprobs_T=batch.inference_logprobs_T[places],
        reference_logprobs_T=batch.reference_logprobs_T[places],
        advantages_N=batch.advantages_N[rows],
        decision_T=torch.arange(len(rows)).repeat_interleave(lengths),
    )
    return part, places


LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)
SEEDS = st.integers(0, 10_000)
each_loss = pytest.mark.parametrize("loss", LOSSES)


def algorithm_of(loss: str, **more: Any) -> Algorithm:
    return Algorithm.model_validate({"loss": loss, **WIDE, **more}, by_name=True)


@each_loss
@given(LENGTHS, SEEDS, st.data())
def test_any_split_into_micro_batches_leaves_the_gradient_as_it_is(
    loss: str, lengths: list[int], seed: int, data: st.DataObject
) -> None:
    """With the KL term, in any order: permuting the rows is such a split."""
    algorithm, batch = algorithm_of(loss, kl_coefficient=0.1), batch_of(lengths, seed)
    order = data.draw(st.permutations(range(len(lengths))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(lengths)))) | {len(lengths)})
    split = torch.zeros_like(batch.logprobs_T)
    for start, end in zip([0, *cuts], cuts, strict=False):
        part, places = rows_of(batch, list(order[start:end]))
        split[places] = gradient(algorithm, part)
    torch.testing.assert_close(split, gradient(algorithm, batch), rtol=0, atol=1e-13)


@each_loss
@given(LENGTHS, SEEDS, SCALES)
def test_the_gradient_grows_with_the_scale_of_the_advantages(
    loss: str, lengths: list[int], seed: int, scale: float
) -> None:
    algorithm, batch = algorithm_of(loss), batch_of(lengths, seed)
    larger = replace(batch, advantages_N=scale * batch.advantages_N)
    torch.testing.assert_close(gradient(algorithm, larger), scale * gradient(algorithm, batch), rtol=1e-12, atol=1e-13)


@each_loss
@given(LENGTHS, SEEDS, st.integers(1, 6))
def test_a_row_without_advantage_has_no_gradient_and_changes_no_others(
    loss: str, lengths: list[int], seed: int, more: int
) -> None:
    """Padding with rows, where the step's normalisers count what they counted."""
    algorithm = algorithm_of(loss)
    padded = batch_of([*lengths, more], seed)
    padded = replace(padded, decisions=len(lengths), tokens=sum(lengths))
    padded.advantages_N[-1] = 0
    alone, _ = rows_of(padded, list(range(len(lengths))))
    found = gradient(algorithm, padded)
    assert not found[-more:].any()
    torch.testing.assert_close(found[:-more], gradient(algorithm, alone), rtol=0, atol=1e-13)


@each_loss
@given(LENGTHS, SEEDS, SHIFTS)
def test_logprobs_matter_by_their_differences(loss: str, lengths: list[int], seed: int, shift: float) -> None:
    """A server and a trainer that both normalise otherwise train the same."""
    algorithm, batch = algorithm_of(loss), batch_of(lengths, seed)
    names = ("logprobs_T", "old_logprobs_T", "inference_logprobs_T")
    shifted = replace(batch, **{name: getattr(batch, name) + shift for name in names})
    torch.testing.assert_close(gradient(algorithm, shifted), gradient(algorithm, batch), rtol=0, atol=1e-12)


@each_loss
@given(LENGTHS, SEEDS)
def test_on_policy_every_loss_is_reinforce_with_its_own_mean(loss: str, lengths: list[int], seed: int) -> None:
    """Ratios and weights are 1: the gradient of a token is −A divided by what the loss takes the mean over. So GRPO
    and GSPO weigh a token of a long answer less; Dr.GRPO, DAPO and CISPO do not."""
    batch = batch_of(lengths, seed, spread=0.0)
    length_T = torch.tensor(lengths)[batch.decision_T]
    mean_over = {
        "grpo": batch.decisions * length_T,
        "gspo": batch.decisions * length_T,
        "dr_grpo": torch.full_like(length_T, batch.decisions * batch.longest),
        "dapo": torch.full_like(length_T, batch.tokens),
        "cispo": torch.full_like(length_T, batch.tokens),
    }
    expected = -batch.advantages_N[batch.decision_T] / mean_over[loss]
    torch.testing.assert_close(gradient(algorithm_of(loss), batch), expected, rtol=1e-12, atol=1e-14)


# --- both: from the rewards of groups to the gradient


def groups_of(rewards: list[Rewards]) -> list[Group]:
    """Groups whose answers have one to three tokens."""

    def samples(turns: int) -> tuple[Sample, ...]:
        return tuple(Sample((1,), (2,) * (1 + t % 3), (0.0,) * (1 + t % 3), (), "m") for t in range(turns))

    return [
        Group(
            seed,
            tuple(
                EpisodeSamples(seed, samples(len(row)), tuple(row.tolist()), tuple(states), 0.0, 0)
                for row, states in zip(group, own_states(group), strict=True)
            ),
        )
        for seed, group in enumerate(rewards)
    ]


def reward_gradient(algorithm: Algorithm, rewards: list[Rewards], seed: int) -> Tensor:
    samples = with_advantages(groups_of(rewards), algorithm)
    values = torch.tensor([sample.advantage for sample in samples], dtype=torch.float64)
    return gradient(algorithm, batch_of([len(sample.completion_ids) for sample in samples], seed, advantages_N=values))


@each_loss
@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("divisor", ["group", "batch", "none"])
@settings(max_examples=25)
@given(st.lists(REWARDS, min_size=1, max_size=3), SEEDS, SCALES, SHIFTS)
def test_shift_and_scale_of_rewards_leave_the_gradient_unless_nothing_divides_by_a_deviation(
    loss: str, kind: str, divisor: str, rewards: list[Rewards], seed: int, scale: float, shift: float
) -> None:
    """``scale: none`` is Dr.GRPO's choice: rewards of twice the size make twice the step."""
    gamma = {} if kind == "outcome" else {"gamma": GAMMA}
    algorithm = algorithm_of(loss, advantage=kind, scale=divisor, **gamma)
    deviations = [advantage_of(kind, group).std() for group in rewards]
    assume(all(deviation == 0 or deviation > 0.05 for deviation in deviations))
    found = reward_gradient(algorithm, [scale * group + shift for group in rewards], seed)
    factor = scale if divisor == "none" else 1.0
    expected = factor * reward_gradient(algorithm, rewards, seed)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(("divisor", "alone"), [("group", True), ("none", True), ("batch", False)])
def test_other_groups_of_a_batch_matter_to_its_deviation_alone(divisor: str, alone: bool) -> None:
    one, other = np.array([[0.0], [1.0]]), np.array([[0.0], [5.0]])
    algorithm = algorithm_of("grpo", scale=divisor)
    together = [sample.advantage for sample in with_advantages(groups_of([one, other]), algorithm)][:2]
    single = [sample.advantage for sample in with_advantages(groups_of([one]), algorithm)]
    assert (together == pytest.approx(single)) == alone
