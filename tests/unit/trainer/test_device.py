"""A job that asks for a GPU is never trained on a CPU, and says what the driver says."""

from __future__ import annotations

import pytest
import torch

from visionrl.component import ConfigurationError
from visionrl_trainer.model.device import training_device


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_in_the_job_the_cpu_is_used() -> None:
    assert training_device(wants_gpu=False).type == "cpu"


def test_an_image_for_cpus_is_refused_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ConfigurationError, match=r"spec\.trainer\.gpu is set, but torch .* computes on CPUs only"):
        training_device(wants_gpu=True)


def test_a_node_whose_driver_does_not_answer_is_left_with_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040)")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    with pytest.raises(RuntimeError, match=r"driver on your system is too old .*remove spec\.trainer\.gpu"):
        training_device(wants_gpu=True)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    with pytest.raises(RuntimeError, match="torch sees no GPU"):
        training_device(wants_gpu=True)


def test_a_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {training_device(wants_gpu=wants).type for wants in (True, False)} == {"cuda"}
