"""The policy: Qwen3-VL with a LoRA adapter, evaluated on exactly the tokens that were sampled.

The forward pass is that of transformers, taken apart where rows share work: the vision tower runs once per distinct
frame, positions once per layout of a prompt, the beginning that all rows of a micro-batch have in common once, the LM
head on completion tokens only; rows are packed without padding.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from visionrl.job import Lora, Training
from visionrl_trainer.model.adapter import with_adapter
from visionrl_trainer.model.forward import last_hidden, score
from visionrl_trainer.model.memory import MemoryPlan, plan_memory
from visionrl_trainer.model.norm import with_one_operation_norms
from visionrl_trainer.model.packing import ATTENTION, Packing, shared_prefix
from visionrl_trainer.model.vision import FRAMES_ATTENTION, MatmulPatchEmbed, patches, run_tower
from visionrl_trainer.rollout.batch import VISION_TOKENS, Frame, ImageTokens, Sample, sequences

logger = logging.getLogger(__name__)

BANNED_BIAS = -100.0
ATTENTIONS = {"text_config": ATTENTION, "vision_config": FRAMES_ATTENTION}
"""What the model's two parts attend with, as transformers takes it."""


def served_temperature(temperature: float) -> float:
    """What vLLM divides logits by: at 0 it decodes greedily and reports the logprobs of temperature 1; above 0 it uses
    0.01 at least."""
    return max(temperature, 0.01) if temperature > 0 else 1.0


@dataclass(frozen=True)
class ImageFeatures:
    """Features of one frame: what replaces its placeholders, and what deepstack adds to the first layers."""

    embeds: Tensor
    """[visual tokens, hidden]."""
    deepstack: tuple[Tensor, ...]
    """Per layer, [visual tokens, hidden]."""

    @property
    def nbytes(self) -> int:
        return self.embeds.nbytes + sum(layer.nbytes for layer in self.deepstack)


@dataclass(frozen=True)
class PackedSequences:
    """Sequences as packed rows after their shared prefix: P tokens in all, T of them sampled."""

    ids_P: Tensor
    positions_3P: Tensor
    visual_V: Tensor
    """Positions of the placeholders."""
    packing: Packing
    images: tuple[str, ...]
    """Hashes of the frames, in the order of their placeholders."""
    predicts_T: Tensor
    """Position whose hidden state predicts a sampled token."""
    targets_T: Tensor


