"""Training without rollouts: a real policy, optimizer and store, and gradients that are a function of the weights."""

from __future__ import annotations

from pathlib import Path

import torch

from visionrl_trainer.algo.optim import adapter_optimizer
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.state.run import RunState, RunStore
from visionrl_trainer.state.runfolder import RunFolder


def step(policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer step with a gradient that depends on the weights."""
    optimizer.zero_grad()
    torch.stack([(parameter - 1).square().sum() for _, parameter in policy.trainable()]).sum().backward()
    optimizer.step()


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for _, parameter in policy.trainable()]).clone()


class TinyRun:
    """A run whose iteration is one optimizer step and one draw of the batches' order."""

    def __init__(self, root: Path, policy: Policy, keep_checkpoints: int = 2) -> None:
        self.policy, self.folder = policy, RunFolder(root)
        self.store = RunStore(self.folder, "crafter", keep_checkpoints)
        self.optimizer = adapter_optimizer(policy.trainable(), 1e-2, 0.0)
        self.shuffle = torch.Generator().manual_seed(5)
        self.state = self.store.resume(policy, self.optimizer, self.shuffle) or self.publish(0)

    def publish(self, iteration: int) -> RunState:
        return RunState(version=self.store.publish(self.policy).name, iteration=iteration)

    def iterate(self, checkpoint: bool = True, playing: str = "") -> None:
        step(self.policy, self.optimizer)
        torch.randperm(10, generator=self.shuffle)
        self.state = self.publish(self.state.iteration + 1)
        if checkpoint:
            self.checkpoint()
        self.store.prune({self.state.version, playing})

    def checkpoint(self) -> None:
        if snapshot := self.store.snapshot(self.state, self.policy, self.optimizer, self.shuffle):
            self.store.checkpoint(snapshot)

    def checkpointed(self) -> list[Path]:
        return [self.folder.checkpoints / name for name in self.store.checkpoints.names()]

    def published(self) -> list[int]:
        return [version.number for version in self.store.adapters.versions()]
