"""Checkpoints: everything a run resumes from, complete or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from visionrl.durable import fsync
from visionrl.job import Model
from visionrl_trainer.model.policy import Policy

STATE = "state.json"


class RunState(Model):
    """Where a run is. Replaced, never changed."""

    iteration: int = 0
    """Iterations completed."""
    version: int = 0
    """Number of the policy's version at this point; never used for other weights."""
    episodes: int = 0
    turns: int = 0
    tokens: int = 0
    """Completion tokens trained on."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds by phase, over all attempts."""
    evaluations: list[dict[str, Any]] = Field(default_factory=list)
    """Results in the order they were made; each names its iteration."""
    worst_mismatch: float = 0.0
    """Largest absolute logprob difference between serving and training so far."""
    mean_mismatch: float = 0.0
    """Mean absolute difference of the last iteration."""


class Checkpoints:
    """Numbered directories under ``root``; the highest is the last completed iteration."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root, self.keep = root, keep
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*"):
            shutil.rmtree(leftover)

    def paths(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.root.iterdir() if not path.name.startswith("."))

    def save(self, state: RunState, policy: Policy, optimizer: torch.optim.Optimizer, shuffle: torch.Generator) -> None:
        """Write adapter, optimizer, random state and progress in one atomic step; keep the newest few."""
        draft = self.root / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        policy.save_adapter(draft)
        torch.save({"optimizer": optimizer.state_dict(), "shuffle": shuffle.get_state()}, draft / "optimizer.pt")
        (draft / STATE).write_text(state.model_dump_json())
        for path in draft.iterdir():
            fsync(path)
        target = self.root / f"{state.iteration:06d}"
        shutil.rmtree(target, ignore_errors=True)  # only a repeated save of the same iteration
        draft.rename(target)
        fsync(self.root)
        for old in self.paths()[: -self.keep]:
            shutil.rmtree(old)

    def load(self, policy: Policy, optimizer: torch.optim.Optimizer, shuffle: torch.Generator) -> RunState | None:
        """Restore the newest checkpoint into the arguments; ``None`` where there is none."""
        paths = self.paths()
        if not paths:
            return None
        policy.load_adapter(paths[-1])
        saved = torch.load(paths[-1] / "optimizer.pt", map_location=policy.device, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        shuffle.set_state(saved["shuffle"].cpu())
        return RunState.model_validate_json((paths[-1] / STATE).read_bytes())
