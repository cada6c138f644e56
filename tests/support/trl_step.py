"""One step of TRL's SFTTrainer on a Parquet file: run by the Python of an environment that has TRL. Prints JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer


def main(model: str, data: str, scratch: str) -> None:
    """Print the step's loss (nats per label token, before the update) and how many tokens of which kind there were."""
    rows = load_dataset("parquet", data_files=data, split="train", cache_dir=f"{scratch}/datasets")
    processor = AutoProcessor.from_pretrained(model)
    seen: dict[str, int] = {}

    class Counting(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
            seen["image_tokens"] = int((inputs["input_ids"] == image).sum())
            seen["label_tokens"] = int((inputs["labels"] != -100).sum())
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Counting(
        model=AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(
            output_dir=scratch,
            max_steps=1,
            per_device_train_batch_size=len(rows),
            max_length=None,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            logging_steps=1,
            bf16=False,
        ),
        train_dataset=rows,
        processing_class=processor,
    )
    result = trainer.train()
    print(json.dumps({"loss": result.training_loss, "rows": len(rows), "columns": rows.column_names, **seen}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], str(Path(sys.argv[3]).resolve()))
