"""How many failures of a component a job survives: a rate, whatever the component does at this moment."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_cluster import START, FakeCluster, running
from visionrl.job import FailurePolicy
from visionrl.status import ComponentFailure
from visionrl_core.clock import moment
from visionrl_core.observed import ObservedComponent
from visionrl_core.policies import ledger
from visionrl_core.policies.failure import Failure

NOW = datetime(2026, 6, 1, tzinfo=UTC)
POLICY = FailurePolicy()
CRASH = Failure("inference", 1, "Error")


def crash_and_recover(cluster: FakeCluster) -> None:
    cluster.crash("inference", 137, "OOMKilled")
    cluster.reconcile()
    cluster.servers_ready()
    cluster.reconcile()


def test_four_restarts_in_a_month_do_not_fail_a_job() -> None:
    cluster = running()
    for _ in range(4):
        cluster.wait(7 * 86_400)
        crash_and_recover(cluster)
    assert cluster.status.phase == "Running"


def test_a_server_that_crashes_every_quarter_of_an_hour_fails_the_job() -> None:
    """It is up in between, so the kubelet's back-off starts over each time."""
    cluster = running()
    for _ in range(7):
        cluster.wait(900)
        crash_and_recover(cluster)
    assert cluster.status.phase == "Failed"
    assert cluster.status.reason.startswith("inference: exit code 137 (OOMKilled); failure 7 within")


def test_what_is_away_for_ten_minutes_does_not_fail_a_job() -> None:
    """A trainer that cannot load its model ends at once, and is started again after a delay that doubles."""
    cluster, began = running(), START
    while cluster.status.phase != "Failed":
        cluster.trainer_ends(1)
        cluster.reconcile()
        cluster.deletions_complete()
        while cluster.status.phase == "Restarting" and cluster.current() is None:
            cluster.wait(10)
            cluster.reconcile()
        cluster.trainer_starts()
        cluster.reconcile()
    assert cluster.now - began >= timedelta(minutes=10)


def test_sixty_restarts_within_an_hour_that_nobody_watched_fail_a_job_that_looks_healthy() -> None:
    cluster = running()
    cluster.wait(3600)
    ended = cluster.now - timedelta(seconds=30)
    cluster.inference = replace(
        cluster.inference, ready=True, restarts=60, ends=60, exit_code=1, exit_reason="Error", ended=ended
    )
    cluster.reconcile()
    assert cluster.status.phase == "Failed"


def test_four_restarts_within_a_month_that_nobody_watched_do_not() -> None:
    cluster = running()
    cluster.wait(30 * 86_400)
    cluster.inference = replace(
        cluster.inference, ready=True, restarts=4, ends=4, exit_code=1, exit_reason="Error", ended=cluster.now
    )
    cluster.reconcile()
    assert cluster.status.phase == "Running"


def test_trainers_crashes_are_forgotten_too() -> None:
    cluster = running()
    for _ in range(6):
        cluster.wait(2 * 86_400)
        cluster.trainer_ends(1)
        cluster.reconcile()
        cluster.next_attempt_starts(after=300)
        assert cluster.status.phase == "Running"
    assert cluster.status.restarts == 6


@pytest.mark.parametrize("reason", ["UnexpectedAdmissionError", "OutOfnvidia.com/gpu", "OutOfcpu", "NodeAffinity"])
def test_a_pod_that_the_kubelet_rejects_does_not_count(reason: str) -> None:
    """After a node's reboot the device plugin comes up later than the kubelet."""
    cluster = running()
    for _ in range(8):
        for number, run in cluster.trainers.items():
            state = ObservedComponent(pods=1, exit_reason=reason, reason=reason, message="no healthy devices present")
            cluster.trainers[number] = replace(run, outcome="Failed", state=state)
        cluster.reconcile()
        cluster.deletions_complete()
        cluster.wait(300)
        cluster.reconcile()
    assert not cluster.status.finished
    assert cluster.status.restarts == 0
    assert {entry.type for entry in cluster.status.failures} == {"Rejected"}


def test_the_status_shows_what_ended_and_of_which_kind() -> None:
    cluster = running()
    crash_and_recover(cluster)
    cluster.trainer_ends(137, "Evicted")
    cluster.reconcile()
    shown = [(entry.component, entry.type, entry.counted, entry.cause) for entry in cluster.status.failures]
    assert shown == [
        ("inference", "Crashed", True, "inference: exit code 137 (OOMKilled)"),
        ("trainer", "Disrupted", False, "trainer: exit code 137 (Evicted)"),
    ]


def test_what_is_in_the_ledger_is_not_entered_again() -> None:
    cluster = running()
    cluster.crash("inference", 1)
    cluster.reconcile()
    before = cluster.status.failures
    for _ in range(3):
        cluster.wait(10)
        cluster.reconcile()
    assert cluster.status.failures == before


def test_a_pod_that_was_quiet_for_long_is_not_counted_from_its_beginning() -> None:
    """All its entries but the newest have left the window: the newest says where the count continues."""
    cluster = running()
    for _ in range(3):
        crash_and_recover(cluster)
        cluster.wait(10_000)
    cluster.wait(86_400)
    crash_and_recover(cluster)
    assert cluster.status.phase == "Running"
    assert ledger.counted(cluster.status.failures, "inference", POLICY, cluster.now) == 1


gaps = st.lists(st.integers(0, 40_000), max_size=60)


@given(gaps, st.booleans())
def test_the_ledger_stays_small_and_counts_at_least_what_is_in_the_window(gaps: list[int], counts: bool) -> None:
    entries: list[ComponentFailure] = []
    times, now = [], NOW
    failed = CRASH if counts else Failure("inference", 137, "Evicted")
    for number, gap in enumerate(gaps, start=1):
        now += timedelta(seconds=gap)
        times.append(now)
        entry = ledger.entry_of(failed, POLICY, now, instance="pod", ends=number)
        entries = ledger.with_entry(entries, entry, POLICY, now)
        assert len(entries) <= ledger.KEPT_PER_COMPONENT
        assert entries == sorted(entries, key=lambda kept: moment(kept.at))
        in_window = sum(time >= now - ledger.window(POLICY) for time in times)
        found = ledger.counted(entries, "inference", POLICY, now)
        # Merged entries are as young as the youngest of them: never too few, and exact while nothing was merged.
        assert found >= in_window if counts else found == 0
        if counts and number <= ledger.KEPT_PER_COMPONENT:
            assert found == in_window
        assert ledger.new_end(entries, "inference", ObservedComponent(instance="pod", ends=number), POLICY, now) is None
