"""``visionrl train``: start a job and watch it, or train on files."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from visionrl.job import WarmStart
from visionrl.jobfile import JobFile, JobFileError
from visionrl.problems import Problem, located
from visionrl_cli.changes import add_set, job_file
from visionrl_cli.extras import needed_packages
from visionrl_cli.files import unusable
from visionrl_cli.flags import add_fields, given
from visionrl_cli.places.choice import WHERE, add_place, place_of
from visionrl_cli.values import positive, seconds

DESCRIPTION = f"""Train: --type rl starts the job of a file and watches it, --type sft learns from a file of examples.

--type rl: the job goes on when the watching ends, with Ctrl-C or at --poll-timeout; visionrl jobs shows, suspends and
cancels it. visionrl run does the same in the foreground of this machine.

--type sft: supervised training on this machine, in the foreground, without inference or task app; in a cluster (with
--context or --namespace) as a job. The training settings come from training.warmStart of the file and from the flags
below. The loss is the negative log-likelihood of an answer, in nats per decision; with --val it is also measured on
held-out lines, ten times per training. --trains all and language_model write a whole model to OUTPUT/model, for
model.base of a job file or for vLLM; --trains adapter writes a LoRA adapter to OUTPUT/adapters. OUTPUT also has
metrics.jsonl, loss.png and summary.json. Ctrl-C stops after the current step and keeps a checkpoint; the same command
resumes from it and ends with the same weights as without the interruption.

Without --type: sft where --data is given or the file's algorithm.type is sft, else rl. All flags take precedence over
the file. Exit code 0 when it is complete, 1 when it failed, 3 when it still runs at --poll-timeout, 130 after Ctrl-C.

{WHERE}
"""
EXAMPLES = """examples:
  visionrl train --type rl --config configs/crafter-tiny.yaml --iterations 5
  visionrl train --type rl --config rl.toml --context gpu-cluster --no-poll
  visionrl train --config job.yaml --set training.groupSize=4 --set metadata.name=second --stream-format chart
  visionrl filter traces.db --output-dir data
  visionrl train --config configs/crafter-tiny.yaml --data data/train.jsonl --val data/val.jsonl
  visionrl train --type sft --model Qwen/Qwen3-VL-4B-Instruct --data data/train.jsonl --trains adapter --steps 500
  visionrl train --config job.yaml --trains adapter --steps 500 --learning-rate 1e-4 --data data/train.jsonl
