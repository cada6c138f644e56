"""``visionrl train``: supervised training on this machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from visionrl.job import WarmStart
from visionrl_cli.extras import needed_packages
from visionrl_cli.flags import add_fields, given

DESCRIPTION = """Supervised training on this machine, without inference or task app: a model learns the answers in a
file of examples, as visionrl filter writes it.

Model, adapter and image size come from the job file; the training settings come from its training.warmStart and from
the flags below, which take precedence. The loss is the negative log-likelihood of an answer, in nats per decision;
with --val it is also measured on held-out lines, ten times per training.

--trains all and language_model write a whole model to OUTPUT/model, for model.base of a job file or for vLLM;
--trains adapter writes a LoRA adapter to OUTPUT/adapters. OUTPUT also has metrics.jsonl, loss.png and summary.json.

Ctrl-C stops after the current step and keeps a checkpoint; the same command resumes from it and ends with the same
weights as without the interruption. Exit code 0 when it is complete, 1 when it failed, 130 after Ctrl-C.
"""
EXAMPLES = """examples:
  visionrl filter traces.db --output-dir data
  visionrl train --config configs/crafter-tiny.yaml --data data/train.jsonl --val data/val.jsonl
  visionrl train --config job.yaml --trains adapter --steps 500 --learning-rate 1e-4 --data data/train.jsonl
  visionrl train --config job.yaml --data data/train.jsonl --json | jq .validation_loss
"""
SECTION = "training.warmStart"
FLAGS = ("trains", "steps", "batch_size", "learning_rate", "optimizer", "weight_decay")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--type", choices=("sft", "rl"), default="sft", help="sft; for reinforcement learning there is visionrl run"
    )
    parser.add_argument("--config", metavar="JOBFILE", type=Path, required=True, help="model, adapter, image size")
    parser.add_argument("--data", metavar="FILE", type=Path, help="training data (default: the job's)")
    parser.add_argument("--val", metavar="FILE", type=Path, help="validation data (default: the job's)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="output folder (default: runs/<job>-sft)")
    parser.add_argument(
        "--fresh", action="store_true", help="delete the files of an earlier training there, and start over"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON event per line")
    add_fields(parser.add_argument_group(f"{SECTION} (the job file's unless given here)"), WarmStart, FLAGS, SECTION)


def command(options: argparse.Namespace) -> int:
    # Before torch is imported. On a machine that is also used otherwise, threads that wait in a busy loop for one
    # without a core make a step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with needed_packages("train", "operator,trainer"):
        from visionrl_cli.supervised.plan import TrainOptions
        from visionrl_cli.supervised.session import train
    return train(
        TrainOptions(
            type=options.type,
            config=options.config,
            data=options.data,
            val=options.val,
            output=options.output,
            settings={name.rpartition(".")[2]: value for name, value in given(options).items()},
            fresh=options.fresh,
            as_json=options.json,
        )
    )
