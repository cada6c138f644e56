"""What an update needs of a group and can be computed when the group arrives, while others are still being played."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from visionrl.job import JobSpec
from visionrl_trainer.algo.advantages import with_advantages
from visionrl_trainer.algo.update import completion_logprobs, encode, has_signal
from visionrl_trainer.model.policy import ImageFeatures, Policy
from visionrl_trainer.rollout.batch import Frame, Group, sequences


def prepare(
    policy: Policy,
    group: Group,
    frames: Mapping[str, Frame],
    spec: JobSpec,
    with_logprobs: bool,
    played_by: Path | None,
) -> tuple[Group, dict[str, ImageFeatures]]:
    """The group and the features of its frames; with ``with_logprobs``, its samples have ``trained``.

    ``played_by`` is the adapter that sampled, if it is not the policy's. What has no signal is left out: the update
    does not compute it either.
    """
    samples = with_advantages([group], spec.algorithm)
    runs = [run for run in sequences(samples) if has_signal(run, samples, spec)]
    with torch.no_grad():
        features = encode(policy, [samples[index] for run in runs for index in run], frames)
    if not with_logprobs or not runs:
        return group, features
    with contextlib.nullcontext() if played_by is None else policy.as_version(played_by):
        found = completion_logprobs(policy, samples, runs, features, spec)
    known = iter(
        replace(sample, trained=tuple(found[index].tolist()) if index in found else None)
        for index, sample in enumerate(samples)
    )
    episodes = [replace(e, samples=tuple(itertools.islice(known, len(e.samples)))) for e in group.episodes]
    return replace(group, episodes=tuple(episodes)), features
