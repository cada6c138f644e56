"""Only what agrees with itself is trained on."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionrl.frames import frame_hash
from visionrl.rollout import Decision, Metrics, RewardSplit, RolloutResponse, Trajectory
from visionrl_trainer.rollout.batch import (
    EpisodeSamples,
    ImageTokens,
    SampleRejected,
    read_episode,
)

FRAME = np.full((144, 144, 3), 9, dtype=np.uint8)
DIGEST = frame_hash(FRAME)
EXPECT = ImageTokens(placeholder_id=5, per_image=2, banned_ids=frozenset({5, 6}))


def png(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decision(**changes: Any) -> Decision:
    known: dict[str, Any] = {
        "index": 0,
        "images": [DIGEST],
        "text": "",
        "tool_calls": [],
        "valid": True,
        "actions": ["noop"],
        "unlocked": [],
        "reward": RewardSplit(event=0.0),
        "done": False,
        "model": "crafter-v000001",
        "prompt_token_ids": [1, 5, 5, 2],
        "token_ids": [3, 4],
        "logprobs": [-0.5, -0.25],
        "state_hash": "s",
    }
    return Decision(**{**known, **changes})


def response(decisions: list[Decision], images: dict[str, str] | None = None, score: float = 0.0) -> RolloutResponse:
    trajectory = Trajectory(
        env_id="e",
        policy_id="p",
        inference_url="",
        length=len(decisions),
        steps=[],
        final={},
        decision_samples=[],
        decisions=decisions,
    )
    metrics = Metrics(
        episode_returns=[score],
        mean_return=score,
        num_steps=1,
        num_episodes=1,
        outcome_score=score,
        events_score=score,
        details={},
    )
    pictures = {DIGEST: png(FRAME)} if images is None else images
    return RolloutResponse(run_id="r", trajectories=[trajectory], metrics=metrics, images=pictures, ops_executed=2)


def read(answer: RolloutResponse) -> EpisodeSamples:
    return read_episode(answer, seed=1, expect=EXPECT, frames={})


def test_a_sound_episode_is_taken_exactly() -> None:
    frames: dict[str, np.ndarray] = {}
    episode = read_episode(response([decision()]), seed=1, expect=EXPECT, frames=frames)
    (sample,) = episode.samples
    assert sample.prompt_ids == (1, 5, 5, 2)
    assert sample.completion_ids == (3, 4)
    assert sample.logprobs == (-0.5, -0.25)
    assert (frames[DIGEST] == FRAME).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": None}, "no token ids"),
        ({"logprobs": None}, "no token ids or logprobs"),
        ({"logprobs": [-0.5]}, "2 tokens, but 1 logprobs"),
        ({"logprobs": [-0.5, float("nan")]}, "not finite"),
        ({"token_ids": [3, 6]}, "banned token 6"),
        ({"prompt_token_ids": [1, 5, 2]}, "1 visual tokens for 1 images of 2 each"),
        ({"images": ["f" * 64]}, "was not sent"),
        ({"images": [DIGEST, DIGEST]}, "2 visual tokens for 2 images"),
    ],
)
def test_a_decision_that_disagrees_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleRejected, match=message):
        read(response([decision(**changes)]))


def test_pixels_that_are_not_those_of_the_hash_are_refused() -> None:
    with pytest.raises(SampleRejected, match="hash to"):
        read(response([decision()], images={DIGEST: png(FRAME + 1)}))


def test_a_cut_off_picture_is_refused() -> None:
    whole = base64.b64decode(png(FRAME))
    with pytest.raises(SampleRejected, match="image"):
        read(response([decision()], images={DIGEST: base64.b64encode(whole[:-20]).decode()}))
