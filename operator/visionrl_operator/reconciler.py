"""One pass over one job: observe, decide, then write status, deletions, manifests and events."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from visionrl.status import JobStatus
from visionrl_core.attempts import live
from visionrl_core.clock import moment
from visionrl_core.decide import DesiredState, decide
from visionrl_core.events import JobEvent, event_manifest, events_between
from visionrl_core.kinds import EVENT, SECRET, WORKLOAD, Kueue
from visionrl_core.manifests.common import (
    ATTEMPT_LABEL,
    Manifest,
    Owner,
    Ref,
    key_digest,
    labels,
    ref,
    trainer_job_name,
)
from visionrl_core.manifests.config import key_in, key_name
from visionrl_core.manifests.queue import workload_name
from visionrl_core.manifests.storage import claim_of
from visionrl_core.observed import NO_RULES, ClusterRules
from visionrl_core.policies.results import MADE, MADE_ANEW
from visionrl_operator.api import FORBIDDEN, Api, ApiError
from visionrl_operator.apply import Applier, NameTaken
from visionrl_operator.metrics import Metrics
from visionrl_operator.observe import observe, starting_pods, trainer_pod, workload_of
from visionrl_operator.probe import Probes
from visionrl_operator.questions import STARTING_CHECK_SECONDS, Questions
from visionrl_operator.repairs import Repairs
from visionrl_operator.status_writer import read_status, write_status
from visionrl_operator.store import Key, OwnedObject, Store, StoredJob

# A pass that wrote something is followed by one that finds nothing left to do.
CONFIRM_SECONDS = 0.3
# A quiet job is looked at again after this time, more or less: the pass finds what no event reports.
RESYNC_SECONDS = 240.0
RESYNC_JITTER = 0.2
# A Secret is not watched; one that somebody deleted is found missing at the next resync, and much sooner while pods
# start, which may wait for it.
SECRET_CHECK_SECONDS = 180.0
STAGE = {"Secret": 0, "ConfigMap": 0, "ResourceClaimTemplate": 0, "Deployment": 2, "Job": 2}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconcileResult:
    """What a pass did; ``again_after`` seconds time alone may change the decision."""

    wrote: bool
    again_after: float | None = None


@dataclass
class _Memory:
    """What is remembered of a job between passes; all of it can be found out again."""

    uid: str
    repairs: Repairs
    key: str | None = None
    """Digest of its key."""
    key_seen: float = 0.0
    """When its Secret was last read."""
    refusal: str = ""
    """Why its objects could not be made the last time, in the API server's words."""


