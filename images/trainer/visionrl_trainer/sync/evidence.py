"""Which weights computed these logprobs? Statistics of one sequence under several sets of weights; pure functions.

Logprobs [T] are float64, in nats. Two engines that compute the same weights differ by rounding: 0.011 nats (root mean
square) in bfloat16, 1e-6 in float32, for a base model of true width. An adapter is recognised by what it *moves*, each
side against its own base: against a shared base, the rounding of that base is in both sides of the comparison, and even
an adapter that is ignored would seem to be there by half.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

TELLING = 3.0
"""Times the engines' difference by which two sets of weights must differ to be told apart. Below, the trainer's own
rounding would be taken for what its weights do."""
LARGEST_DIFFERENCE = {"float32": 0.02, "bfloat16": 0.25}
"""Between the engines, by the model's dtype, as a share of the logprobs' own deviation over the sequence. Another model
is at 1.4; measured: 0.07 in bfloat16, below 1e-4 in float32."""


@dataclass(frozen=True)
class Comparison:
    """Served logprobs between those of the expected weights and those of other weights."""

    distance: float
    """Between the two sets of weights, root mean square, nats."""
    noise: float
    """Between the two engines for equal weights, root mean square, nats."""
    slope: float
    """1 where the expected weights were served, 0 where the others were; NaN where they do not differ."""

    @property
    def can_tell(self) -> bool:
        """Whether the weights differ by more than rounding."""
        return self.distance > TELLING * self.noise

    @property
    def is_expected(self) -> bool:
        """Whether what was served is nearer to the expected weights; not for NaN."""
        return self.slope > 0.5


def compare(served_T: Tensor, expected_T: Tensor, other_T: Tensor, noise: float) -> Comparison:
    """Regress what was served on the difference between two expectations; all three relative to their own engine's
    base."""
    difference_T = expected_T - other_T
    slope = ((served_T - other_T) @ difference_T / (difference_T @ difference_T)).item()
    return Comparison(rms(difference_T), noise, slope)


def rms(values_T: Tensor) -> float:
    """Root mean square."""
    return values_T.square().mean().sqrt().item()


def largest_difference(trained_T: Tensor, dtype: str) -> float:
    """Of the served logprobs from the trainer's ``trained_T`` (root mean square, nats) for the same weights."""
    return LARGEST_DIFFERENCE[dtype] * trained_T.std().item()
