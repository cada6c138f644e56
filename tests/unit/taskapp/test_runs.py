"""One run id, one episode."""

import asyncio
from typing import Literal, Never

import pytest

from visionrl.rollout import RolloutRequest
from visionrl_taskapp.rollouts.runs import KEEP_S, Played, RunConflictError, Runs


def request(run_id: str = "a", mode: Literal["rl", "eval"] = "rl") -> RolloutRequest:
    return RolloutRequest(run_id=run_id, mode=mode)


class Plays:
    def __init__(self, size: int = 10, keep: bool = True) -> None:
        self.count, self.size, self.keep = 0, size, keep
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def __call__(self, _request: RolloutRequest) -> Played:
        self.count += 1
        number = self.count
        self.begun.set()
        await self.gate.wait()
        return Played(str(number).encode().rjust(self.size), self.keep)


async def test_the_same_request_again_gets_the_same_episode() -> None:
    runs, plays = Runs(), Plays()
    assert await runs.response(request(), plays) == await runs.response(request(), plays)
    assert plays.count == 1


async def test_a_request_in_flight_is_joined() -> None:
    runs, plays = Runs(), Plays()
    plays.gate.clear()
    both = [asyncio.create_task(runs.response(request(), plays)) for _ in range(2)]
    await plays.begun.wait()
    plays.gate.set()
    assert len(set(await asyncio.gather(*both))) == 1
    assert (plays.count, runs.playing) == (1, 0)


@pytest.mark.parametrize("finished", [True, False])
async def test_another_request_under_a_used_run_id_is_refused(finished: bool) -> None:
    runs, plays = Runs(), Plays()
    if not finished:
        plays.gate.clear()
    first = asyncio.create_task(runs.response(request(), plays))
    if finished:
        await first
    else:
        await plays.begun.wait()
    with pytest.raises(RunConflictError, match="'a'"):
        await runs.response(request(mode="eval"), plays)
    plays.gate.set()
    await first


async def test_a_client_that_goes_does_not_end_the_episode() -> None:
    runs, plays = Runs(), Plays()
    plays.gate.clear()
    leaving = asyncio.create_task(runs.response(request(), plays))
    await plays.begun.wait()
    leaving.cancel()
    plays.gate.set()
    assert (await runs.response(request(), plays)).strip() == b"1"


async def test_a_failed_run_may_be_tried_again() -> None:
    runs, plays = Runs(), Plays()

    async def fail(_request: RolloutRequest) -> Never:
        raise ValueError("no server")

    with pytest.raises(ValueError, match="no server"):
        await runs.response(request(), fail)
    assert (await runs.response(request(), plays)).strip() == b"1"


async def test_finished_answers_are_kept_within_the_bound_the_last_asked_for_longest() -> None:
    runs, plays = Runs(cache_bytes=30), Plays(size=10)
    for name in "abc":
        await runs.response(request(name), plays)
    await runs.response(request("a"), plays)
    await runs.response(request("d"), plays)
    assert plays.count == 4
    await runs.response(request("a"), plays)
    assert plays.count == 4, "a was asked for again and stayed"
    await runs.response(request("b"), plays)
    assert plays.count == 5, "b was the oldest and went"


async def test_a_forgotten_run_is_played_anew() -> None:
    runs, plays = Runs(), Plays()
    await runs.response(request(), plays)
    assert runs.forget("a") is True
    assert runs.forget("a") is False
    await runs.response(request(), plays)
    assert plays.count == 2


async def test_an_aborted_run_is_shared_while_it_is_in_flight_and_played_again_afterwards() -> None:
    runs, plays = Runs(), Plays(keep=False)
    plays.gate.clear()
    both = [asyncio.create_task(runs.response(request(), plays)) for _ in range(2)]
    await plays.begun.wait()
    plays.gate.set()
    assert len(set(await asyncio.gather(*both))) == 1
    plays.keep = True
    assert (await runs.response(request(), plays)).strip() == b"2"
    assert (await runs.response(request(), plays)).strip() == b"2"


async def test_an_aborted_run_leaves_its_run_id_to_any_request() -> None:
    runs, plays = Runs(), Plays(keep=False)
    await runs.response(request(), plays)
    await runs.response(request(mode="eval"), plays)
    assert plays.count == 2


async def test_no_response_is_kept_for_ever() -> None:
    now = 0.0
    runs, plays = Runs(clock=lambda: now), Plays()
    await runs.response(request(), plays)
    now = KEEP_S
    await runs.response(request(), plays)
    assert plays.count == 1
    now = KEEP_S + 1
    await runs.response(request(), plays)
    assert plays.count == 2
