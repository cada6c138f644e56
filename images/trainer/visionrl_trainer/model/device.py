"""Where the trainer computes."""

from __future__ import annotations

import torch

from visionrl.component import ConfigurationError


def training_device(wants_gpu: bool) -> torch.device:
    """The GPU if there is one, else the CPU.

    A job that asks for a GPU is not trained on the CPU, where it would take weeks: raises
    :class:`visionrl.component.ConfigurationError` where this build of torch knows no GPU, and ``RuntimeError``, with
    what the driver says, where it finds none: another node may have one.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not wants_gpu:
        return torch.device("cpu")
    advice = "remove spec.trainer.gpu to train on the CPU"
    if torch.version.cuda is None and torch.version.hip is None:
        raise ConfigurationError(
            f"spec.trainer.gpu is set, but torch {torch.__version__} of this image computes on CPUs only; {advice}"
        )
    try:
        torch.cuda.init()
    except RuntimeError as error:
        raise RuntimeError(f"spec.trainer.gpu is set, but there is no usable GPU: {error}; {advice}") from error
    raise RuntimeError(f"spec.trainer.gpu is set, but torch sees no GPU on this node; {advice}")
