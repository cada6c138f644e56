"""A cluster in memory: takes what ``decide`` orders, and fails as clusters do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tests.support.fake_api import merged
from tests.support.fake_kueue import FakeKueue, takes_quota, true, webhook
from tests.support.jobs import document
from visionrl.job import Job
from visionrl.status import JobStatus, Progress, TrainerReport
from visionrl_core.decide import DesiredState, decide
from visionrl_core.kueue import Flavor, Queue, workload_view
from visionrl_core.manifests.common import ATTEMPT_LABEL, KEY_ANNOTATION, Manifest, Owner, Ref, key_digest, ref
from visionrl_core.manifests.config import JOB_FILE, key_in, with_fresh_key
from visionrl_core.observed import (
    NO_RULES,
    ClusterRules,
    ExportRun,
    JobObject,
    Observed,
    ObservedComponent,
    StuckPod,
    TrainerRun,
)

OWNER = Owner("demo", "default", "uid-1")
TASK_APP, INFERENCE = Ref("Deployment", "demo-taskapp"), Ref("Deployment", "demo-inference")
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class FakeCluster:
    """Objects, pods and the job's status; the executor's writes may stop after any of them."""

    spec: dict[str, Any] = field(default_factory=dict)
    now: datetime = START
    generation: int = 1
    status: JobStatus = field(default_factory=JobStatus)
    objects: dict[Ref, Manifest] = field(default_factory=dict)
    task_app: ObservedComponent = field(default_factory=ObservedComponent)
    inference: ObservedComponent = field(default_factory=ObservedComponent)
    trainers: dict[int, TrainerRun] = field(default_factory=dict)
    orphans: int = 0
    report: TrainerReport | None = None
    idle: timedelta = timedelta(0)
    stuck: tuple[StuckPod, ...] = ()
    deleting: frozenset[Ref] = frozenset()
    exports: dict[str, ExportRun] = field(default_factory=dict)
    job_deleted: bool = False
    rules: ClusterRules = NO_RULES
    kueue: FakeKueue | None = None
    """Where the job names a queue."""
    workload: Manifest | None = None
    instances: int = 0
    """Server pods that were made so far."""
    written: list[JobStatus] = field(default_factory=list)
    """Every status that was written, oldest first."""

    # --- the executor

    def observe(self) -> Observed:
        accepted = self.objects.get(Ref("ConfigMap", "demo-config"))
        return Observed(
            rules=self.rules,
            accepted=Job.model_validate_json(accepted["data"][JOB_FILE]) if accepted else None,
            objects=dict(self.objects),
            deleting=self.deleting,
            exports=dict(self.exports),
            key=self._key(),
            task_app=self.task_app,
            inference=self.inference,
            trainers=tuple(self.trainers[number] for number in sorted(self.trainers)),
            orphaned_trainer_pods=self.orphans,
            stuck=self.stuck,
            report=self.report,
            queue=self._queue(),
            idle=self.idle,
        )

    def _queue(self) -> Queue | None:
        if self.kueue is None:
            return None
        found = workload_view(self.workload) if self.workload is not None else None
        return Queue("kueue.x-k8s.io/v1beta2", found, {self.kueue.flavor: Flavor({"gpu": "h200"})})

    def decide(self, previous: JobStatus | None = None) -> DesiredState:
        job_object = JobObject(OWNER, self.generation, document(self.spec))
        return decide(job_object, self.status if previous is None else previous, self.observe(), self.now)

    def reconcile(self, writes: int = 1000) -> DesiredState:
        """Carry a decision out, dying after so many writes."""
        decision = self.decide()
        if decision.status != self.status and writes > 0:
            self.status, writes = decision.status, writes - 1
            self.written.append(self.status)
        for name in decision.deletions:
            if writes > 0:
                self._delete(name)
                writes -= 1
        for manifest in decision.manifests:
            if writes > 0:
                self._apply(manifest)
                writes -= 1
        if decision.workload_status is not None and self.workload is not None and writes > 0:
            status = merged(self.workload.get("status", {}), decision.workload_status)
            self._write_workload({**self.workload, "status": status})
        self.job_deleted = self.job_deleted or (decision.delete_job and writes > 0)
        if writes > 0 and any(manifest["kind"] == "Secret" for manifest in decision.manifests):
            following = self.reconcile(writes)
            return replace(following, manifests=(*decision.manifests, *following.manifests))
        return decision

    def _write_workload(self, written: Manifest) -> None:
        refusal = webhook(self.workload, written)
        assert refusal is None, refusal
        if (self.workload and takes_quota(self.workload)) and not takes_quota(written):
            assert self.pods() == 0, "quota is given back before the pods have ended"
        self.workload = written

    def _apply(self, manifest: Manifest) -> None:
        name = ref(manifest)
        if name.kind == "Workload":
            assert self.pods() == 0
            self._write_workload(manifest)
            return
        if name.kind in ("Deployment", "Job") and "-export-" not in name.name and self.kueue is not None:
            assert self.workload is not None
            assert true(self.workload, "Admitted")
            assert takes_quota(self.workload)
            assert not true(self.workload, "Evicted")
        self.objects[name] = with_fresh_key(manifest) if name.kind == "Secret" else manifest
        if name.kind == "Job" and "-export-" in name.name:
            assert name.name not in self.exports
            self.exports[name.name] = ExportRun()
        elif name.kind == "Job":
            number = int(manifest["metadata"]["labels"][ATTEMPT_LABEL])
            assert number not in self.trainers, "a Job's template is immutable: it must not be applied again"
            key = manifest["spec"]["template"]["metadata"]["annotations"][KEY_ANNOTATION]
            self.trainers[number] = TrainerRun(number, key=key)
        elif name == Ref("Deployment", "demo-taskapp"):
            self.task_app = ObservedComponent(pods=1, instance=self._instance(), created=self.now)
        elif name == Ref("Deployment", "demo-inference"):
            self.inference = ObservedComponent(pods=1, instance=self._instance(), created=self.now)

    def _key(self) -> str | None:
        secret = self.objects.get(Ref("Secret", "demo-key"))
        return key_digest(key_in(secret)) if secret else None

    def _instance(self) -> str:
        self.instances += 1
        return f"pod-{self.instances}"

    def _delete(self, name: Ref) -> None:
        if name.kind == "Workload":
            assert self.pods() == 0
            self.workload = None
            return
        if name.kind == "Job" and name.name in self.exports:
            del self.exports[name.name], self.objects[name]
            return
        if name.kind == "Job":
            number = int(name.name.rpartition("-")[2])
            self.trainers[number] = replace(self.trainers[number], deleting=True)
            return
        self.objects.pop(name, None)
        if name == Ref("Deployment", "demo-taskapp"):
            self.task_app = ObservedComponent()
        elif name == Ref("Deployment", "demo-inference"):
            self.inference = ObservedComponent()

    # --- the world

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def change(self, spec: dict[str, Any]) -> None:
        self.spec = {**self.spec, **spec}
        self.generation += 1

    def current(self) -> TrainerRun | None:
        return self.trainers.get(self.status.attempt)

    def servers_ready(self) -> None:
        if self.task_app.pods:
            self.task_app = replace(self.task_app, ready=True, reason="", started=self.now)
        if self.inference.pods:
            self.inference = replace(self.inference, ready=True, reason="", started=self.now)

    def crash(self, server: Literal["task_app", "inference"], exit_code: int, reason: str = "Error") -> None:
        """The container ended and the kubelet waits before it starts it again."""
        old: ObservedComponent = getattr(self, server)
        if old.pods:
            crashed = replace(
                old, ready=False, restarts=old.restarts + 1, exit_code=exit_code, exit_reason=reason,
                reason="CrashLoopBackOff", ends=old.ends + 1, ended=self.now,
            )  # fmt: skip
            setattr(self, server, crashed)

    def trainer_starts(self) -> None:
        for number, run in self.trainers.items():
            if run.outcome == "Active" and not run.deleting and run.state.started is None:
                self.trainers[number] = replace(
                    run, state=ObservedComponent(ready=True, pods=1, node="n1", started=self.now)
                )
                self.report, self.idle = None, timedelta(0)

    def next_attempt_starts(self, after: float) -> None:
        """The pods of the one before are gone, and its delay of so many seconds is over."""
        self.deletions_complete()
        self.wait(after)
        self.reconcile()
        self.trainer_starts()
        self.reconcile()

    def trainer_ends(self, exit_code: int, reason: str = "Error", message: str = "") -> None:
        for number, run in self.trainers.items():
            if run.outcome == "Active" and run.state.started is not None:
                state = replace(run.state, ready=False, exit_code=exit_code, exit_reason=reason, message=message)
                self.trainers[number] = replace(run, outcome="Failed" if exit_code else "Succeeded", state=state)

    def deletions_complete(self) -> None:
        """The pods of deleted Jobs are gone."""
        self.orphans = 0
        for number in [number for number, run in self.trainers.items() if run.deleting]:
            del self.trainers[number]
            self.objects.pop(Ref("Job", f"demo-trainer-{number}"), None)

    def someone_deletes_trainer(self) -> None:
        """By hand, in the background: the Job is gone at once, its pod a little later."""
        for number, run in list(self.trainers.items()):
            if not run.deleting:
                self.orphans += run.state.pods
                del self.trainers[number]
                self.objects.pop(Ref("Job", f"demo-trainer-{number}"), None)

    def pods(self) -> int:
        """Pods that have not ended."""
        return self.task_app.pods + self.inference.pods + self.live_trainers()

    def kueue_acts(self) -> None:
        if self.kueue is not None and self.workload is not None:
            self.kueue.clock = self.now
            [self.workload] = self.kueue.step([self.workload]) or [self.workload]

    def live_trainers(self) -> int:
        """Trainer processes that may be writing to the run folder."""
        running = [run for run in self.trainers.values() if run.outcome == "Active" and run.state.pods]
        return len(running) + self.orphans

    def settle(self, rounds: int = 8) -> None:
        """A well-behaved world: everything starts, deletions complete, training succeeds."""
        for _ in range(rounds):
            self.reconcile()
            self.deletions_complete()
            self.reconcile()
            self.kueue_acts()
            self.reconcile()
            self.trainer_starts()
            if (run := self.current()) and run.state.ready:
                self.report = TrainerReport(phase="Training", base_ready=True)
            self.reconcile()
            self.servers_ready()
            self.reconcile()
            if self.task_app.ready and self.inference.ready:
                self.trainer_ends(0)
            self.wait(301)
        self.reconcile()
        self.deletions_complete()


def trainer(attempt: int) -> Ref:
    return Ref("Job", f"demo-trainer-{attempt}")


def running(spec: dict[str, Any] | None = None) -> FakeCluster:
    """A job whose trainer runs."""
    cluster = FakeCluster(spec or {})
    cluster.reconcile()
    return started(cluster)


def started(cluster: FakeCluster) -> FakeCluster:
    """The job's servers become ready, and its trainer runs."""
    cluster.servers_ready()
    cluster.reconcile()
    cluster.trainer_starts()
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    return cluster


def reason(status: JobStatus, condition: str) -> str:
    found = status.condition(condition)  # type: ignore[arg-type]
    assert found is not None, f"no condition {condition}"
    return found.reason


def complete(spec: dict[str, Any]) -> FakeCluster:
    cluster = running(spec)
    cluster.report = TrainerReport(phase="Complete", progress=Progress(iteration=3, total=3))
    cluster.trainer_ends(0)
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.status.phase == "Complete"
    return cluster
