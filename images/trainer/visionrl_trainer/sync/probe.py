"""The probe: an adapter with large weights in every kind of module (``q_proj``, ``down_proj``, ...).

What the first updates of a run change is less than bfloat16's rounding, so no test of their versions can show that a
server applies adapters. The probe can: its weights are scaled until each kind of module alone moves the logprobs by
far more than the rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from visionrl.adapters import Version
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.rollout.batch import Sample
from visionrl_trainer.sync.evidence import rms
from visionrl_trainer.sync.publish import AdapterStore

SEED = 20
TOKENS = 64
"""Of the sequence. What a kind of module moves is then known to 2 % where it is eight times the rounding; more tokens
cost a vocabulary's worth of logits each, for both engines."""
SEARCH_TOKENS = 16
"""The last of them, by which scales are found: a factor of two does not matter there."""
NOISE_MULTIPLE = 8.0
"""How far each kind alone shall move the logprobs, in multiples of the engines' difference ..."""
LEAST_SHARE, LARGEST_SHARE = 0.1, 0.5
"""... but at least and at most by these shares of the logprobs' own deviation: a random model's is the limit."""
FIRST_SCALE, LARGEST_SCALE = 1e-2, 100.0
"""Standard deviations of ``lora_B``."""
ENOUGH = 3.0
"""A kind that moves the logprobs by up to this multiple of what it shall is not scaled down."""
SEARCH_PASSES = 12
SATURATED = 1.1
"""A larger scale that moves the logprobs by less than this factor moves them no more."""


@dataclass(frozen=True)
class Probe:
    """A published probe and the trainer's logprobs [T] of the sequence under it."""

    version: Version
    trained_T: Tensor
    without_T: Mapping[str, Tensor]
    """Under the probe without one kind of module, by kind: what a server answers that ignores this kind."""


def sequence(policy: Policy, longest: int) -> list[int]:
    """Random ids without special tokens, the same ones in every run."""
    tokenizer = policy.processor.tokenizer
    special = policy.banned_ids | set(tokenizer.all_special_ids)
    vocabulary = range(min(len(tokenizer), policy.model.config.text_config.vocab_size))
    ids = torch.tensor([token for token in vocabulary if token not in special])
    drawn = torch.randint(len(ids), (min(TOKENS, longest),), generator=torch.Generator().manual_seed(SEED))
    return [int(token) for token in ids[drawn]]


def logprobs(policy: Policy, ids: list[int], first: int = 1) -> Tensor:
    """The trainer's logprobs [len(ids) - first] of the ids from ``first`` on, float64 on the CPU; no token is banned,
    as in the server's logprobs of a prompt."""
    sample = Sample(tuple(ids[:first]), tuple(ids[first:]), (), (), "")
    banned = policy.banned_ids
    policy.ban(())
    try:
        with torch.no_grad():
            return policy.logprobs([sample], {}, 1.0)[0].double().cpu()
    finally:
        policy.ban(banned)


def build(policy: Policy, ids: list[int], base_T: Tensor, noise: float, store: AdapterStore) -> Probe:
    """Scale a probe against the engines' difference ``noise`` and publish it; the policy's adapter is as it was
    afterwards. Raises ``ValueError`` where the probe's weights are not finite."""
    spread = base_T.std().item()
    target = min(max(NOISE_MULTIPLE * noise, LEAST_SHARE * spread), LARGEST_SHARE * spread)
    with _borrowed_adapter(policy) as weights:
        scales: dict[str, float] = {}
        scale = FIRST_SCALE
        for kind in weights.kinds:
            scale = scales[kind] = _scale(policy, weights, ids, base_T, kind, target, scale)
        without_T = {}
        for kind in weights.kinds:
            weights.scale({**scales, kind: 0.0})
            without_T[kind] = logprobs(policy, ids)
        weights.scale(scales)
        return Probe(store.publish(policy, 0), logprobs(policy, ids), without_T)


class _Weights:
    """Normal weights in a policy's adapter: A [r, in] that keeps its input's size, B [out, r] of its kind's scale."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self._drawn: list[tuple[str, Tensor, Tensor]] = []
        """Kind, ``lora_B`` of the policy, and what it is at a scale of 1."""
        for name, parameter in sorted(parameters.items()):
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
            if ".lora_A." in name:
                parameter.copy_(drawn * parameter.shape[1] ** -0.5)
            else:
                self._drawn.append((_kind(name), parameter, drawn))
        self.kinds = sorted({kind for kind, _, _ in self._drawn})

    def scale(self, scales: Mapping[str, float]) -> None:
        """Set the scale of each kind; the others have no effect."""
        for kind, parameter, drawn in self._drawn:
            torch.mul(drawn, scales.get(kind, 0.0), out=parameter)


@contextlib.contextmanager
def _borrowed_adapter(policy: Policy) -> Iterator[_Weights]:
    """The policy's adapter as the probe's; it gets its own weights back at the end."""
    parameters = {name: parameter.detach() for name, parameter in policy.trainable()}
    own = {name: parameter.clone() for name, parameter in parameters.items()}
    try:
        yield _Weights(parameters)
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(own[name])


def _scale(
    policy: Policy, weights: _Weights, ids: list[int], base_T: Tensor, kind: str, target: float, first: float
) -> float:
    """The scale at which one kind alone moves the logprobs by about ``target`` (root mean square), or no more than by
    a smaller one. The search begins at ``first``: kinds differ less among each other than models do."""
    begin = max(1, len(ids) - SEARCH_TOKENS)
    scale, before = first, 0.0
    for _ in range(SEARCH_PASSES):
        weights.scale({kind: scale})
        moved = rms(logprobs(policy, ids, begin) - base_T[begin - 1 :])
        too_little, too_much = moved < target, moved > ENOUGH * target
        saturated = 0 < moved <= SATURATED * before
        if saturated or not (too_little or too_much) or (too_little and scale >= LARGEST_SCALE):
            break
        before = moved if too_little else 0.0
        scale = min(scale * min(max(1.2 * target / max(moved, 1e-9), 1 / 30), 30.0), LARGEST_SCALE)
    return scale


def _kind(name: str) -> str:
    """``q_proj`` of ``...layers.0.self_attn.q_proj.lora_A.weight``."""
    return name.split(".lora_")[0].rpartition(".")[2]
