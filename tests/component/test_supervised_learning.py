"""Supervised learning from the player to the model: eval writes traces, filter makes data, train learns to look."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from visionrl_cli import main

pytestmark = [pytest.mark.vision, pytest.mark.slow]

JOB = """\
apiVersion: visionrl.dev/v1alpha1
kind: VisionRLJob
metadata: {name: imitate}
spec:
  model: {base: tiny, dtype: float32}
  rollout:
    maxConcurrent: 8
    envConfig: {imageSize: 144}
    policyConfig: {systemPrompt: Play Crafter., maxTokens: 16, maxLlmCalls: 30, maxActions: 4, historyTurns: 0}
  training:
    iterations: 1
    warmStart: {episodes: 1, steps: 600, optimizer: muon}
"""
EPISODES = 250
NATS_BELOW_BLIND = 1.0


def blind_loss(file: Path) -> float:
    """Entropy of the answers: the least that a model can reach on them that does not look."""
    answers = Counter(json.loads(line)["messages"][-1]["content"] for line in file.open())
    return -sum(count / answers.total() * math.log(count / answers.total()) for count in answers.values())


def test_the_loss_falls_well_below_that_of_a_model_that_does_not_look(tmp_path: Path) -> None:
    job, data, out = tmp_path / "job.yaml", tmp_path / "data", tmp_path / "out"
    job.write_text(JOB)
    seeds, perturbed = f"1000000-{1000000 + EPISODES - 1}", '{"perturbation": 0.25}'
    play = ["eval", "--policy", "crafter-scripted", "--config", str(job), "--seeds", seeds]
    assert main([*play, "--policy-config", perturbed, "--trace-db", str(tmp_path)]) == 0
    assert main(["filter", str(tmp_path / "traces.db"), "--output-dir", str(data), "--val", "0.06"]) == 0
    files = ["--data", str(data / "train.jsonl"), "--val", str(data / "val.jsonl")]
    assert main(["train", "--config", str(job), *files, "--output", str(out)]) == 0

    blind = blind_loss(data / "train.jsonl")
    reached = json.loads((out / "summary.json").read_text())["validation_loss"]
    print(f"blind {blind:.2f}, reached {reached:.2f} nats per decision")
    assert reached < blind - NATS_BELOW_BLIND
