"""TRL's side of the trainer's benchmarks: one iteration of its GRPOTrainer on given rows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-6


@dataclass(frozen=True)
class Row:
    prompt: list[int]
    completion: list[int]
    frame: np.ndarray
    advantage: float


class Trl:
    """GRPOTrainer's own passes, on inputs as it prepares them: prompts padded left, completions right."""

    def __init__(self, model: Any, processor: Any, rows: Sequence[Row], micro: int, checkpointing: bool) -> None:
        import pyarrow
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from PIL import Image
        from trl import GRPOConfig, GRPOTrainer

        from visionrl.job import LINEAR_LAYERS

        self.torch = torch
        on_cpu, steps = model.device.type == "cpu", -(-len(rows) // micro)
        self.trainer = GRPOTrainer(
            model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=tempfile.mkdtemp(),
                per_device_train_batch_size=micro,
                num_generations=4,
                gradient_accumulation_steps=steps,
                use_cpu=on_cpu,
                bf16=not on_cpu,
                gradient_checkpointing=checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False},
                loss_type="grpo",
                beta=0.0,
                temperature=1.0,
                learning_rate=LEARNING_RATE,
                max_completion_length=128,
                report_to="none",
                save_strategy="no",
            ),
            # Never read. With a fingerprint, because datasets makes one by pickling, which not every pyarrow bears.
            train_dataset=Dataset(
                pyarrow.table({"prompt": [[{"role": "user", "content": "x"}]] * 4}), fingerprint="unused"
            ),
            processing_class=processor,
            peft_config=LoraConfig(
                r=RANK,
                lora_alpha=ALPHA,
                target_modules=rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(LINEAR_LAYERS)})",
            ),
        )
        self.trainer.current_gradient_accumulation_steps = steps
        self.model = self.trainer.model.train()
        if checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()
        self.trainer.create_optimizer()
        # Sorted by length, as here: TRL pads a micro-batch to its longest row.
        self.order = sorted(range(len(rows)), key=lambda n: len(rows[n].prompt) + len(rows[n].completion))
        image = processor.tokenizer.get_vocab()["<|image_pad|>"]
        pad = processor.tokenizer.pad_token_id
        self.batches = []
        for start in range(0, len(rows), micro):
            part = [rows[n] for n in self.order[start : start + micro]]
            prompt, completion = (max(len(getattr(r, name)) for r in part) for name in ("prompt", "completion"))
            prompts = torch.tensor([[pad] * (prompt - len(r.prompt)) + r.prompt for r in part])
            answers = torch.tensor([r.completion + [pad] * (completion - len(r.completion)) for r in part])
            seen = processor.image_processor(images=[Image.fromarray(r.frame) for r in part], return_tensors="pt")
            batch: dict[str, Any] = {
                "prompt_ids": prompts,
                "prompt_mask": torch.tensor([[n >= prompt - len(r.prompt) for n in range(prompt)] for r in part]) + 0,
                "completion_ids": answers,
                "completion_mask": torch.tensor([[n < len(r.completion) for n in range(completion)] for r in part]) + 0,
                "advantages": torch.tensor([r.advantage for r in part]),
                "pixel_values": seen["pixel_values"],
                "image_grid_thw": seen["image_grid_thw"],
                "num_images": [1] * len(part),
                "mm_token_type_ids": torch.cat([(prompts == image).int(), torch.zeros_like(answers).int()], dim=1),
                "num_items_in_batch": torch.tensor(sum(len(r.completion) for r in rows)),
            }
            for name, value in batch.items():
                batch[name] = value.to(model.device) if isinstance(value, torch.Tensor) else value
            self.batches.append(batch)
        self.old = self._old()
        self.first = self.old

    def _old(self) -> list[Any]:
        with self.torch.no_grad():
            return [
                self.trainer._get_per_token_logps_and_entropies(
                    self.model,
                    self.torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
                    self.torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
                    batch["completion_ids"].size(1),
                    pixel_values=batch["pixel_values"],
                    image_grid_thw=batch["image_grid_thw"],
                    num_images=batch["num_images"],
                    mm_token_type_ids=batch["mm_token_type_ids"],
                )[0]
                for batch in self.batches
            ]

    def logprobs(self) -> list[float]:
        """Of the first rows, before any update."""
        found: dict[int, list[float]] = {}
        places = iter(self.order)
        for batch, old in zip(self.batches, self.first, strict=True):
            for values, mask in zip(old, batch["completion_mask"], strict=True):
                found[next(places)] = values[: int(mask.sum())].tolist()
        return [value for index in range(4) for value in found[index]]

    def iteration(self) -> None:
        self.old = self._old()
        self.update()

    def update(self) -> None:
        for batch, old in zip(self.batches, self.old, strict=True):
            with self.trainer.compute_loss_context_manager():
                loss = self.trainer.compute_loss(self.model, {**batch, "old_per_token_logps": old})
            self.trainer.accelerator.backward(loss)
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