class Reconciler:
    """``rules`` hold for all jobs; ``kueue`` is given where the cluster has it; ``clock`` returns seconds that never go
    back."""

    def __init__(
        self,
        api: Api,
        store: Store,
        probes: Probes,
        metrics: Metrics,
        rules: ClusterRules = NO_RULES,
        kueue: Kueue | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api, self._store, self._probes, self._metrics, self._rules = api, store, probes, metrics, rules
        self._kueue, self._clock = kueue, clock
        self._applier = Applier(api, store, kueue)
        self._questions = Questions(api, kueue, clock)
        self._memories: dict[Key, _Memory] = {}

    async def reconcile(self, key: Key) -> ReconcileResult:
        """Make it so. Raises ``ApiError``, ``NameTaken``, ``Outdated``: the pass is to be repeated."""
        job = self._store.job(key)
        return await self._pass(key, is_new=job is not None and not job.status)

    async def _pass(self, key: Key, is_new: bool) -> ReconcileResult:
        """``is_new``: nobody has looked at the job before."""
        job = self._store.job(key)
        if job is None or job.deleting:
            self._probes.stop(key)
            self._memories.pop(key, None)
            self._questions.forget(key)
            return ReconcileResult(wrote=False)
        now = datetime.now(UTC)
        previous = read_status(job.status)
        await self._find_trainer(job, previous)
        await self._find_claim(job, previous)
        await self._find_workload(job, previous)
        objects, memory = self._store.owned(key), self._memory(job)
        starting = [] if previous.finished else starting_pods(objects)
        fresh = STARTING_CHECK_SECONDS if starting else SECRET_CHECK_SECONDS
        known = await self._key(job, previous, fresh, untouched=not objects and not job.status)
        asked, look_again = await self._questions.ask(job, known, previous, objects, starting, now)
        workload = workload_of(job, objects)
        self._probes.follow(key, trainer_pod(job, objects, previous.attempt))
        report = self._probes.report(key)
        contested = memory.repairs.contested()
        idle = self._probes.idle(key)
        observed = observe(job, objects, asked, report, idle, self._rules, contested)
        decision = decide(job.object, previous, observed, now)
        decision, braked = _without_braked(decision, memory.repairs, objects)
        status = self._with_refusal(job, decision.status)

        wrote = await write_status(self._api, self._store, job, status)
        events = list(events_between(previous, status))
        events += await self._carry_out(job, decision)
        if decision.workload_status is not None and workload is not None:
            await self._applier.write_workload(job.owner, workload[0], decision.workload_status)
        runs = status.finished or observed.has_deployments or bool(observed.trainers)
        if not runs and any(manifest["kind"] in ("Deployment", "Job") for manifest in decision.manifests):
            events += self._created(job, is_new)
        await self._post(job.owner, events, now)

        timers = [(decision.requeue_at - now).total_seconds()] if decision.requeue_at else []
        timers += [look_again] if look_again is not None else []
        timers += braked
        timers += [] if status.finished else [RESYNC_SECONDS * random.uniform(1 - RESYNC_JITTER, 1 + RESYNC_JITTER)]
        if any(manifest["kind"] == "Secret" for manifest in decision.manifests):
            # Its key was random: pods, which carry its digest, are decided about now.
            following = await self._pass(key, is_new)
            return ReconcileResult(wrote=True, again_after=following.again_after)
        wrote = wrote or bool(decision.manifests or decision.deletions or decision.workload_status)
        return ReconcileResult(wrote, min(timers, default=None))

    def _memory(self, job: StoredJob) -> _Memory:
        key = Key(job.owner.namespace, job.owner.name)
        if key not in self._memories or self._memories[key].uid != job.uid:
            self._memories[key] = _Memory(job.uid, Repairs(self._clock))
        return self._memories[key]

    # --- what must be known before anything is decided

    async def _key(self, job: StoredJob, previous: JobStatus, fresh: float, untouched: bool) -> str | None:
        """Digest of the job's key, known for at most ``fresh`` seconds; None where it has no Secret."""
        memory = self._memory(job)
        if memory.key is not None and self._clock() - memory.key_seen < fresh:
            return memory.key
        if untouched:
            return None  # creating it shows whether it was there
        try:
            key = await read_key(self._api, self._store, Key(job.owner.namespace, job.owner.name))
        except ApiError as error:
            if error.status == FORBIDDEN:  # not the same as gone: a new key would restart everything
                reason = f"cannot read Secret/{key_name(job.owner.name)}: {error.message}"
                await write_status(self._api, self._store, job, previous.model_copy(update={"reason": reason}))
            raise
        memory.key, memory.key_seen = key_digest(key) if key is not None else None, self._clock()
        return memory.key

    async def _find_workload(self, job: StoredJob, previous: JobStatus) -> None:
        """A Workload that is not in view may only have lost its labels: the job's pods must not be stopped for that."""
        admitted, owner = previous.condition("Admitted"), job.owner
        if self._kueue is None or previous.finished or admitted is None or admitted.status != "True":
            return
        target = Ref(WORKLOAD, workload_name(owner.name))
        if target not in self._store.owned(Key(owner.namespace, owner.name)):
            await self._applier.find_unlabelled(owner, target, labels(owner.name))

    async def _find_trainer(self, job: StoredJob, previous: JobStatus) -> None:
        """A trainer's Job that is not in view has been deleted, or somebody took its labels away: it must not be
        declared deleted while it runs."""
        attempt, owner = live(previous), job.owner
        if attempt is None or previous.finished:
            return
        target = Ref("Job", trainer_job_name(owner.name, attempt.number))
        if target not in self._store.owned(Key(owner.namespace, owner.name)):
            own_labels = labels(owner.name, "trainer") | {ATTEMPT_LABEL: str(attempt.number)}
            await self._applier.find_unlabelled(owner, target, own_labels)

    async def _find_claim(self, job: StoredJob, previous: JobStatus) -> None:
        """The same for the run folder's claim: it must not be declared lost while it is there."""
        kept, owner = previous.condition("ResultKept"), job.owner
        if kept is None or kept.reason not in (MADE, MADE_ANEW) or previous.finished:
            return
        target = claim_of(owner)
        if target not in self._store.owned(Key(owner.namespace, owner.name)):
            await self._applier.find_unlabelled(owner, target, labels(owner.name))

    # --- carrying out

    async def _carry_out(self, job: StoredJob, decision: DesiredState) -> list[JobEvent]:
        """Events of objects that were repaired."""
        owner, repaired = job.owner, list[str]()
        if decision.delete_job:
            await self._applier.delete_job(owner)
            return []
        for target in decision.deletions:
            self._memory(job).repairs.forget(target)
            await self._applier.delete(owner, target)
        for target in decision.forced:
            await self._applier.delete_pod_now(owner, target)
        for stage in _stages(decision.manifests):
            done = await asyncio.gather(*(self._apply(job, manifest) for manifest in stage), return_exceptions=True)
            for result in done:
                if isinstance(result, BaseException):
                    raise result
                repaired += [result] if result else []
        if decision.manifests:
            self._memory(job).refusal = ""
        return [JobEvent("Warning", "Repaired", what, f"{what} {datetime.now(UTC).isoformat()}") for what in repaired]

    async def _apply(self, job: StoredJob, manifest: Manifest) -> str:
        """What was repaired, where somebody had changed it."""
        key, target, memory = Key(job.owner.namespace, job.owner.name), ref(manifest), self._memory(job)
        before = self._store.owned(key).get(target)
        try:
            made = await self._applier.apply(job.owner, manifest)
        except (ApiError, NameTaken) as error:
            why = error.message if isinstance(error, ApiError) else str(error)
            self._memory(job).refusal = f"cannot make {ref(manifest)}: {why}"
            raise
        if manifest["kind"] == "Secret" and made is not None:
            memory.key = key_digest(key_in(made))
            memory.key_seen = self._clock()
        return memory.repairs.note(manifest, before, self._store.owned(key).get(target))

    def _with_refusal(self, job: StoredJob, status: JobStatus) -> JobStatus:
        """The status with what kept the last pass from making an object, as the reason."""
        refusal = self._memory(job).refusal
        if not refusal or status.finished:
            return status
        return status.model_copy(update={"reason": refusal})

    # --- events

    def _created(self, job: StoredJob, is_new: bool) -> list[JobEvent]:
        if is_new:
            age = (datetime.now(UTC) - moment(job.created)).total_seconds()
            self._metrics.children_seconds.observe(max(0.0, age))
        return [
            JobEvent(
                "Normal", "Created", "made configuration, services and the first component; the rest follows in order"
            )
        ]

    async def _post(self, owner: Owner, events: list[JobEvent], now: datetime) -> None:
        for item in events:
            logger.info("%s/%s: %s: %s", owner.namespace, owner.name, item.reason, item.message)
            try:
                await self._api.create(EVENT, owner.namespace, event_manifest(owner, item, now))
            except ApiError as error:
                logger.warning("%s/%s: event %s is lost: %s", owner.namespace, owner.name, item.reason, error)


def _without_braked(
    decision: DesiredState, repairs: Repairs, objects: Mapping[Ref, OwnedObject]
) -> tuple[DesiredState, list[float]]:
    """The decision without repairs that have to wait, and for how long they have."""
    waits = [
        (manifest, repairs.wait(manifest, live))
        for manifest in decision.manifests
        if (live := objects.get(ref(manifest))) is None or not live.deleting  # made again once it is gone
    ]
    due = tuple(manifest for manifest, wait in waits if wait == 0)
    return replace(decision, manifests=due), [wait for _, wait in waits if wait]


def _stages(manifests: Sequence[Manifest]) -> Iterator[list[Manifest]]:
    """In the given order, but together what does not need each other: what pods mount comes first, then addresses
    and policies, then pods."""
    stage: list[Manifest] = []
    for manifest in manifests:
        if stage and STAGE.get(manifest["kind"], 1) != STAGE.get(stage[-1]["kind"], 1):
            yield stage
            stage = []
        stage.append(manifest)
    if stage:
        yield stage


async def read_key(api: Api, store: Store, key: Key) -> str | None:
    """A job's key, from the Secret that was made for it."""
    job = store.job(key)
    secret = await api.get(SECRET, key.namespace, key_name(key.name)) if job else None
    if job is None or secret is None:
        return None
    if not any(owner["uid"] == job.uid for owner in secret["metadata"].get("ownerReferences", ())):
        return None
    return key_in(secret)
