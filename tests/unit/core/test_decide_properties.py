"""Whatever happens in whatever order, and wherever the operator dies: one trainer at most, and it converges."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.fake_cluster import FakeCluster
from tests.support.fake_kueue import FakeKueue, takes_quota, true
from tests.support.jobs import WARM_START
from visionrl.job import FailurePolicy
from visionrl.status import Condition, JobStatus, TrainerReport
from visionrl_core.accepted import job_of
from visionrl_core.manifests.common import COMPONENTS
from visionrl_core.policies import ledger

PHASES = ("Starting", "WarmStart", "WaitingForInference", "Evaluating", "Training")


class Life(RuleBasedStateMachine):
    """A job's life; ``hypothesis`` chooses what happens next."""

    cluster: FakeCluster

    @initialize(
        warm_start=st.booleans(),
        keep=st.sampled_from(["DeletePods", "KeepAll"]),
        deadline=st.sampled_from([None, 6000]),
        restarts=st.integers(0, 3),
        queued=st.booleans(),
        rounds=st.integers(0, 4),
    )
    def begin(
        self, warm_start: bool, keep: str, deadline: int | None, restarts: int, queued: bool, rounds: int
    ) -> None:
        self.cluster = FakeCluster(
            {
                **(WARM_START if warm_start else {}),
                "lifecycle.cleanupPolicy": keep,
                "lifecycle.activeDeadlineSeconds": deadline,
                "failurePolicy.maxRestarts": restarts,
                **({"queueName": "gpus"} if queued else {}),
            },
            kueue=FakeKueue(pods_ready_timeout=300) if queued else None,
        )
        for _ in range(rounds):
            self.all_goes_well()

    # --- the operator

    @rule(writes=st.integers(0, 12))
    def reconcile_and_die(self, writes: int) -> None:
        self.cluster.reconcile(writes)

    @rule()
    def reconcile(self) -> None:
        self.cluster.reconcile()

    # --- the world

    @rule()
    def all_goes_well(self) -> None:
        cluster = self.cluster
        cluster.reconcile()
        cluster.deletions_complete()
        cluster.kueue_acts()
        cluster.servers_ready()
        cluster.trainer_starts()
        cluster.wait(40)
        cluster.reconcile()

    @rule()
    def servers_ready(self) -> None:
        self.cluster.servers_ready()

    @rule(server=st.sampled_from(["task_app", "inference"]), code=st.sampled_from([1, 137]))
    def server_crashes(self, server: str, code: int) -> None:
        self.cluster.crash(server, code)  # type: ignore[arg-type]

    @rule()
    def trainer_starts(self) -> None:
        self.cluster.trainer_starts()

    @precondition(lambda self: self.cluster.live_trainers())
    @rule(code=st.sampled_from([1, 137, 1, 137, 0, 2]), why=st.sampled_from(["Error", "Evicted", "OOMKilled"]))
    def trainer_ends(self, code: int, why: str) -> None:
        self.cluster.trainer_ends(code, why)

    @rule(slowly=st.booleans())
    def someone_deletes_the_trainer(self, slowly: bool) -> None:
        self.cluster.someone_deletes_trainer()
        if slowly:  # the pod has not ended when everything else would let the next one start
            self.cluster.reconcile()
            self.cluster.wait(300)
            self.cluster.reconcile()
            self.cluster.trainer_starts()

    @rule()
    def deletions_complete(self) -> None:
        self.cluster.deletions_complete()

    @precondition(lambda self: self.cluster.live_trainers())
    @rule(phase=st.sampled_from(PHASES), base_ready=st.booleans())
    def report_arrives(self, phase: str, base_ready: bool) -> None:
        self.cluster.report = TrainerReport.model_validate({"phase": phase, "base_ready": base_ready})

    @rule(seconds=st.sampled_from([1, 10, 300]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.wait(seconds)

    @rule()
    def kueue_acts(self) -> None:
        self.cluster.kueue_acts()

    @precondition(lambda self: self.cluster.workload is not None)
    @rule(what=st.sampled_from(["Preempted", "ClusterQueueStopped", "NodeFailures", "inactive", "active", "deleted"]))
    def someone_touches_the_workload(self, what: str) -> None:
        cluster = self.cluster
        assert cluster.kueue is not None
        assert cluster.workload is not None
        if what == "deleted":
            cluster.workload = None
        elif what in ("inactive", "active"):
            cluster.workload["spec"]["active"] = what == "active"
        elif takes_quota(cluster.workload) and true(cluster.workload, "Admitted"):
            cluster.workload = cluster.kueue.preempt(cluster.workload, what)

    @rule()
    def someone_suspends_or_resumes(self) -> None:
        self.cluster.change({"suspend": not self.cluster.spec.get("suspend", False)})

    @rule()
    def someone_suspends_and_resumes_at_once(self) -> None:
        for suspend in (True, False):
            self.cluster.change({"suspend": suspend})
            self.cluster.reconcile()
        self.cluster.servers_ready()
        self.cluster.reconcile()
        self.cluster.trainer_starts()

    @rule(
        change=st.sampled_from(
            [{"training.iterations": 5}, {"model.lora": {"r": 4}}, {"training.groupSize": 1}, {"training.groupSize": 8}]
        )
    )
    def someone_edits(self, change: dict[str, object]) -> None:
        self.cluster.change(change)

    @precondition(lambda self: self.cluster.status.phase == "Complete")
    @rule(more=st.integers(1, 3))
    def someone_asks_a_complete_job_for_more(self, more: int) -> None:
        self.cluster.change({"training.iterations": self.cluster.spec.get("training.iterations", 3) + more})

    # --- what always holds

    @invariant()
    def one_trainer_at_most(self) -> None:
        if hasattr(self, "cluster"):
            assert self.cluster.live_trainers() <= 1

    @invariant()
    def same_input_same_decision(self) -> None:
        if hasattr(self, "cluster"):
            first = self.cluster.decide()
            assert first == self.cluster.decide()
            assert self.cluster.decide(previous=first.status).status == first.status

    @invariant()
    def status_moves_forward(self) -> None:
        if not hasattr(self, "cluster"):
            return
        history = self.cluster.written
        for before, after in pairwise(history):
            assert after.attempt >= before.attempt
            if not reopened(before, after):
                assert before.restarts <= after.restarts
                assert not before.finished or after.completion_time == before.completion_time
            for old in before.conditions:
                new = after.condition(old.type)
                if new is not None:
                    assert_times(old, new)
        del history[:-1]

    @invariant()
    def a_job_survives_as_many_failures_as_it_may(self) -> None:
        if hasattr(self, "cluster") and not self.cluster.status.finished:
            status, policy = (
                self.cluster.status,
                FailurePolicy(max_restarts=self.cluster.spec["failurePolicy.maxRestarts"]),
            )
            for component in COMPONENTS:
                assert ledger.counted(status.failures, component, policy, self.cluster.now) <= policy.max_restarts

    @invariant()
    def nothing_is_made_for_a_job_that_has_ended(self) -> None:
        if hasattr(self, "cluster") and self.cluster.status.finished:
            decision = self.cluster.decide()
            assert decision.manifests == () or reopened(self.cluster.status, decision.status)

    @invariant()
    def pods_of_a_queued_job_have_quota_or_are_told_to_end(self) -> None:
        if not hasattr(self, "cluster") or self.cluster.kueue is None or self.cluster.status.finished:
            return
        workload = self.cluster.workload
        if workload is None or not takes_quota(workload) or true(workload, "Evicted"):
            left = set(self.cluster.objects) - set(self.cluster.decide().deletions)
            # A trainer that has ended stays for its log.
            running = {
                f"demo-trainer-{number}"
                for number, run in self.cluster.trainers.items()
                if not run.deleting and (run.outcome == "Active" or run.holds_node)
            }
            assert not [ref for ref in left if ref.kind == "Deployment" or ref.name in running]

    # --- where it ends

    def teardown(self) -> None:
        """In a world that behaves, the job comes to its end."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        cluster.change({"training.groupSize": 8, "model.lora": {}})
        if cluster.kueue is not None:  # people look after what Kueue left to them
            cluster.kueue.pods_ready_timeout, cluster.kueue.stopped = None, False
            if cluster.workload is not None:
                cluster.workload["spec"]["active"] = True
        cluster.settle()
        self.status_moves_forward()
        decision = cluster.decide()
        assert decision.status == cluster.status
        assert decision.deletions == ()
        assert cluster.live_trainers() == 0
        servers = cluster.task_app.pods + cluster.inference.pods
        if cluster.status.finished:
            assert servers == 0 or cluster.spec["lifecycle.cleanupPolicy"] == "KeepAll"
        else:
            assert cluster.status.phase == "Suspended"
            assert servers == len(cluster.trainers) == 0
            assert cluster.workload is None


def reopened(before: JobStatus, after: JobStatus) -> bool:
    """Whether a complete job goes on, because somebody raised what it shall reach."""
    old, new = job_of(before.accepted), job_of(after.accepted)
    if before.phase != "Complete" or old is None or new is None:
        return False
    return new.spec.training.iterations > old.spec.training.iterations and after.completion_time is None


def assert_times(old: Condition, new: Condition) -> None:
    assert new.last_transition_time >= old.last_transition_time
    if new.status == old.status:
        assert new.last_transition_time == old.last_transition_time


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=25)