"""
SECTION = "training.warmStart"
FLAGS = ("trains", "steps", "batch_size", "learning_rate", "optimizer", "weight_decay")
POLL_VARIABLE = "SYNTH_TRAIN_TEST_POLL_TIMEOUT"
_seconds = seconds(lambda value: 0 < value < 1e9)
STILL_RUNS = 3
"""Exit code: the watching ended before the job did."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", choices=("auto", "rl", "sft"), default="auto", help="what to train with")
    parser.add_argument("--config", metavar="FILE", type=Path, help="job file, or the reference's TOML")
    parser.add_argument("--model", metavar="NAME", help="model.base; without --config, all else has its default")
    parser.add_argument("--data", metavar="FILE", type=Path, help="training data (default: the job's)")
    parser.add_argument("--val", metavar="FILE", type=Path, help="validation data (default: the job's)")
    add_set(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON event per line")
    rl = parser.add_argument_group("--type rl")
    rl.add_argument("--iterations", metavar="N", type=positive, help="training.iterations")
    rl.add_argument("--task-url", metavar="URL", help="taskApp.url: a task app that runs already (or TASK_APP_URL)")
    rl.add_argument("--poll", action=argparse.BooleanOptionalAction, default=True, help="watch until the job ends")
    rl.add_argument(
        "--poll-timeout",
        metavar="S",
        type=_seconds,
        default=os.environ.get(POLL_VARIABLE) or None,
        help=f"watch this long at most; takes precedence over {POLL_VARIABLE} (default: no limit)",
    )
    rl.add_argument(
        "--poll-interval", metavar="S", type=_seconds, default=2.0, help="seconds between looks (default: 2)"
    )
    rl.add_argument(
        "--stream-format", choices=("cli", "chart"), default="cli", help="one line per change, or a chart of the reward"
    )
    add_place(parser)
    sft = parser.add_argument_group("--type sft on this machine")
    sft.add_argument("--output", metavar="DIR", type=Path, help="output folder (default: runs/<job>-sft)")
    sft.add_argument(
        "--fresh", action="store_true", help="delete the files of an earlier training there, and start over"
    )
    add_fields(parser.add_argument_group(f"{SECTION} (take precedence over the file's)"), WarmStart, FLAGS, SECTION)


def command(options: argparse.Namespace) -> int:
    if options.config is None and options.model is None:
        options.usage_error("give --config FILE, or --model NAME")
    kind = _kind(options)
    elsewhere = options.context or options.namespace or (options.in_cluster and not options.local)
    if kind == "sft" and not elsewhere:
        return _supervised(options)
    return _submitted(options, kind)


def _kind(options: argparse.Namespace) -> str:
    if options.type != "auto":
        return str(options.type)
    if options.data is not None:
        return "sft"
    if options.config == Path("-"):  # can be read once only
        return "rl"
    try:
        return job_file(options.config, _changes(options)).job.spec.algorithm.type
    except (JobFileError, OSError):
        return "rl"  # told by who reads the file next, with the flags


def _supervised(options: argparse.Namespace) -> int:
    # Before torch is imported. On a machine that is also used otherwise, threads that wait in a busy loop for one
    # without a core make a step several times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.iterations:
        options.usage_error("--iterations is for --type rl; supervised training has --steps")
    with needed_packages("train", "operator,trainer"):
        from visionrl_cli.supervised.plan import TrainOptions
        from visionrl_cli.supervised.session import train
    return train(
        TrainOptions(
            config=options.config,
            data=options.data,
            val=options.val,
            output=options.output,
            settings={name.rpartition(".")[2]: value for name, value in given(options).items()},
            changes=_changes(options),
            fresh=options.fresh,
            as_json=options.json,
        )
    )


def _submitted(options: argparse.Namespace, kind: str) -> int:
    """Start the job where the flags say, and watch it."""
    with needed_packages("train"):
        from visionrl_cli.places.place import PlaceError
        from visionrl_cli.places.watch import choose_view, watch
    changes = _changes(options)
    url = options.task_url or os.environ.get("TASK_APP_URL")
    changes |= {"taskApp.url": url} if url else {}  # where it needs a key, the file says which
    changes |= {"algorithm.type": "sft"} if kind == "sft" else {}
    changes |= {_camel(name): value for name, value in given(options).items()}
    for name, file in (("train", options.data), ("val", options.val)):
        changes |= {f"{SECTION}.data.{name}": str(file)} if file else {}
    try:
        found = job_file(options.config, changes)
        place = place_of(options)
        _warn(found)
        place.submit(found.job)
        name = found.job.name
        _say(f"{name} is started: {place.title}")
        if not options.poll:
            _say(f"to see more: {place.command(f'jobs get {name}')}")
            return 0
        view = choose_view(name, options.json, options.stream_format)
        record = watch(place, name, view, options.poll_interval, options.poll_timeout)
    except (JobFileError, OSError) as error:
        return unusable(options.config or Path("visionrl train"), error)
    except PlaceError as error:
        _say(f"visionrl: {error}")
        return 1
    except KeyboardInterrupt:
        _say("\nvisionrl: stopped watching; the job goes on; visionrl jobs cancel ends it")
        return 130
    if record.status.finished and record.phase == "Complete":
        return 0
    if record.ended:
        _say(f"why: {place.command(f'explain {name}')}")
        return 1
    _say(f"still {record.phase} after {options.poll_timeout:g} s; it goes on: {place.command(f'jobs get {name}')}")
    return STILL_RUNS


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """What takes precedence over the file, by dotted paths below ``spec``."""
    changes = dict(options.set)
    changes |= {"model.base": options.model} if options.model else {}
    changes |= {"training.iterations": options.iterations} if options.iterations else {}
    return changes


def _warn(found: JobFile) -> None:
    for problem in found.warnings:
        _say(located(Problem(problem.path, f"warning: {problem.message}"), found.source, found.lines))


def _camel(name: str) -> str:
    """ "training.warmStart.batch_size" → "training.warmStart.batchSize"."""
    section, _, field = name.rpartition(".")
    first, *rest = field.split("_")
    return f"{section}.{first}{''.join(word.capitalize() for word in rest)}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
