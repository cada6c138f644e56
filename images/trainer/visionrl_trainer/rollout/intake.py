"""From the task app's answers to training samples: exactly what was sampled, or a refusal that says why.

Whatever these checks let pass can be computed with: ids that the vocabulary has, placeholders where frames are,
logprobs that a sampled token can have, frames of the job's size, finite rewards.
"""

from __future__ import annotations

import base64
import itertools
import struct
from collections.abc import Mapping, Sequence

from visionrl.frames import decode_png, frame_hash
from visionrl.rollout import Decision, RolloutRequest, RolloutResponse
from visionrl_trainer.rollout.batch import Answer, EpisodeSamples, Frame, ImageTokens, Sample
from visionrl_trainer.rollout.client import AnswerRejected

TRUNCATED = "max_ops"
"""The abort reason that is a limit of the job, not a failure: the episode is trained on as far as it was played."""
LEAST_LOGPROB = -50.0
"""Among all tokens that are ever sampled, none has a probability of e⁻⁵⁰."""
ROUNDING = 1e-3
"""A logprob may exceed 0 by rounding."""
LARGEST_REWARD = 1e9
"""Squares and sums of such rewards are still far from the limits of float32."""


def failure(response: RolloutResponse) -> str | None:
    """Why an episode was aborted by what is no limit of the job; None for an episode that counts as it was played."""
    if not response.aborted or response.abort_reason == TRUNCATED:
        return None
    return f"{response.abort_reason}: {response.abort_message}"


def read_episode(
    response: RolloutResponse, request: RolloutRequest, expect: ImageTokens, context: int, frames: dict[str, Frame]
) -> EpisodeSamples:
    """Check a played episode and return its samples; its frames are added to ``frames``, which threads may share.

    ``context`` is the longest sequence that the server computes, in tokens. Raises
    :class:`visionrl_trainer.rollout.client.AnswerRejected`.
    """
    if response.run_id != request.run_id:
        raise AnswerRejected(f"the answer is that of {response.run_id}")
    if len(response.trajectories) != 1 or not response.metrics.episode_returns:
        raise AnswerRejected(f"{len(response.trajectories)} trajectories with {_returns(response)} instead of one")
    decisions = response.trajectories[0].decisions
    if not 1 <= len(decisions) <= request.policy.config.max_llm_calls:
        raise AnswerRejected(f"{len(decisions)} decisions; maxLlmCalls is {request.policy.config.max_llm_calls}")
    for digest in {digest: None for decision in decisions for digest in decision.images}:
        if digest not in frames:
            frames[digest] = _checked_frame(digest, response.images.get(digest), expect.image_size)
    rewards = tuple(decision.reward.total for decision in decisions)
    numbers = (*rewards, response.metrics.episode_returns[0])
    if not all(abs(number) <= LARGEST_REWARD for number in numbers):
        raise AnswerRejected("a reward or return is not a finite number of sensible size")
    samples = [
        read_sample(decision, index, request, expect, context, frames) for index, decision in enumerate(decisions)
    ]
    return EpisodeSamples(
        seed=request.env.seed,
        samples=tuple(samples),
        rewards=rewards,
        states=tuple(decision.state_hash for decision in decisions),
        score=response.metrics.episode_returns[0],
        invalid=sum(not decision.valid for decision in decisions),
        run_id=request.run_id,
        answers=tuple(
            Answer(decision.text, tuple(decision.actions), tuple(decision.unlocked), decision.valid, decision.error)
            for decision in decisions
        ),
    )


def read_sample(
    decision: Decision,
    index: int,
    request: RolloutRequest,
    expect: ImageTokens,
    context: int,
    frames: Mapping[str, Frame],
) -> Sample:
    """The episode's decision at ``index`` as a sample. Raises
    :class:`visionrl_trainer.rollout.client.AnswerRejected`."""
    prompt, completion, logprobs = decision.prompt_token_ids, decision.token_ids, decision.logprobs
    try:
        if decision.index != index:
            raise AnswerRejected(f"its index is {decision.index}")
        if decision.model != request.policy.config.model:
            raise AnswerRejected(f"{decision.model!r} answered, but {request.policy.config.model!r} was asked")
        if not prompt or not completion or not logprobs:
            raise AnswerRejected("no token ids or logprobs")
        _check_lengths(prompt, completion, logprobs, request.policy.config.max_tokens, context)
        _check_vocabulary([*prompt, *completion], expect)
        _check_answer(completion, logprobs, expect)
        _check_placeholders(prompt, len(decision.images), expect)
    except AnswerRejected as error:
        raise AnswerRejected(f"decision {index}: {error}") from None
    return Sample(tuple(prompt), tuple(completion), tuple(logprobs), tuple(decision.images), decision.model)


def _check_lengths(
    prompt: Sequence[int], completion: Sequence[int], logprobs: Sequence[float], max_tokens: int, context: int
) -> None:
    if len(completion) != len(logprobs):
        raise AnswerRejected(f"{len(completion)} tokens, but {len(logprobs)} logprobs")
    if len(completion) > max_tokens:
        raise AnswerRejected(f"{len(completion)} tokens; maxTokens is {max_tokens}")
    if len(prompt) + len(completion) > context:
        raise AnswerRejected(f"{len(prompt)} + {len(completion)} tokens; vllm.maxModelLen is {context}")


def _check_answer(completion: Sequence[int], logprobs: Sequence[float], expect: ImageTokens) -> None:
    if found := expect.banned_ids.intersection(completion):
        raise AnswerRejected(f"sampled banned token {min(found)}")
    for logprob in logprobs:
        if not LEAST_LOGPROB <= logprob <= ROUNDING:
            raise AnswerRejected(f"a sampled token's logprob is {logprob:.4g}, outside of [{LEAST_LOGPROB:g}, 0]")


def _check_placeholders(prompt: Sequence[int], images: int, expect: ImageTokens) -> None:
    placeholders = prompt.count(expect.placeholder_id)
    if placeholders != expect.per_image * images:
        raise AnswerRejected(f"{placeholders} visual tokens for {images} images of {expect.per_image} each")
    runs = [len(list(run)) for token, run in itertools.groupby(prompt) if token == expect.placeholder_id]
    if any(run != expect.per_image for run in runs):
        raise AnswerRejected(f"visual tokens in runs of {runs} instead of {expect.per_image} for each image")


def _check_vocabulary(ids: Sequence[int], expect: ImageTokens) -> None:
    for token in (min(ids), max(ids)):
        if not 0 <= token < expect.vocabulary:
            raise AnswerRejected(f"token id {token} is not one of the model's {expect.vocabulary}")


def _checked_frame(digest: str, encoded: str | None, size: int) -> Frame:
    where = f"image {digest[:12]}"
    if encoded is None:
        raise AnswerRejected(f"{where} was not sent")
    try:
        data = base64.b64decode(encoded, validate=True)
        # The header first: a small file can be a picture of a gigabyte.
        if len(data) >= 24 and (found := struct.unpack(">II", data[16:24])) != (size, size):
            raise AnswerRejected(f"{where}: {found[0]} × {found[1]} pixels instead of {size} × {size}")
        frame = decode_png(data)
    except AnswerRejected:
        raise
    except ValueError as error:
        raise AnswerRejected(f"{where}: {error}") from error
    if (hashed := frame_hash(frame)) != digest:
        raise AnswerRejected(f"{where}: its pixels hash to {hashed[:12]}")
    return frame


def _returns(response: RolloutResponse) -> str:
    return f"{len(response.metrics.episode_returns)} returns"
