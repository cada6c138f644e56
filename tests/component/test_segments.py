"""Segments through real vLLM: turns that share a growing prompt are trained as one row, as the server sampled them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.inference import tiny_job
from tests.support.whole_run import records, run_whole

pytestmark = [pytest.mark.integration, pytest.mark.vision, pytest.mark.slow]

SEGMENT, TURNS, EPISODES, ITERATIONS = 3, 6, 8, 2


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of a whole local run: two iterations after a short warm start, so that most answers are tool calls."""
    folder = tmp_path_factory.mktemp("segments")
    job = tiny_job(
        {"maxNumSeqs": 16, "limitMmPerPrompt": {"image": SEGMENT}},
        # The KL term gives every iteration something to learn, also one whose episodes all earned the same.
        algorithm={"loss": "grpo", "advantage": "turn", "scale": "batch", "gamma": 0.9, "klCoefficient": 0.01},
        rollout={
            "maxConcurrent": 16,
            "envConfig": {"imageSize": 144},
            "policyConfig": {
                "segmentTurns": SEGMENT,
                "maxTokens": 16,
                "maxLlmCalls": TURNS,
                "maxActions": 4,
                "historyTurns": 0,
                "systemPrompt": "Play Crafter.",
            },
        },
        training={
            "iterations": ITERATIONS,
            "groupsPerIteration": 2,
            "groupSize": EPISODES // 2,
            "learningRate": 1e-3,
            "updatesPerIteration": 2,
            "warmStart": {"episodes": 30, "steps": 200, "turns": 12, "batchSize": 16, "optimizer": "muon"},
        },
        evaluation={"episodes": 0},
    )
    return records(run_whole(job, folder))


def test_every_turn_is_learned_from_in_rows_of_several_turns(metrics: list[dict[str, Any]]) -> None:
    assert [record["iteration"] for record in metrics] == list(range(1, ITERATIONS + 1))
    for record in metrics:
        assert record["turns"] == EPISODES * TURNS
        # An answer that the template renders otherwise than it was sampled ends its row; most do not.
        assert record["turns"] / SEGMENT <= record["rows"] < record["turns"] / 2
        assert record["grad_norm"] > 0
        assert record["updates"] == 2


def test_server_and_trainer_agree_on_the_answers_of_all_turns(metrics: list[dict[str, Any]]) -> None:
    for record in metrics:
        assert record["mismatch_max"] <= 1e-4
        assert record["staleness"] == 0
