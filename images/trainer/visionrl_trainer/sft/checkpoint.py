"""Where a supervised training is: weights and optimizers, in one file that is whole or absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from visionrl.component import ConfigurationError
from visionrl.durable import fsync
from visionrl_trainer.model.policy import Policy


class SftCheckpoint:
    """The file at ``path``. ``digest`` names the data: a training goes on with what it began with."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self.digest = path, digest

    def save(self, policy: Policy, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
        """Replace the checkpoint in one step."""
        draft = self.path.with_suffix(".draft")
        state = {
            "step": step,
            "data": self.digest,
            "weights": {name: parameter.detach() for name, parameter in policy.trainable()},
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, draft)
        fsync(draft)
        draft.rename(self.path)

    def load(self, policy: Policy, optimizers: Sequence[torch.optim.Optimizer]) -> int:
        """Restore weights and optimizers; returns the step to go on with, 0 where there is no checkpoint.

        Raises :class:`visionrl.component.ConfigurationError` where the data is not what it was.
        """
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, map_location=policy.device, weights_only=True)
        if saved["data"] != self.digest:
            raise ConfigurationError(
                f"the supervised data is not what the first {saved['step']} steps learned from; "
                f"put the files back as they were, or delete {self.path} to start over"
            )
        with torch.no_grad():
            for name, parameter in policy.trainable():
                parameter.copy_(saved["weights"][name])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        return int(saved["step"])
