"""Batches played ahead through real vLLM: what is learned from was sampled by the version that the record names, and is
corrected with that version's own logprobs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.inference import tiny_job
from tests.support.whole_run import REWARDED_RUN, records, run_whole
from visionrl.adapters import Version

pytestmark = [pytest.mark.integration, pytest.mark.vision, pytest.mark.slow]

STALENESS, ITERATIONS, UPDATES = 2, 6, 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The iterations of a run with two batches ahead. Rewards are drawn at random, for random weights earn nothing;
    the learning rate is high, so that a version tells from the one before."""
    job = tiny_job(
        {"maxNumSeqs": 16},
        rollout={
            "maxConcurrent": 16,
            "envConfig": {"imageSize": 144},
            "policyConfig": {"maxTokens": 8, "maxLlmCalls": 4, "historyTurns": 0, "systemPrompt": "Play Crafter."},
        },
        training={
            "iterations": ITERATIONS,
            "groupsPerIteration": 2,
            "groupSize": 4,
            "updatesPerIteration": UPDATES,
            "learningRate": 5e-3,
            "maxStaleness": STALENESS,
            "guards": {"maxInvalidRate": None},
        },
        evaluation={"episodes": 8, "everyIterations": 3},
    )
    folder = tmp_path_factory.mktemp("ahead")
    return records(run_whole(job, folder, REWARDED_RUN))


def test_batches_are_as_many_versions_old_as_the_job_allows(found: list[dict[str, Any]]) -> None:
    assert [record["staleness"] for record in found] == [0, 1, *[STALENESS] * (ITERATIONS - 2)]
    played_by = [Version.parse(record["version"]).number for record in found]
    assert played_by == [0, 0, *range(ITERATIONS - 2)]


def test_server_and_trainer_agree_on_the_version_that_sampled(found: list[dict[str, Any]]) -> None:
    for record in found:
        assert record["mismatch_max"] <= 1e-4
        assert record["masked_rate"] == 0
        assert record["updates"] == UPDATES
        assert record["grad_norm"] > 0
    # The versions do differ: ratios of the second step, and those of batches that others played, are not 1.
    assert all(abs(record["ratio_max"] - 1) > 1e-3 for record in found)
