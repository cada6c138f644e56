"""Checkpoints of supervised training: weights, their average and optimizers."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from visionrl.adapters import ManifestError
from visionrl.component import ConfigurationError
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.state.checkpoints import STATE, Checkpoints, NoWholeCheckpoint

logger = logging.getLogger(__name__)

KEEP = 2
"""The newest, and one to go back to where it is damaged."""
WEIGHTS, AVERAGE, OPTIMIZERS = "weights.safetensors", "average.safetensors", "optimizers.pt"


class SftCheckpoints:
    """Checkpoints under ``root``. ``digest`` identifies the data: a training resumes with the data that it began
    with."""

    def __init__(self, root: Path, digest: str) -> None:
        self.digest = digest
        self.checkpoints = Checkpoints(root, KEEP, _step)

    def save(
        self,
        policy: Policy,
        optimizers: Sequence[torch.optim.Optimizer],
        average: Mapping[str, torch.Tensor],
        step: int,
    ) -> None:
        """Keep weights, their average and optimizers after a step."""

        def fill(folder: Path) -> None:
            save_file({name: parameter.detach() for name, parameter in policy.trainable()}, folder / WEIGHTS)
            if average:
                save_file(dict(average), folder / AVERAGE)
            torch.save([optimizer.state_dict() for optimizer in optimizers], folder / OPTIMIZERS)
            (folder / STATE).write_text(json.dumps({"step": step, "data": self.digest}), encoding="utf-8")

        self.checkpoints.save(f"step-{step:08d}", fill)

    def load(
        self, policy: Policy, optimizers: Sequence[torch.optim.Optimizer], average: Mapping[str, torch.Tensor]
    ) -> int:
        """Restore the newest whole checkpoint; returns the number of steps that are done.

        Raises :class:`visionrl.component.ConfigurationError` if the data has changed.
        """

        def read(folder: Path) -> int:
            step = self._step(folder)
            with safe_open(folder / WEIGHTS, framework="pt") as weights, torch.no_grad():
                for name, parameter in policy.trainable():
                    parameter.copy_(weights.get_tensor(name))
            if average:
                with safe_open(folder / AVERAGE, framework="pt") as averages:
                    for name, tensor in average.items():
                        tensor.copy_(averages.get_tensor(name))
            states = torch.load(folder / OPTIMIZERS, map_location=policy.device, weights_only=True)
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(state)
            return step

        try:
            return self.checkpoints.load(read) or 0
        except NoWholeCheckpoint as error:
            logger.warning("the supervised training starts over: %s", error)
            return 0

    def _step(self, folder: Path) -> int:
        """The number of steps in a checkpoint."""
        try:
            state = json.loads((folder / STATE).read_bytes())
            step, data = int(state["step"]), state["data"]
        except (ValueError, TypeError, KeyError) as error:
            raise ManifestError(f"{folder / STATE}: not the state of a supervised training: {error}") from None
        if data != self.digest:
            raise ConfigurationError(
                f"the supervised data is not what the first {step} steps learned from; put the files back as they "
                f"were, or delete {folder.parent} to start over"
            )
        return step


def _step(name: str) -> int | None:
    """The step of a checkpoint's name."""
    match = re.fullmatch(r"step-([0-9]{8})", name)
    return int(match[1]) if match else None
