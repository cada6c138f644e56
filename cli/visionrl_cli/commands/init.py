"""``visionrl init``: a commented job file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionrl.jobfile import JobFileError, parse_job

DESCRIPTION = """Print a commented job file to start from.

Without --gpus it is for this machine's CPUs, with the tiny model. With --gpus it is for a cluster (or a machine) with
that many GPUs: one for the trainer, the others for inference.
"""
EXAMPLES = """examples:
  visionrl init > job.yaml
  visionrl init --name crafter --model Qwen/Qwen3-VL-4B-Instruct --gpus 2 --out job.yaml
  visionrl init --gpus 2 | visionrl validate -
"""

TEMPLATE = """# A job of VisionRL. visionrl validate FILE checks it, visionrl run FILE runs it on this machine,
# kubectl apply -f FILE in a cluster. What is left out has a default; kubectl explain vrl.spec lists every field.
apiVersion: visionrl.dev/v1alpha1
kind: VisionRLJob
metadata:
  name: {name}                    # also the run folder's name, runs/{name}
spec:
  model:
    base: {model}                 # a model of the hub, a folder, or tiny (made here, for tests)
    lora: {{r: 16, alpha: 32}}      # what is trained: a LoRA adapter of this rank
{devices}
  rollout:                        # how the policy plays
    maxConcurrent: 8              # episodes at the same time
    envConfig:
      imageSize: {image_size}              # side of the frames in pixels
    policyConfig:
      maxLlmCalls: 10             # turns of an episode
      maxTokens: {max_tokens}               # of an answer
      temperature: 1.0            # while training; evaluation.temperature for evaluation
  training:
    iterations: 10                # policy updates; may be raised while the job runs
    groupsPerIteration: 2         # start states of an iteration
    groupSize: 8                  # episodes from each; they are compared with each other
    learningRate: 5.0e-5{warm_start}
  evaluation:                     # on seeds that are never trained on, before and after
    episodes: 8
  storage: {{}}                     # in a cluster: runSize: 20Gi keeps checkpoints and results on a volume
"""
DEVICES = """  inference:
    gpu: {{count: {inference}}}             # vLLM
    vllm: {{tensorParallelSize: {inference}, maxModelLen: 4096}}
  trainer:
    gpu: {{count: 1}}"""
NO_DEVICES = """  # inference: {gpu: {count: 1}}  # with GPUs
  # trainer: {gpu: {count: 1}}"""
WARM_START = """
    warmStart:                    # the tiny model knows nothing yet: it first imitates a scripted player
      episodes: 64
      steps: 300"""

FLAGS = {"metadata.name": "--name", "spec.model.base": "--model"}
"""Where the values of these fields come from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="crafter", help="name of the job (default: crafter)")
    parser.add_argument("--model", metavar="NAME", help="model to begin with (default: tiny, Qwen3-VL-4B with --gpus)")
    parser.add_argument("--gpus", metavar="N", type=_gpus, help="for so many GPUs, 2 or more")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write it there (default: standard output)")


def command(options: argparse.Namespace) -> int:
    text = job_file(options.name, options.model, options.gpus)
    try:
        parse_job(text, "visionrl init")
    except JobFileError as error:
        for problem in error.problems:
            print(f"visionrl: {FLAGS.get(problem.path, problem.path)}: {problem.message}", file=sys.stderr)
        return 1
    if options.out is None:
        sys.stdout.write(text)
        return 0
    try:
        with options.out.open("x", encoding="utf-8") as file:  # never over a file that exists
            file.write(text)
    except OSError as error:
        print(f"{options.out}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.out} is written; visionrl validate {options.out} checks it after your changes", file=sys.stderr)
    return 0


def job_file(name: str, model: str | None, gpus: int | None) -> str:
    """The text of the file."""
    base = model or ("Qwen/Qwen3-VL-4B-Instruct" if gpus else "tiny")
    tiny = base == "tiny"
    return TEMPLATE.format(
        name=name,
        model=base,
        devices=DEVICES.format(inference=gpus - 1) if gpus else NO_DEVICES,
        image_size=144 if tiny else 256,
        max_tokens=64 if tiny else 256,
        warm_start=WARM_START if tiny else "",
    )


def _gpus(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text[:4]) <= 17:
        raise argparse.ArgumentTypeError(f"{text!r}: give 2 to 17 GPUs, one of them for the trainer")
    return int(text)
