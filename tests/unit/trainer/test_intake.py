"""Only what agrees with itself is trained on."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from visionrl.frames import frame_hash
from visionrl.rollout import (
    Decision,
    EnvSpec,
    Metrics,
    PolicyConfig,
    PolicySpec,
    RewardSplit,
    RolloutRequest,
    RolloutResponse,
    Trajectory,
)
from visionrl_trainer.rollout.batch import EpisodeSamples, ImageTokens
from visionrl_trainer.rollout.client import AnswerRejected
from visionrl_trainer.rollout.intake import failure, read_episode

FRAME = np.full((144, 144, 3), 9, dtype=np.uint8)
DIGEST = frame_hash(FRAME)
EXPECT = ImageTokens(placeholder_id=5, per_image=2, image_size=144, vocabulary=100, banned_ids=frozenset({5, 6}))
VERSION, CONTEXT = "crafter-v000001", 16
REQUEST = RolloutRequest(
    run_id="r",
    mode="rl",
    env=EnvSpec(seed=1),
    policy=PolicySpec(config=PolicyConfig(model=VERSION, max_llm_calls=3, max_tokens=4)),
)


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
        "model": VERSION,
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
    return read_episode(answer, REQUEST, EXPECT, CONTEXT, {})


def test_a_sound_episode_is_taken_exactly() -> None:
    frames: dict[str, np.ndarray] = {}
    episode = read_episode(response([decision()]), REQUEST, EXPECT, CONTEXT, frames)
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
        ({"logprobs": [-0.5, float("nan")]}, r"logprob is nan, outside of \[-50, 0\]"),
        ({"logprobs": [-0.5, float("-inf")]}, "logprob is -inf"),
        ({"logprobs": [-0.5, -60.0]}, "logprob is -60"),
        ({"logprobs": [-0.5, -1.7e308]}, r"logprob is -1.7e\+308"),
        ({"logprobs": [-0.5, 5.0]}, "logprob is 5"),
        ({"token_ids": [3, 100]}, "token id 100 is not one of the model's 100"),
        ({"token_ids": [3, 2**63]}, "token id 9223372036854775808"),
        ({"token_ids": [3, -1]}, "token id -1"),
        ({"prompt_token_ids": [100, 5, 5, 2]}, "token id 100"),
        ({"prompt_token_ids": [1, 5, 2, 5, 3]}, r"visual tokens in runs of \[1, 1\] instead of 2"),
        ({"prompt_token_ids": [1, 5, 5, *[2] * 12]}, "15 \\+ 2 tokens; vllm.maxModelLen is 16"),
        ({"token_ids": [3] * 5, "logprobs": [-0.5] * 5}, "5 tokens; maxTokens is 4"),
        ({"model": "crafter-v000000"}, "'crafter-v000000' answered, but 'crafter-v000001' was asked"),
        ({"model": "base"}, "'base' answered"),
        ({"index": 1}, "decision 0: its index is 1"),
        ({"reward": RewardSplit(event=1e308)}, "not a finite number of sensible size"),
        ({"token_ids": [3, 6]}, "banned token 6"),
        ({"prompt_token_ids": [1, 5, 2]}, "1 visual tokens for 1 images of 2 each"),
        ({"images": ["f" * 64]}, "was not sent"),
        ({"images": [DIGEST, DIGEST]}, "2 visual tokens for 2 images"),
        ({"images": [DIGEST, DIGEST], "prompt_token_ids": [1, 5, 5, 5, 5, 2]}, r"runs of \[4\]"),
    ],
)
def test_a_decision_that_disagrees_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AnswerRejected, match=message):
        read(response([decision(**changes)]))


def test_two_frames_with_text_between_them_are_taken() -> None:
    (sample,) = read(response([decision(images=[DIGEST, DIGEST], prompt_token_ids=[5, 5, 1, 5, 5])])).samples
    assert sample.images == (DIGEST, DIGEST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trajectories": []}, "0 trajectories"),
        ({"run_id": "other"}, "the answer is that of other"),
    ],
)
def test_an_answer_to_something_else_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AnswerRejected, match=message):
        read(response([decision()]).model_copy(update=changes))


def test_an_episode_of_no_or_too_many_decisions_is_refused() -> None:
    with pytest.raises(AnswerRejected, match="0 decisions"):
        read(response([]))
    with pytest.raises(AnswerRejected, match="4 decisions; maxLlmCalls is 3"):
        read(response([decision(index=n) for n in range(4)]))


def test_a_return_that_is_not_finite_is_refused() -> None:
    with pytest.raises(AnswerRejected, match="not a finite number"):
        read(response([decision()], score=float("nan")))


def test_only_a_limit_of_the_job_leaves_an_episode_as_it_was_played() -> None:
    aborted = response([decision()]).model_copy(update={"aborted": True, "abort_message": "why"})
    assert failure(response([decision()])) is None
    assert failure(aborted.model_copy(update={"abort_reason": "max_ops"})) is None
    for reason in ("turn_timeout", "inference_error", "max_time", "cancelled"):
        assert failure(aborted.model_copy(update={"abort_reason": reason})) == f"{reason}: why"


def test_a_frame_of_another_size_is_refused_before_it_is_decoded() -> None:
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (30_000).to_bytes(4, "big") * 2
    bomb = base64.b64encode(header + b"\x08\x02\0\0\0").decode()
    with pytest.raises(AnswerRejected, match="30000 × 30000 pixels instead of 144 × 144"):
        read(response([decision()], images={DIGEST: bomb}))


def test_a_frame_that_no_decision_names_is_not_looked_at() -> None:
    assert read(response([decision()], images={DIGEST: png(FRAME), "f" * 64: "no picture"})).samples


IDS = st.lists(st.integers(-3, 120) | st.integers(-(2**70), 2**70), max_size=20)
NUMBERS = st.floats() | st.floats(-51, 1)


@given(IDS, IDS, st.lists(NUMBERS, max_size=20), st.lists(st.just(DIGEST), max_size=3), NUMBERS)
def test_whatever_is_accepted_can_be_computed_with(
    prompt: list[int], ids: list[int], logprobs: list[float], images: list[str], reward: float
) -> None:
    changes = {"prompt_token_ids": prompt, "token_ids": ids, "logprobs": logprobs, "images": images}
    try:
        (sample,) = read(response([decision(**changes, reward=RewardSplit(event=reward))])).samples
    except AnswerRejected:
        return
    assert all(0 <= token < EXPECT.vocabulary for token in sample.prompt_ids + sample.completion_ids)
    assert not EXPECT.banned_ids & set(sample.completion_ids)
    assert sample.prompt_ids.count(EXPECT.placeholder_id) == EXPECT.per_image * len(sample.images)
    assert len(sample.logprobs) == len(sample.completion_ids) > 0
    assert all(-50 <= logprob <= 1e-3 for logprob in sample.logprobs)


def test_pixels_that_are_not_those_of_the_hash_are_refused() -> None:
    with pytest.raises(AnswerRejected, match="hash to"):
        read(response([decision()], images={DIGEST: png(FRAME + 1)}))


def test_a_cut_off_picture_is_refused() -> None:
    whole = base64.b64decode(png(FRAME))
    with pytest.raises(AnswerRejected, match="image"):
        read(response([decision()], images={DIGEST: base64.b64encode(whole[:-20]).decode()}))
