"""A run's versions, checkpoints and evaluations: one owner publishes, saves, prunes and resumes them.

A checkpoint has the name of a published version, the float32 weights of which the version is the rounded copy that is
served, and optimizer, random state and progress. A version is kept while a checkpoint needs it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from visionrl.adapters import ManifestError, Version, read_manifest
from visionrl.component import ConfigurationError
from visionrl.job import Model
from visionrl.versions import validate_known
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.state.checkpoints import STATE, Checkpoints
from visionrl_trainer.state.runfolder import RunFolder
from visionrl_trainer.sync.publish import AdapterStore

logger = logging.getLogger(__name__)

OPTIMIZER = "optimizer.pt"


class Evaluated(Model):
    """A version that plays the held-out seeds, and the iterations that it has learned."""

    version: str
    iteration: int


class RunState(Model):
    """Progress of a run. Replaced, never changed."""

    version: str
    """Name of the current policy version."""
    reference: str | None = None
    """Name of the version that the KL term is measured against; ``None`` for the base model."""
    iteration: int = 0
    """Iterations completed. Start states are a function of it and of the job's seed."""
    evaluated: Evaluated | None = None
    """Of the evaluation that was begun last; its result is among the run's evaluations once it is complete."""
    episodes: int = 0
    turns: int = 0
    tokens: int = 0
    """Completion tokens trained on."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Wall-clock seconds by phase, over all attempts."""
    worst_mismatch: float = 0.0
    """Largest absolute logprob difference between serving and training so far."""
    mean_mismatch: float = 0.0
    """Mean absolute difference of the last iteration."""

    @property
    def versions(self) -> set[str]:
        """Those that it names."""
        found = {self.version}
        if self.reference is not None:
            found.add(self.reference)
        if self.evaluated is not None:
            found.add(self.evaluated.version)
        return found


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is made of: copies in the CPU's memory, so that training goes on while they are written."""

    state: RunState
    saved: dict[str, Any]
    """Of :data:`OPTIMIZER`."""


class RunStore:
    """The files that a run resumes from, and the versions that it publishes."""

    def __init__(self, folder: RunFolder, job: str, keep_checkpoints: int) -> None:
        self.adapters = AdapterStore(folder.adapters, job)
        self.checkpoints = Checkpoints(folder.checkpoints, keep_checkpoints, self._number)
        self.metrics, self.evaluations = folder.metrics, folder.evaluations

    def resume(self, policy: Policy, optimizer: torch.optim.Optimizer, shuffle: torch.Generator) -> RunState | None:
        """Restore the newest undamaged checkpoint into the arguments; ``None`` if there are no checkpoints. Metrics and
        evaluations of later iterations are dropped: those iterations are repeated.

        Raises :class:`visionrl_trainer.state.checkpoints.NoWholeCheckpoint` if all are damaged.
        """

        def read(folder: Path) -> RunState:
            state = _read_state(folder / STATE)
            self._whole_adapter(state.version)
            saved = torch.load(folder / OPTIMIZER, map_location=policy.device, weights_only=True)
            policy.set_adapter_weights(saved["adapter"])
            optimizer.load_state_dict(saved["optimizer"])
            shuffle.set_state(saved["shuffle"].cpu())
            return state

        state = self.checkpoints.load(read)
        for records in (self.metrics, self.evaluations):
            records.rewind(state.iteration if state else 0)
        return state

    def reference(self, state: RunState) -> Path:
        """The folder of the state's reference. Raises :class:`ConfigurationError` if it is missing or damaged."""
        assert state.reference is not None
        try:
            return self._whole_adapter(state.reference)
        except (OSError, ManifestError) as error:
            raise ConfigurationError(
                f"{state.reference}, the adapter after the warm start, with which algorithm.klCoefficient compares, "
                f"cannot be read: {error}; start over with an empty run folder (visionrl run --fresh)"
            ) from None

    def unfinished_evaluation(self, state: RunState) -> Evaluated | None:
        """What was begun and has no result; ``None`` also where its version is damaged."""
        evaluated = state.evaluated
        if evaluated is None or evaluated.iteration in self.evaluations.indices():
            return None
        try:
            self._whole_adapter(evaluated.version)
        except (OSError, ManifestError) as error:
            logger.warning("the evaluation of %s is left out, it cannot be read: %s", evaluated.version, error)
            return None
        return evaluated

    def publish(self, policy: Policy) -> Version:
        """Publish the current policy, under a number that this run has not used."""
        known = {version.number for version in self.adapters.versions()} | self._checkpointed().keys()
        return self.adapters.publish(policy, max(known, default=-1) + 1)

    def snapshot(
        self, state: RunState, policy: Policy, optimizer: torch.optim.Optimizer, shuffle: torch.Generator
    ) -> Snapshot | None:
        """What to make a checkpoint of, for a state whose version is published; ``None`` if there is one already."""
        if state.version in self.checkpoints.names():
            return None
        weights = {name: weight.cpu() for name, weight in policy.adapter_weights().items()}
        saved = {"adapter": weights, "optimizer": _copied(optimizer.state_dict()), "shuffle": shuffle.get_state()}
        return Snapshot(state, saved)

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Make a checkpoint."""

        def fill(folder: Path) -> None:
            torch.save(snapshot.saved, folder / OPTIMIZER)
            (folder / STATE).write_text(snapshot.state.model_dump_json(by_alias=True), encoding="utf-8")

        self.checkpoints.save(snapshot.state.version, fill)

    def prune(self, in_use: Iterable[str]) -> None:
        """Delete the versions that are neither in use nor a checkpoint's. The newest is kept as well, so that its
        number is not used again."""
        self.adapters.prune({*in_use, *self._checkpointed().values()})

    def _number(self, name: str) -> int | None:
        """The version number in a checkpoint's name."""
        version = self.adapters.version(name)
        return None if version is None else version.number

    def _checkpointed(self) -> dict[int, str]:
        return {Version.parse(name).number: name for name in self.checkpoints.names()}

    def _whole_adapter(self, name: str) -> Path:
        """The folder of a version. Raises :class:`ManifestError` or ``OSError`` if it is damaged."""
        version = Version.parse(name)
        folder = self.adapters.folder(version)
        manifest = read_manifest(folder)
        if not version.matches(manifest):
            raise ManifestError(f"{folder}: its content's digest is {manifest.digest}")
        manifest.check(folder)
        return folder


def _copied(value: Any) -> Any:
    """A copy whose tensors are in the CPU's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _read_state(file: Path) -> RunState:
    """Read a state; unknown fields, of a newer trainer, are ignored. Raises :class:`ManifestError`."""
    try:
        state, _ = validate_known(RunState, json.loads(file.read_bytes()))
        Version.parse(state.version)
    except (ValidationError, ValueError) as error:
        raise ManifestError(f"{file}: not the state of a run: {error}") from None
    return state
