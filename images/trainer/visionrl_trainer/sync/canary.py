"""The canary: before rollouts move to a version, requests show that the server really serves it.

Three questions, because no single one can be answered for every version:

- Does this server apply adapters, in every kind of module? The probe shows it, once after each of its starts.
- Does it serve this version's content? The digest of what it read says so.
- Do its answers agree with the trainer's? The logprobs of an image prompt and of a sequence show it. Where the version
  moves them by more than rounding, they also show that it is neither the base model nor the last version.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from visionrl.adapters import Version, read_manifest
from visionrl_trainer.model.compute import compute
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.sync import image_prompt, probe
from visionrl_trainer.sync.evidence import Comparison, compare, largest_difference, rms
from visionrl_trainer.sync.inference_client import BASE, InferenceClient, Unavailable, UnusableAnswer
from visionrl_trainer.sync.publish import AdapterStore

logger = logging.getLogger(__name__)

T = TypeVar("T")
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest absolute difference of a sampled token's logprob after an image, by the model's dtype; measured: 8e-6 in
float32, 0.06 in bfloat16."""
LEAST_SLOPE, LARGEST_SLOPE = 0.7, 1.3
"""Of the whole probe; measured: 1.00 on a base of true width, 0.88 where q_proj alone is ignored."""


class CanaryFailed(RuntimeError):
    """The server answers with other weights than the trainer's."""


class ServerChanged(Unavailable):
    """Two servers answered one check: it was started again in between."""


@dataclass(frozen=True)
class Report:
    """What a passed check found."""

    server: str
    """The one that was asked; another one after each start."""
    digest: str
    """Of the content that it loaded for the version."""
    difference: float
    """Between serving and training, root mean square over the sequence, nats."""
    noise: float
    """The same for the base model."""
    against: dict[str, Comparison]
    """The version against the base and the last version, by name."""

    @property
    def told_apart(self) -> list[str]:
        """What the version was shown not to be."""
        return [name for name, comparison in self.against.items() if comparison.can_tell]


@dataclass(frozen=True)
class _Proven:
    """A server that applies adapters."""

    base_T: Tensor
    """Its logprobs of the sequence with the base model."""
    noise: float
    versions: set[str] = field(default_factory=set)
    """Those whose content it was shown to have loaded."""


