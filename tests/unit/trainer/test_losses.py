"""Losses equal their published formulas, written out with loops in float64."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given
from hypothesis import strategies as st

from visionrl.job import Algorithm
from visionrl_trainer.algo.losses import LossBatch, kl_to_reference, policy_loss

LENGTHS = (3, 1, 4)
LONGEST = 8


def toy_batch(seed: int = 0, lengths: tuple[int, ...] = LENGTHS, spread: float = 0.3) -> LossBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal(n: int) -> torch.Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    tokens = sum(lengths)
    old = -normal(tokens).abs()
    return LossBatch(
        logprobs_T=(old + spread * normal(tokens)).requires_grad_(),
        old_logprobs_T=old,
        inference_logprobs_T=old + 0.1 * normal(tokens),
        advantages_N=normal(len(lengths)),
        decision_T=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        decisions=len(lengths),
        tokens=tokens,
        longest=LONGEST,
        reference_logprobs_T=old + 0.2 * normal(tokens),
    )


def gradient(batch: LossBatch) -> torch.Tensor:
    """Of the loss with respect to the logprobs, after the backward pass."""
    found = batch.logprobs_T.grad
    assert found is not None
    return found


def per_row(batch: LossBatch) -> list[tuple[float, list[tuple[float, float]]]]:
    """(advantage, [(ratio, truncated importance weight)]) of each row, in plain numbers."""
    rows = []
    for n, advantage in enumerate(batch.advantages_N.tolist()):
        tokens = [
            (
                math.exp(new - old),
                min(math.exp(old - serving), 2.0),
            )
            for new, old, serving, row in zip(
                batch.logprobs_T.tolist(),
                batch.old_logprobs_T.tolist(),
                batch.inference_logprobs_T.tolist(),
                batch.decision_T.tolist(),
                strict=True,
            )
            if row == n
        ]
        rows.append((advantage, tokens))
    return rows


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


BATCHES = st.builds(
    toy_batch,
    st.integers(0, 10_000),
    st.lists(st.integers(1, LONGEST), min_size=1, max_size=5).map(tuple),
    st.sampled_from([0.0, 0.3, 1.0]),
)


@given(BATCHES)
def test_grpo_is_the_mean_over_answers_of_their_token_means(batch: LossBatch) -> None:
    expected = (
        -sum(sum(w * clipped(r, a, 0.2, 0.2) for r, w in tokens) / len(tokens) for a, tokens in per_row(batch))
        / batch.decisions
    )
    assert policy_loss(Algorithm(loss="grpo"), batch).loss.item() == pytest.approx(expected, abs=1e-12)


@given(BATCHES)
def test_dr_grpo_divides_by_a_constant_length(batch: LossBatch) -> None:
    expected = -sum(w * clipped(r, a, 0.2, 0.2) for a, tokens in per_row(batch) for r, w in tokens)
    expected /= batch.decisions * LONGEST
    assert policy_loss(Algorithm(loss="dr_grpo"), batch).loss.item() == pytest.approx(expected, abs=1e-12)


@given(BATCHES)
def test_dapo_is_the_mean_over_tokens_with_a_higher_upper_clip(batch: LossBatch) -> None:
    expected = -sum(w * clipped(r, a, 0.2, 0.28) for a, tokens in per_row(batch) for r, w in tokens) / batch.tokens
    assert policy_loss(Algorithm(loss="dapo"), batch).loss.item() == pytest.approx(expected, abs=1e-12)


@given(BATCHES)
def test_gspo_has_one_ratio_an_answer_the_geometric_mean_of_its_tokens(batch: LossBatch) -> None:
    expected = 0.0
    for advantage, tokens in per_row(batch):
        ratio = math.prod(r for r, _ in tokens) ** (1 / len(tokens))
        weight = math.prod(w for _, w in tokens) ** (1 / len(tokens))
        expected -= weight * clipped(ratio, advantage, 0.1, 0.1) / batch.decisions
    loss = policy_loss(Algorithm(loss="gspo", clip_low=0.1, clip_high=0.1), batch).loss
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    batch = toy_batch(spread=1.0)
    expected = -sum(
        w * min(r, 1.28) * a * logprob
        for (a, tokens), row in zip(per_row(batch), range(len(LENGTHS)), strict=True)
        for (r, w), logprob in zip(tokens, batch.logprobs_T[batch.decision_T == row].tolist(), strict=True)
    ) / sum(LENGTHS)
    terms = policy_loss(Algorithm(loss="cispo"), batch)
    assert terms.loss.item() == pytest.approx(expected, abs=1e-12)
    terms.loss.backward()
    assert terms.clipped.sum() > 0
    assert (gradient(batch) != 0).all()


def test_grpo_gives_clipped_tokens_no_gradient() -> None:
    batch = toy_batch(spread=1.0)
    terms = policy_loss(Algorithm(loss="grpo"), batch)
    terms.loss.backward()
    assert terms.clipped.sum() > 0
    assert ((gradient(batch) == 0) == (terms.clipped == 1)).all()


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_the_gradient_raises_what_was_better_than_its_peers(loss: str) -> None:
    batch = toy_batch(spread=0.0)
    policy_loss(Algorithm(loss=loss), batch).loss.backward()  # type: ignore[arg-type]
    direction = -gradient(batch).sign()
    assert (direction == batch.advantages_N[batch.decision_T].sign()).all()


@given(st.integers(0, 1000))
def test_the_kl_estimate_is_never_negative_and_zero_at_the_reference(seed: int) -> None:
    batch = toy_batch(seed)
    assert batch.reference_logprobs_T is not None
    assert (kl_to_reference(batch.logprobs_T, batch.reference_logprobs_T) >= 0).all()
    assert (kl_to_reference(batch.logprobs_T, batch.logprobs_T) == 0).all()


@given(BATCHES)
def test_the_kl_term_is_aggregated_as_the_loss_is(batch: LossBatch) -> None:
    """So its weight against the policy gradient does not depend on the lengths of answers."""
    assert batch.reference_logprobs_T is not None
    kl_T = kl_to_reference(batch.logprobs_T.detach(), batch.reference_logprobs_T)
    length_T = torch.bincount(batch.decision_T)[batch.decision_T]
    divisors = {
        "grpo": batch.decisions * length_T,
        "gspo": batch.decisions * length_T,
        "dr_grpo": torch.full_like(length_T, batch.decisions * LONGEST),
        "dapo": torch.full_like(length_T, batch.tokens),
        "cispo": torch.full_like(length_T, batch.tokens),
    }
    for loss, divisor_T in divisors.items():
        without, with_kl = (Algorithm.model_validate({"loss": loss, "klCoefficient": weight}) for weight in (0.0, 0.5))
        term = policy_loss(with_kl, batch).loss - policy_loss(without, batch).loss
        assert term.item() == pytest.approx(0.5 * (kl_T / divisor_T).sum().item(), abs=1e-12)
