"""The warm start of a job on data of files: what is told early, and what a stop leaves."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.jobs import job
from tests.unit.trainer.conftest import IMAGE_SIZE
from visionrl.component import ConfigurationError
from visionrl.status import TrainerReport
from visionrl.tools import tool_call_text
from visionrl_trainer.model.compute import compute
from visionrl_trainer.preparation import Preparation
from visionrl_trainer.report.progress import Meter
from visionrl_trainer.rollout.client import TaskApp
from visionrl_trainer.state.runfolder import RunFolder
from visionrl_trainer.sync.service import StatusPublisher

pytestmark = pytest.mark.vision


@pytest.fixture
def data(tmp_path: Path) -> Path:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    prompt = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    file = tmp_path / "train.jsonl"
    answer = {"role": "assistant", "content": tool_call_text(["noop"])}
    file.write_text(json.dumps({"messages": [prompt, answer]}) + "\n")
    return file


def preparation(folder: Path, **warm_start: Any) -> Preparation:
    settings = {"steps": 200, "batchSize": 2, **warm_start}
    publisher = StatusPublisher(TrainerReport(phase="Starting"))
    return Preparation(
        job({"model.dtype": "float32", "training.warmStart": settings}),
        RunFolder(folder / "run"),
        torch.device("cpu"),
        TaskApp("http://127.0.0.1:9", "key", 1),
        publisher,
        Meter(publisher, total=1),
    )


async def test_a_file_that_is_not_there_is_told_before_a_model_is_fetched(tmp_path: Path) -> None:
    missing = preparation(tmp_path, data={"train": f"{tmp_path}/none.jsonl"})
    with pytest.raises(ConfigurationError, match=r"spec.training.warmStart.data.train: .* no file .*none.jsonl"):
        await missing.base(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


async def test_a_stop_keeps_a_checkpoint_that_the_next_attempt_goes_on_from(data: Path, tmp_path: Path) -> None:
    first = preparation(tmp_path, data={"train": str(data)})
    task = asyncio.create_task(first.base(tmp_path / "cache"))
    metrics = first.folder.warm_start.metrics
    while not metrics.records() and not task.done():  # noqa: ASYNC110 - its file is all that it tells
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await compute(lambda: None)  # in the same thread, so after the step that was under way
    assert any(first.folder.warm_start.checkpoints.iterdir())

    again = preparation(tmp_path, data={"train": str(data)})
    base = await again.base(tmp_path / "cache")
    assert base == again.folder.base
    assert again.publisher.report.base_ready
    steps = [record["step"] for record in metrics.records()]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (2, 200)  # the first attempt's lines are kept
    assert not again.folder.warm_start.checkpoints.exists()


async def test_a_damaged_base_is_trained_again_but_not_under_adapters_that_belong_to_it(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = preparation(tmp_path, data={"train": str(data)}, steps=1)
    base = await first.base(tmp_path / "cache")
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    await preparation(tmp_path, data={"train": str(data)}, steps=1).base(tmp_path / "cache")
    assert "model.safetensors is damaged" in caplog.text
    assert (base / "model.safetensors").read_bytes() == whole

    (base / "model.safetensors").write_bytes(b"")
    (first.folder.checkpoints / "crafter-v000001-0123456789ab").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"adapters belong to is not whole: base: model.safetensors.*put"):
        await preparation(tmp_path, data={"train": str(data)}, steps=1).base(tmp_path / "cache")