@dataclass
class Canary:
    """Checks versions of one policy. It remembers which servers it has proven, and the last version."""

    inference: InferenceClient
    policy: Policy
    dtype: str
    image_size: int | None
    """Of the frames that the policy sees; ``None`` where it sees none."""
    temperature: float
    ids: list[int]
    """The sequence; :func:`visionrl_trainer.sync.probe.sequence`."""
    versions: AdapterStore
    probe_store: AdapterStore
    _base_T: Tensor | None = None
    _probe: probe.Probe | None = None
    _proven: dict[str, _Proven] = field(default_factory=dict)
    _last: tuple[str, Tensor] | None = None
    """Name and logprobs of the last version."""

    async def check(self, version: Version) -> Report:
        """Return when the server was shown to serve ``version``, whose weights the policy has.

        Raises :class:`CanaryFailed` where it serves other weights, and as
        :class:`~visionrl_trainer.sync.inference_client.InferenceClient` does where it does not answer.
        """
        return await _usable(self._check(version))

    async def admit(self, version: Version) -> str:
        """The server that answers now, once it was shown to apply adapters and to serve ``version``.

        Nothing of the policy is computed, which may have other weights by now. Raises like :meth:`check`.
        """
        return await _usable(self._admit(version))

    def has_admitted(self, server: str, version: Version) -> bool:
        """Whether this server was shown to serve this version."""
        return server in self._proven and version.name in self._proven[server].versions

    async def _admit(self, version: Version) -> str:
        served_T, server, _ = await self._meet(version)
        if self._last is not None and self._last[0] == version.name:
            _demand_agreement(version.name, served_T, self._last[1], self.dtype)
        self._proven[server].versions.add(version.name)
        return server

    async def _meet(self, version: Version) -> tuple[Tensor, str, str]:
        """The logprobs of ``version``, the proven server that served them, and the digest of their adapter."""
        served_T, server = await self.inference.prompt_logprobs(version.name, self.ids)
        digest = await self._loaded(version, server, self.versions)
        if server not in self._proven:
            self._proven[server] = await self._prove(server)
        return served_T, server, digest

    async def _check(self, version: Version) -> Report:
        served_T, server, digest = await self._meet(version)
        proven = self._proven[server]
        trained_T = await compute(probe.logprobs, self.policy, self.ids)
        difference = _demand_agreement(version.name, served_T, trained_T, self.dtype)
        against = self._against(version, served_T - proven.base_T, trained_T, proven.noise)
        if self.image_size is not None:
            await self._image_prompt(version, server, self.image_size)
        self._last = version.name, trained_T
        proven.versions.add(version.name)
        return Report(server, digest, difference, proven.noise, against)

    async def _image_prompt(self, version: Version, server: str, size: int) -> None:
        """Compare the logprobs of a short answer to a frame."""
        frame = image_prompt.frame(version.name, size)
        answer = await self.inference.completion(
            image_prompt.request(version.name, frame, self.policy.banned_ids, self.temperature)
        )
        _demand_same(server, answer.server)
        sample = image_prompt.read(answer.document, frame, self.policy)
        trained = await compute(image_prompt.trained_logprobs, self.policy, sample, frame, self.temperature)
        difference = (trained - torch.tensor(sample.logprobs)).abs().max().item()
        if not difference <= TOLERANCE[self.dtype]:
            raise CanaryFailed(
                f"{version.name}: on an image prompt the server's logprobs differ from the trainer's by "
                f"{difference:.3g} nats (limit {TOLERANCE[self.dtype]:g})"
            )

    async def _loaded(self, version: Version, server: str, store: AdapterStore) -> str:
        """The digest of what the server loaded for a version in ``store``, which is the published one's."""
        digest, answered = await self.inference.served_digest(version.name)
        _demand_same(server, answered)
        published = read_manifest(store.folder(version)).digest
        if digest != published:
            raise CanaryFailed(f"{version.name}: the server serves content {digest:.64}, published is {published}")
        return published

    async def _served(self, model: str, server: str) -> Tensor:
        served_T, answered = await self.inference.prompt_logprobs(model, self.ids)
        _demand_same(server, answered)
        return served_T

    async def _prove(self, server: str) -> _Proven:
        """Show that a new server has the trainer's base and applies adapters."""
        if self._base_T is None:
            self._base_T = await compute(_base_logprobs, self.policy, self.ids)
        base_T = await self._served(BASE, server)
        noise = _demand_agreement("the base model", base_T, self._base_T, self.dtype)
        if self._probe is None:
            self._probe = await compute(probe.build, self.policy, self.ids, self._base_T, noise, self.probe_store)
        served_T = await self._served(self._probe.version.name, server)
        await self._loaded(self._probe.version, server, self.probe_store)
        trained_T, moved_T = self._probe.trained_T - self._base_T, served_T - base_T
        whole = compare(moved_T, trained_T, torch.zeros_like(trained_T), noise)
        kinds = {
            kind: compare(moved_T, trained_T, without_T - self._base_T, noise)
            for kind, without_T in self._probe.without_T.items()
        }
        told = sorted(kind for kind, found in kinds.items() if found.can_tell)
        ignored = [kind for kind in told if not kinds[kind].is_expected]
        if ignored or not (whole.can_tell and LEAST_SLOPE <= whole.slope <= LARGEST_SLOPE):
            raise CanaryFailed(
                f"the server does not apply adapters as the trainer does: the probe moves the trainer's logprobs by "
                f"{whole.distance:.3g} nats, the server's by {whole.slope:.2f} of that (rounding: {noise:.2g} nats); "
                f"without effect: {', '.join(ignored) or 'no kind of module alone'}"
            )
        _demand_agreement("the probe adapter", served_T, self._probe.trained_T, self.dtype)
        logger.info(
            "server %s applies adapters: slope %.2f over %.2g nats, rounding %.1e; told for %s, too little moved by %s",
            server,
            whole.slope,
            whole.distance,
            noise,
            ", ".join(told) or "no kind alone",
            ", ".join(sorted(kinds.keys() - told)) or "none",
        )
        return _Proven(base_T, noise)

    def _against(self, version: Version, moved_T: Tensor, trained_T: Tensor, noise: float) -> dict[str, Comparison]:
        assert self._base_T is not None
        others = {BASE: self._base_T}
        if self._last is not None:
            others[self._last[0]] = self._last[1]
        others.pop(version.name, None)
        found = {
            name: compare(moved_T, trained_T - self._base_T, other_T - self._base_T, noise)
            for name, other_T in others.items()
        }
        for name, comparison in found.items():
            if comparison.can_tell and not comparison.is_expected:
                raise CanaryFailed(
                    f"{version.name}: the server's logprobs are nearer to those of {name}: slope {comparison.slope:.2f}"
                )
        return found


async def _usable(check: Awaitable[T]) -> T:
    """The check's result; an answer that cannot be used fails it."""
    try:
        return await check
    except UnusableAnswer as error:
        raise CanaryFailed(f"the server's answer cannot be used: {error}") from error


def _base_logprobs(policy: Policy, ids: list[int]) -> Tensor:
    with policy.without_adapter():
        return probe.logprobs(policy, ids)


def _demand_agreement(what: str, served_T: Tensor, trained_T: Tensor, dtype: str) -> float:
    """The engines' difference, root mean square; raises :class:`CanaryFailed` where rounding cannot be its cause."""
    difference, limit = rms(served_T - trained_T), largest_difference(trained_T, dtype)
    if not difference <= limit:
        raise CanaryFailed(
            f"{what}: the server's logprobs differ from the trainer's by {difference:.3g} nats (root mean square over "
            f"{len(trained_T)} tokens, limit {limit:.2g}): it serves other weights"
        )
    return difference


def _demand_same(server: str, answered: str) -> None:
    if answered != server:
        raise ServerChanged(f"server {answered or 'without a name'} answered in place of {server or 'one without'}")
