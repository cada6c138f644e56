"""How a micro-batch fits into memory: its size in tokens, and whether decoder layers are recomputed in the backward."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visionrl.job import Training
from visionrl_trainer.model.forward import LOGITS_AT_ONCE
from visionrl_trainer.model.packing import Packing

logger = logging.getLogger(__name__)

GPU_TOKENS = (16_384, 8_192, 4_096)
"""Of a micro-batch by default: the first that fits. In a small one a GPU waits for the next of many short kernels: an
update of 640 decisions of the 4B takes an H100 16.0 s with 4,096 tokens, 9.7 s with 8,192."""
CPU_TOKENS = (4_096,)
PROBE_TOKENS = 16
USABLE = 0.8
"""Share of the free memory that may be planned with; the rest is fragmentation and what is not estimated."""
OPTIMIZER_BYTES = 12
"""Of a trained weight: gradient and AdamW's two moments, float32."""
CGROUP = Path("/sys/fs/cgroup")
GIB = 1 << 30


@dataclass(frozen=True)
class MicroBatchSize:
    """How much is computed at once."""

    tokens: int
    """Of a micro-batch, padding included; a longer sequence is a micro-batch of its own."""
    samples: int | None
    """Largest number of decisions in a micro-batch; None leaves it to the tokens."""

    @classmethod
    def without_gradient(cls, training: Training, device: torch.device) -> MicroBatchSize:
        """What the job says, or the largest default: where nothing is kept for a backward pass, it fits."""
        default = GPU_TOKENS if device.type == "cuda" else CPU_TOKENS
        return cls(training.micro_batch_tokens or default[0], training.micro_batch_size)


@dataclass(frozen=True)
class MemoryPlan(MicroBatchSize):
    """The micro-batches of a training."""

    recompute: bool
    """Whether decoder layers are recomputed in the backward pass."""
    needed: int
    """Estimated peak of a micro-batch, bytes, beyond what is allocated already."""
    available: int
    """Free memory at the time of planning, bytes, without what is reserved."""
    halved: bool = False

    def half(self) -> MemoryPlan:
        """Micro-batches of half the size, for when memory ran out nevertheless."""
        return replace(self, tokens=self.tokens // 2, samples=self.samples and -(-self.samples // 2), halved=True)

    def __str__(self) -> str:
        how = "recomputing" if self.recompute else "keeping"
        return (
            f"micro-batches of up to {self.tokens} tokens, {how} the activations of decoder layers: about "
            f"{self.needed / GIB:.1f} GiB of {self.available / GIB:.1f} GiB"
        )


def plan_memory(model: Any, training: Training, reserved: int = 0) -> MemoryPlan:
    """The micro-batches that ``training`` asks for, with recomputation where it says so or memory needs it. Where it
    does not say how many tokens they have, a GPU's are fewer if memory needs it. ``reserved`` bytes are left free for
    what will be allocated beside them."""
    parameter = next(model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    available = max(0, available_bytes(parameter.device) - reserved)
    room = USABLE * available - OPTIMIZER_BYTES * trained
    default = GPU_TOKENS if parameter.is_cuda else CPU_TOKENS
    for tokens in (training.micro_batch_tokens,) if training.micro_batch_tokens else default:
        recompute, needed = _recomputation(model, tokens, training, room)
        if needed <= room:
            break
    plan = MemoryPlan(tokens, training.micro_batch_size, recompute, needed, available)
    logger.info("%s", plan)
    if not needed <= room:
        logger.warning("this may not fit: lower training.microBatchTokens, or give the trainer more memory")
    return plan


def _recomputation(model: Any, tokens: int, training: Training, room: float) -> tuple[bool, int]:
    """Whether layers are recomputed, and the bytes that are needed then."""
    keeping, recomputing = (peak_bytes(model, tokens, recompute) for recompute in (False, True))
    choice = {"on": True, "off": False, "auto": not keeping <= room}[training.activation_checkpointing]
    return choice, recomputing if choice else keeping


def peak_bytes(model: Any, tokens: int, recompute: bool) -> int:
    """Estimate for forward and backward pass of a micro-batch: what is kept, the backward of one layer and a chunk of
    logits. Measured on the model itself with a few tokens, so it holds for its dtype, adapter and attention kernel."""
    language_model = model.model.language_model
    width, layers = language_model.config.hidden_size, len(language_model.layers)
    layer = layer_bytes(language_model)
    hidden = tokens * width * language_model.embed_tokens.weight.element_size()
    kept = layers * hidden + tokens * layer if recompute else tokens * layers * layer
    logits = 4 * 4 * min(LOGITS_AT_ONCE, tokens * language_model.config.vocab_size)  # four float32 buffers at once
    return int(kept + tokens * layer + logits)


def layer_bytes(language_model: Any) -> float:
    """What one decoder layer keeps of a token for its backward pass."""
    layer, weight = language_model.layers[0], language_model.embed_tokens.weight

    def kept(tokens: int) -> int:
        hidden_1PH = torch.zeros(1, tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
        cos_sin = language_model.rotary_emb(hidden_1PH, torch.arange(tokens, device=weight.device).expand(3, 1, -1))
        run = partial(layer, position_embeddings=cos_sin, packing=Packing.of([tokens], weight.device))
        return kept_bytes(lambda: run(hidden_1PH.requires_grad_()), layer)

    with torch.random.fork_rng():  # the probe's dropout must not change what is trained
        return (kept(2 * PROBE_TOKENS) - kept(PROBE_TOKENS)) / PROBE_TOKENS


def kept_bytes(run: Callable[[], Tensor], module: nn.Module) -> int:
    """Bytes of the tensors that ``run`` keeps for its backward pass, without the weights of ``module``."""
    own = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def available_bytes(device: torch.device) -> int:
    """Memory that can still be allocated on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return max(0, min(free, _cgroup_bytes(free)))


def _cgroup_bytes(default: int) -> int:
    """What is left of the container's limit."""
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return default
    return default if limit == "max" else int(limit) - int(used)