class Policy:
    """A base model and, unless only the base is trained, one adapter on it.

    Weights of ``compute_dtype`` are used unchanged. Float32 weights with a narrower ``compute_dtype`` are rounded for
    the computation only, so that updates far smaller than a weight still accumulate (mixed precision,
    arXiv:1710.03740).
    """

    def __init__(self, model: Any, processor: Any, device: torch.device, compute_dtype: torch.dtype) -> None:
        self.model, self.processor, self.device = model, processor, device
        self.compute_dtype = compute_dtype
        model.model.visual.patch_embed = MatmulPatchEmbed(model.model.visual.patch_embed)
        with_one_operation_norms(model.model.language_model)
        self.peft: PeftModel | None = None
        self._reference: dict[str, Tensor] | None = None
        self.memory: MemoryPlan | None = None
        self.image_token: int = model.config.image_token_id
        vocabulary = processor.tokenizer.get_vocab()
        self.ban(vocabulary[token] for token in VISION_TOKENS if token in vocabulary)
        self._positions: dict[tuple[tuple[int, ...], int], Tensor] = {}

    @classmethod
    def load(cls, directory: Path, dtype: str, device: torch.device, full: bool = False) -> Policy:
        """Load a base model; with ``full``, all weights are trained and kept in float32. Raises
        ``OSError`` where the directory holds none."""
        compute_dtype = getattr(torch, dtype)
        model = AutoModelForImageTextToText.from_pretrained(
            directory,
            dtype=torch.float32 if full else compute_dtype,
            attn_implementation=ATTENTIONS,
            local_files_only=directory.exists(),
        )
        model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to without its signature
        return cls(model.eval(), AutoProcessor.from_pretrained(directory), device, compute_dtype)

    def plan_memory(self, training: Training, reserved: int = 0) -> MemoryPlan:
        """The micro-batches that this training computes; planned once. ``reserved`` bytes are left free."""
        if self.memory is None:
            with self._precision():
                self.memory = plan_memory(self.model, training, reserved)
        return self.memory

    def halve_micro_batches(self) -> bool:
        """After memory ran out; False if they were halved before."""
        if self.memory is None or self.memory.halved:
            return False
        self.memory = self.memory.half()
        logger.warning("out of memory: from now on micro-batches have up to %d tokens", self.memory.tokens)
        return True

    def ban(self, ids: Iterable[int]) -> None:
        """Exclude tokens from sampling, as the server does (``logit_bias``)."""
        self.banned_ids = frozenset(ids)
        self._bias = torch.zeros(self.model.config.text_config.vocab_size, device=self.device)
        self._bias[list(self.banned_ids)] = BANNED_BIAS

    # --- the adapter

    def add_adapter(self, lora: Lora, seed: int) -> None:
        """Freeze the base and add a new adapter to it (B = 0: it has no effect yet)."""
        self.peft = with_adapter(self.model, lora, seed)
        self.eval()

    def train(self, part: Literal["all", "language_model", "adapter"]) -> None:
        """Make a part of the weights trainable, with dropout."""
        owner = self.peft or self.model
        owner.train()
        for name, parameter in owner.named_parameters():
            if part == "adapter":
                parameter.requires_grad_("lora_" in name)
            else:
                parameter.requires_grad_("lora_" not in name and (part == "all" or ".visual." not in name))

    def eval(self) -> None:
        """Make only the adapter trainable, without dropout, which would move the ratios of one version away from 1."""
        self.train("adapter")
        (self.peft or self.model).eval()

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Switch dropout off within supervised training, as in sampling."""
        owner = self.peft or self.model
        training = owner.training
        owner.eval()
        try:
            yield
        finally:
            owner.train(training)

    def save_model(self, directory: Path) -> None:
        """Write the model's weights and configuration, in ``compute_dtype``."""
        self.model.to(self.compute_dtype).save_pretrained(directory)

    def load_adapter(self, directory: Path) -> None:
        """Replace the adapter's weights by saved ones. Raises ``ValueError`` if they belong to another adapter."""
        self.set_adapter_weights(load_file(directory / "adapter_model.safetensors"))

    def adapter_weights(self) -> dict[str, Tensor]:
        """A copy of the adapter's weights."""
        weights = get_peft_model_state_dict(self._adapted, save_embedding_layers=False)  # "auto" asks the hub
        return {name: weight.detach().clone() for name, weight in weights.items()}

    def set_adapter_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace the adapter's weights. Raises ``ValueError`` if they belong to another adapter."""
        result: Any = set_peft_model_state_dict(self._adapted, weights)
        if result.unexpected_keys:
            raise ValueError(f"the adapter has no weight {result.unexpected_keys[0]}")

    def save_adapter(self, directory: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, in the dtype that servers and this policy
        compute it in: half of float32's bytes with bfloat16. Raises ``ValueError`` if a weight is not finite: a server
        with such an adapter would also fail other requests."""
        weights = {name: weight.detach().to(self.compute_dtype) for name, weight in self.trainable()}
        for name, weight in weights.items():
            if not torch.isfinite(weight).all():
                raise ValueError(f"adapter weight {name} is not finite")
        self._adapted.peft_config["default"].base_model_name_or_path = "base"  # not a path of this machine
        self._adapted.save_pretrained(str(directory), state_dict=weights, save_embedding_layers=False)

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Parameters that are trained, by name."""
        owner = self.peft or self.model
        return [(name, parameter) for name, parameter in owner.named_parameters() if parameter.requires_grad]

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The base model."""
        with self._adapted.disable_adapter():
            yield

    @contextlib.contextmanager
    def as_version(self, directory: Path) -> Iterator[None]:
        """Another version of the adapter, for computations without gradient."""
        current = self.adapter_weights()
        try:
            self.load_adapter(directory)
            yield
        finally:
            self.set_adapter_weights(current)

    def set_reference(self, directory: Path) -> None:
        """Measure the KL term against a saved adapter instead of the base."""
        self._reference = load_file(directory / "adapter_model.safetensors")

    @contextlib.contextmanager
    def as_reference(self) -> Iterator[None]:
        """The policy that training began with, for computations without gradient: the base, or the adapter of
        :meth:`set_reference`."""
        if self._reference is None:
            with self.without_adapter():
                yield
            return
        current = self.adapter_weights()
        try:
            self.set_adapter_weights(self._reference)
            yield
        finally:
            self.set_adapter_weights(current)

    @property
    def _adapted(self) -> PeftModel:
        if self.peft is None:
            raise RuntimeError("the policy has no adapter yet")
        return self.peft

    # --- the forward pass

    def image_tokens(self, image_size: int) -> ImageTokens:
        """How a frame of this size appears in a prompt."""
        inputs = self.processor.image_processor(images=[torch.zeros(3, image_size, image_size)], return_tensors="pt")
        merge = self.model.config.vision_config.spatial_merge_size
        per_image = int(inputs["image_grid_thw"][0].prod()) // merge**2
        return ImageTokens(
            placeholder_id=self.image_token,
            per_image=per_image,
            image_size=image_size,
            vocabulary=self.model.config.text_config.vocab_size,
            banned_ids=self.banned_ids,
        )

    def encode_images(self, frames: Sequence[Frame]) -> list[ImageFeatures]:
        """Run the vision tower on frames of one size."""
        patches_PD, grid_3 = patches(frames, self.processor.image_processor, self.device)
        with self._precision():
            output = run_tower(self.model.model, patches_PD, grid_3, len(frames))
        sizes = [len(embeds) for embeds in output.pooler_output]
        deepstack = [features.split(sizes) for features in output.deepstack_features]
        return [
            ImageFeatures(embeds, tuple(layer[index] for layer in deepstack))
            for index, embeds in enumerate(output.pooler_output)
        ]

    def logprobs(
        self, samples: Sequence[Sample], image_features: Mapping[str, ImageFeatures], temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of every sampled token and the entropy there, both [T], under ``temperature`` and the
        banned tokens, exactly as the server processes its logits. ``image_features`` maps hashes to features."""
        rows = self.collate(samples)
        features = [image_features[digest] for digest in rows.images]
        with self._precision():
            hidden_PH = self._hidden(rows, features)
            hidden_TH = hidden_PH[rows.predicts_T]
            return score(hidden_TH, rows.targets_T, self.model.lm_head, self._bias, served_temperature(temperature))

    def collate(self, samples: Sequence[Sample]) -> PackedSequences:
        """One row of the packing per sequence of samples (:func:`visionrl_trainer.rollout.batch.sequences`), after the
        prefix that all of them share."""
        runs = sequences(samples)
        rows = [samples[run[-1]].prompt_ids + samples[run[-1]].completion_ids for run in runs]
        prefix = shared_prefix(rows, self.image_token)
        places: list[int] = []
        targets: list[int] = []
        begin = prefix
        for run, ids in zip(runs, rows, strict=True):
            end = begin + len(ids) - prefix
            places_L = [*range(prefix), *range(begin, end)]
            for sample in samples[run.start : run.stop]:
                first = len(sample.prompt_ids) - 1
                places += places_L[first : first + len(sample.completion_ids)]
                targets += sample.completion_ids
            begin = end
        tensors = [torch.tensor(ids) for ids in rows]
        positions = [self._positions_of(ids) for ids in tensors]
        ids_P = _after_prefix(tensors, prefix)
        return PackedSequences(
            ids_P.to(self.device),
            _after_prefix(positions, prefix).to(self.device),
            torch.nonzero(ids_P == self.image_token)[:, 0].to(self.device),
            Packing.of([len(ids) - prefix for ids in rows], self.device, prefix),
            tuple(digest for run in runs for digest in samples[run[-1]].images),
            predicts_T=torch.tensor(places, device=self.device),
            targets_T=torch.tensor(targets, device=self.device),
        )

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.compute_dtype, enabled=self.model.dtype != self.compute_dtype)

    def _hidden(self, rows: PackedSequences, features: Sequence[ImageFeatures]) -> Tensor:
        """Last hidden states [P, H]."""
        language_model = self.model.model.language_model
        embeds_PH = language_model.embed_tokens(rows.ids_P)
        deepstack: list[Tensor] = []
        if features:
            seen_VH = torch.cat([image.embeds for image in features]).to(embeds_PH.dtype)
            embeds_PH = embeds_PH.index_copy(0, rows.visual_V, seen_VH)
            deepstack = [torch.cat(layer) for layer in zip(*(image.deepstack for image in features), strict=True)]
        recompute = self.memory is not None and self.memory.recompute
        return last_hidden(
            language_model, embeds_PH, rows.positions_3P, rows.visual_V, deepstack, rows.packing, recompute
        )

    def _positions_of(self, ids_L: Tensor) -> Tensor:
        """Interleaved-mRoPE positions [3, L] of one sequence, from the model itself, cached by layout."""
        visual = ids_L == self.image_token
        edges = torch.nonzero(F.pad(visual, (1, 1)).diff())[:, 0].tolist()  # begin and end of every frame
        layout = (tuple(edges), len(ids_L))
        if layout not in self._positions:
            runs = [end - start for start, end in zip(edges[::2], edges[1::2], strict=True)]
            self._positions[layout] = self.model.model.get_rope_index(
                ids_L[None], visual[None].int(), image_grid_thw=self._square_grids(runs)
            )[0][:, 0]
        return self._positions[layout]

    def _square_grids(self, tokens: Sequence[int]) -> Tensor | None:
        """Patch grids (t, h, w) of square frames with these numbers of visual tokens."""
        merge = self.model.config.vision_config.spatial_merge_size
        sides = [round(count**0.5) * merge for count in tokens]
        return torch.tensor([[1, side, side] for side in sides]) if sides else None


def _after_prefix(rows: Sequence[Tensor], prefix: int) -> Tensor:
    """Rows one after the other along the last dimension, their first ``prefix`` tokens once."""
    return torch.cat([rows[0][..., :prefix], *[row[..., prefix:] for row in rows]], dim=-1)
