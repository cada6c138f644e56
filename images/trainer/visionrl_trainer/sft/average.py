"""The moving average of the weights that supervised training keeps.

What an imitator does in states that its own mistakes led to depends on the last steps' noise far more than its loss
does; the average of the weights is free of it (Block et al. 2023, arXiv:2310.11428).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch.optim.swa_utils import get_ema_multi_avg_fn

from visionrl_trainer.model.policy import Policy


class WeightAverage:
    """An exponential moving average of the trained weights, over about 1 / (1 - decay) steps.

    Early steps forget faster, by (1 + n) / (10 + n) after n steps, so that a short training is not an average of its
    initial weights. Without a decay it is the weights themselves.
    """

    def __init__(self, policy: Policy, decay: float | None) -> None:
        self._decay = decay
        self._trained = dict(policy.trainable()) if decay is not None else {}
        self.weights = {name: parameter.detach().clone() for name, parameter in self._trained.items()}
        """By name; what a checkpoint keeps."""

    def add(self, step: int) -> None:
        """Count the weights after a step (from 1)."""
        if self._decay is not None:
            update = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))
            update(list(self.weights.values()), [each.detach() for each in self._trained.values()], step)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """The policy has the average within the block, and its own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self) -> None:
        """The policy has the average from now on."""
        self._swap()

    def _swap(self) -> None:
        """Without a copy: weights and average are the largest tensors that there are."""
        for name, parameter in self._trained.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data
