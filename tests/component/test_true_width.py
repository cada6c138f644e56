"""The real model's width, vocabulary and prompt through vLLM and the trainer, in bfloat16 and one batch ahead as in
configs/crafter-qwen3vl-4b.yaml, before a GPU sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.support.true_width import build_true_width
from tests.support.whole_run import REWARDED_RUN, records, run_whole
from visionrl.job import LINEAR_LAYERS, Job

pytestmark = [pytest.mark.integration, pytest.mark.vision, pytest.mark.slow]

LAYERS, ITERATIONS = 2, 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: two episodes of one turn an iteration, the built-in prompt, the tool. Rewards are
    drawn at random, for random weights earn nothing."""
    folder = tmp_path_factory.mktemp("true-width")
    model = build_true_width(folder / "model", layers=LAYERS)
    document = {
        "apiVersion": "visionrl.dev/v1alpha1",
        "kind": "VisionRLJob",
        "metadata": {"name": "true-width"},
        "spec": {
            "algorithm": {"loss": "gspo", "advantage": "outcome"},
            "model": {"base": str(model), "dtype": "bfloat16", "supportsVision": True, "lora": {"r": 16, "alpha": 32}},
            "inference": {"vllm": {"maxModelLen": 4096, "maxNumSeqs": 4, "limitMmPerPrompt": {"image": 1}}},
            "rollout": {
                "maxConcurrent": 2,
                "envConfig": {"imageSize": 288},
                "policyConfig": {"temperature": 0.6, "maxTokens": 16, "maxLlmCalls": 1, "turnTimeoutS": 900},
            },
            # An untrained model answers nonsense: every decision is invalid, and that must not end the run.
            "training": {
                "iterations": ITERATIONS,
                "maxStaleness": 1,
                "groupsPerIteration": 1,
                "groupSize": 2,
                "microBatchSize": 2,
                "guards": {"maxInvalidRate": None},
            },
            "evaluation": {"episodes": 0},
        },
    }
    return run_whole(Job.model_validate(document), folder, REWARDED_RUN)


def test_serving_and_training_agree_on_what_was_sampled(run: Path) -> None:
    """Also where the version that sampled is the one before."""
    found = records(run)
    assert [record["staleness"] for record in found] == [0, 1, 1]
    for record in found:
        assert record["episodes"] == 2
        assert record["turns"] == 2
        assert 0 <= record["mismatch_kl"] < 0.01


def test_the_update_is_taken_and_moves_every_linear_layer(run: Path) -> None:
    for record in records(run):
        assert (record["updates"], record["skipped_updates"], record["masked_rate"]) == (1, 0, 0)
        assert record["grad_norm"] > 0
    first, *_ = sorted((run / "adapters").iterdir())
    assert first.name.startswith("true-width-v000001"), "that of the first update"
    assert all(weight.any() for weight in set_of_b(first).values())


def test_the_last_policy_is_served_and_proven(run: Path) -> None:
    policy = json.loads((run / "status.json").read_text())["policy"]
    assert policy["serving"] == policy["trained"]
    assert policy["trained"].startswith(f"true-width-v{ITERATIONS:06d}")


def test_the_adapter_has_every_linear_layer(run: Path) -> None:
    newest = max((run / "adapters").iterdir())
    with safe_open(newest / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert len(names) == LAYERS * len(LINEAR_LAYERS) * 2
    assert {kind for kind in LINEAR_LAYERS if any(f".{kind}.lora_B" in name for name in names)} == set(LINEAR_LAYERS)


def set_of_b(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's second matrices, all zero before the first update."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if ".lora_B." in name}  # noqa: SIM118
