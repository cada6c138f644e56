"""What a component reads from its job."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import document, job
from visionrl.component import ConfigurationError, read_job


def written(folder: Path, found: Any) -> Path:
    path = folder / "job.json"
    path.write_text(found if isinstance(found, str) else json.dumps(found))
    return path


def test_a_part_is_not_ended_by_the_fields_of_a_newer_operator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newer = document({"training.fromTheFuture": 1, "evaluation": {"episodes": 3, "later": []}})
    path = written(tmp_path, newer)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert read_job(path) == job({"evaluation.episodes": 3})
    [message] = [record.getMessage() for record in caplog.records]
    assert "spec.training.fromTheFuture, spec.evaluation.later" in message


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (document({"training.iterations": 0}), "spec.training.iterations: "),
        (document({"training.iterations": 0, "training.fromTheFuture": 1}), "spec.training.iterations: "),
        ("{", "not JSON"),
        ([], "job.json: "),
    ],
)
def test_what_cannot_work_is_told(tmp_path: Path, found: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match="VISIONRL_JOB") as error:
        read_job(written(tmp_path, found))
    assert message in str(error.value)
