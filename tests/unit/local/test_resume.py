"""Continuing a run, and time: what a stop, a kill, a night and a clock that jumps mean for a job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.jobs import job
from visionrl.status import Attempt, Condition, JobStatus
from visionrl_core.clock import moment, stamp
from visionrl_core.policies import failure
from visionrl_core.policies.lifecycle import active_seconds
from visionrl_local.clock import Clock
from visionrl_local.folder import LocalError
from visionrl_local.resume import after_jump, check_same_job, interrupted, resumed

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def finished(type_: str) -> JobStatus:
    start = stamp(NOW - HOUR)
    end = Condition.model_validate({"type": type_, "status": "True", "reason": "R", "last_transition_time": start})
    entry = Attempt(number=2, started=start, ended=start)
    return JobStatus(
        attempt=2, restarts=2, conditions=[end], attempts=[entry], completion_time=start, active_seconds=3600
    )


def test_a_complete_run_has_nothing_to_do() -> None:
    assert resumed(finished("Complete"), job(), job(), NOW, NOW) is None
    assert resumed(finished("Complete"), None, job(), NOW, NOW) is None


@pytest.mark.parametrize(
    ("status", "iterations"), [(finished("Complete"), 4), (finished("Failed"), 3)], ids=["more iterations", "failed"]
)
def test_a_finished_run_is_opened_again_with_a_new_allowance(status: JobStatus, iterations: int) -> None:
    again = resumed(status, job(), job({"training.iterations": iterations}), NOW, NOW)
    assert again is not None
    assert not again.finished
    assert (again.attempt, again.restarts, again.completion_time) == (3, 0, None)
    assert (again.active_seconds, again.active_since) == (0, None)  # else its deadline had passed already


def test_a_run_that_was_cut_off_gets_another_attempt() -> None:
    cut = JobStatus(attempts=[Attempt(number=0, started=stamp(NOW - HOUR))])
    again = resumed(cut, job(), job(), NOW, NOW)
    assert again is not None
    assert (again.attempt, again.restarts, again.attempts[0].cause) == (1, 0, "interrupted")


def test_another_job_is_refused_by_field() -> None:
    check_same_job(None, job())
    check_same_job(job(), job({"training.iterations": 5}))
    with pytest.raises(LocalError, match=r"another spec\.model\.lora\.r; --fresh"):
        check_same_job(job(), job({"model.lora": {"r": 4}}))


# --- time in which nobody works on the job


def running(since: datetime) -> JobStatus:
    return JobStatus(attempts=[Attempt(number=0, started=stamp(since))], active_since=stamp(since), active_seconds=10)


def test_a_night_between_two_runs_is_no_active_time() -> None:
    started = NOW - 12 * HOUR
    stopped = interrupted(running(started), started + timedelta(minutes=5))
    assert (stopped.active_since, stopped.active_seconds) == (None, 310)
    again = resumed(stopped, job(), job(), NOW, started)
    assert again is not None
    assert active_seconds(again, NOW) == 310


def test_a_run_that_was_killed_was_active_as_long_as_its_executor_lived() -> None:
    started = NOW - 12 * HOUR
    again = resumed(running(started), job(), job(), NOW, last_alive=started + timedelta(minutes=5))
    assert again is not None
    assert active_seconds(again, NOW) == 310
    assert moment(again.attempts[0].ended or "") == started + timedelta(minutes=5)


@given(st.integers(-100_000, 100_000), st.integers(-100_000, 100_000))
def test_no_active_time_is_negative_or_longer_than_it_can_have_been(ahead: int, alive: int) -> None:
    """The clock, or the file system's, was ahead or behind."""
    status = running(NOW + timedelta(seconds=ahead))
    again = resumed(status, job(), job(), NOW, NOW + timedelta(seconds=alive))
    assert again is not None
    assert 10 <= active_seconds(again, NOW) <= 10 + max(0, -ahead)


def test_a_failure_in_the_future_delays_the_next_attempt_by_its_back_off_only() -> None:
    future = Attempt(number=0, started=stamp(NOW + 11 * HOUR), ended=stamp(NOW + 12 * HOUR), cause="trainer: exit 1")
    again = resumed(JobStatus(attempt=1, attempts=[future]), job(), job(), NOW, NOW)
    assert again is not None
    policy = job({"failurePolicy.backoffSeconds": 7}).spec.failure_policy
    retry_at = moment(again.attempts[-1].ended or "") + failure.backoff(policy, again.attempts)
    assert retry_at <= NOW + timedelta(seconds=7)


# --- a clock that jumps while the job runs


class TwoClocks:
    """A wall clock that can be set, and a steady one."""

    def __init__(self) -> None:
        self.wall, self.steady = NOW, 1000.0
        self.clock = Clock(lambda: self.wall, lambda: self.steady)

    def run(self, seconds: float, wall: float | None = None) -> timedelta:
        self.steady += seconds
        self.wall += timedelta(seconds=seconds if wall is None else wall)
        return self.clock.jump()


def test_a_jump_is_reported_once_and_small_corrections_are_none() -> None:
    clocks = TwoClocks()
    assert clocks.run(3600) == timedelta(0)
    assert clocks.run(1, wall=1.5) == timedelta(0)
    assert clocks.run(1, wall=1 + 12 * 3600) == timedelta(hours=12, seconds=0.5)
    assert clocks.run(1) == timedelta(0)
    assert clocks.run(1, wall=1 - 12 * 3600) == -12 * HOUR
    assert clocks.run(0, wall=8 * 3600) == 8 * HOUR  # the machine slept


@pytest.mark.parametrize("jump", [12 * HOUR, -12 * HOUR], ids=["ahead", "back"])
def test_a_jump_changes_no_duration(jump: timedelta) -> None:
    policy = job({"failurePolicy.backoffSeconds": 7}).spec.failure_policy
    failed = Attempt(number=0, started=stamp(NOW - timedelta(seconds=90)), ended=stamp(NOW), cause="trainer: exit 1")
    status = JobStatus(attempts=[failed], active_since=stamp(NOW - timedelta(seconds=100)))
    moved = after_jump(status, jump)
    assert active_seconds(moved, NOW + jump) == active_seconds(status, NOW) == 100
    assert moment(moved.attempts[-1].ended or "") - jump == NOW
    assert failure.backoff(policy, moved.attempts) == failure.backoff(policy, status.attempts)


def test_a_jump_does_not_make_a_crash_loop_healthy() -> None:
    """An attempt of two seconds stays one of two seconds when the clock is set while it runs."""
    live = JobStatus(attempts=[Attempt(number=0, started=stamp(NOW))])
    moved = after_jump(live, 12 * HOUR)
    assert moment(moved.attempts[-1].started) == NOW + 12 * HOUR
