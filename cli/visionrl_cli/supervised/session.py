"""One supervised training, from the plan to the model."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from visionrl.base_model import locate_base
from visionrl.component import ConfigurationError
from visionrl.jobfile import JobFileError
from visionrl_cli.supervised.output import Output
from visionrl_cli.supervised.plan import Plan, TrainOptions, make_plan
from visionrl_cli.supervised.view import View, choose_view, show
from visionrl_local.folder import LocalError, LocalFolder, cache_folder
from visionrl_local.view import emit, error, refuse
from visionrl_trainer.model.policy import Policy
from visionrl_trainer.report import curves
from visionrl_trainer.sft import train as sft
from visionrl_trainer.sft.file import read_sft
from visionrl_trainer.sync.publish import AdapterStore


def train(options: TrainOptions) -> int:
    """Train, write, print. Exit code: 0 complete, 1 refused or failed, 128 + n after signal n."""
    transformers_logging.disable_progress_bar()
    try:
        plan = make_plan(options)
        output = Output(plan.output)
        with LocalFolder(plan.output).lock():
            return _train(plan, output, options)
    except (ConfigurationError, LocalError, JobFileError, OSError) as problem:
        refuse(problem)
    except KeyboardInterrupt:
        error("stopped")
        return 128 + signal.SIGINT
    return 1


def _train(plan: Plan, output: Output, options: TrainOptions) -> int:
    output.prepare(plan.job, options.fresh, error)
    summary = output.summary()
    if summary is not None:
        error(f"{output.root} is complete already; --fresh starts over")
    else:
        view = choose_view(plan.warm_start.steps, options.as_json)
        stop = Stop(view.note)
        try:
            with contextlib.closing(view):
                summary = _learn(plan, output, view, stop)
        except sft.Stopped as stopped:
            error(f"{stopped}; the same command resumes from {output.root}")
            return 128 + (stop.received or signal.SIGTERM)
    emit("end", **summary) if options.as_json else show(summary)
    return 0


def _learn(plan: Plan, output: Output, view: View, stop: Stop) -> dict[str, Any]:
    """The training itself; its summary."""
    spec, settings = plan.job.spec, plan.warm_start
    view.note(f"reading {plan.data.train}")
    held_out = Path(plan.data.val) if plan.data.val else None
    data = read_sft(Path(plan.data.train), held_out, spec.rollout.env_config.image_size)
    view.note(f"{len(data.training):,} decisions to learn from, {len(data.validation):,} held out")
    base = locate_base(plan.job, cache_folder())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = settings.trains != "adapter"
    policy = Policy.load(base, spec.model.dtype, device, full=full)
    if not full:
        policy.add_adapter(spec.model.lora, spec.training.seed)
    with stop.watching():
        last = sft.train(policy, data, spec, output.training, view.progress, lambda: stop.received is not None)
    if full:
        sft.export(policy, base, output.model)
        name = None
    else:
        name = AdapterStore(output.adapters, plan.job.name).publish(policy, 0).name
    summary = {
        "job": plan.job.name,
        "base": spec.model.base if spec.model.base != "tiny" else str(base),
        "trains": settings.trains,
        "steps": last.step,
        "decisions": len(data.training),
        "held_out": len(data.validation),
        "loss": last.loss,
        "validation_loss": last.validation_loss,
        "model": str(output.model) if full else None,
        "adapter": str(output.adapters / name) if name else None,
        "rank": None if full else spec.model.lora.r,
    }
    curves.save_png(curves.loss_curve(output.training.metrics.records(), plan.job.name), output.curve_file)
    output.write_summary(summary)
    output.training.forget_checkpoints()
    return summary


class Stop:
    """SIGINT and SIGTERM during training: the first one stops it after the current step, the second one at once."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.received: int | None = None
        self._note = note

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Handle the signals within the block."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        self._note("stopping after this step; Ctrl-C again stops at once")
