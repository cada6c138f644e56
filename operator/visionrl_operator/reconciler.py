"""One pass over one job: observe, decide, then write status, deletions, manifests and events."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from visionrl.status import JobStatus
from visionrl_core.clock import moment
from visionrl_core.container_images import RELEASED, Images
from visionrl_core.decide import DesiredState, decide
from visionrl_core.events import JobEvent, event_manifest, events_between
from visionrl_core.kinds import EVENT, SECRET, Kind
from visionrl_core.manifests.common import Manifest, Owner, Ref, component_name, ref
from visionrl_core.manifests.config import KEY_FILE, key_name
from visionrl_operator.api import Api, ApiError
from visionrl_operator.apply import Applier, NameTaken
from visionrl_operator.metrics import Metrics
from visionrl_operator.observe import Asked, observe, podless_attempts, trainer_pod
from visionrl_operator.probe import Probes
from visionrl_operator.status_writer import read_status, write_status
from visionrl_operator.store import Key, OwnedObject, Store, StoredJob

# A pass that wrote something is followed by one that finds nothing left to do.
CONFIRM_SECONDS = 0.3
# A Secret is not watched; one that somebody deleted is found missing after this time at the latest.
SECRET_CHECK_SECONDS = 300.0
# A Job without a pod for this long probably cannot make one.
PODLESS_SECONDS = 3.0
PODLESS_CHECK_SECONDS = 30.0
STAGE = {"Secret": 0, "ConfigMap": 0, "Deployment": 2, "Job": 2}

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
    secret_seen: float | None = None
    """When its Secret was last seen (``time.monotonic``)."""
    refusal: str = ""
    """Why its objects could not be made the last time, in the API server's words."""


class Reconciler:
    """``images`` are for jobs that name none; ``workload`` is Kueue's kind, where the cluster has it."""

    def __init__(
        self,
        api: Api,
        store: Store,
        probes: Probes,
        metrics: Metrics,
        images: Images = RELEASED,
        workload: Kind | None = None,
    ) -> None:
        self._api, self._store, self._probes, self._metrics, self._images = api, store, probes, metrics, images
        self._workload = workload
        self._applier = Applier(api, store, workload)
        self._memories: dict[Key, _Memory] = {}

    async def reconcile(self, key: Key) -> ReconcileResult:
        """Make it so. Raises ``ApiError``, ``NameTaken``, ``Outdated``: the pass is to be repeated."""
        job = self._store.job(key)
        if job is None or job.deleting:
            self._probes.stop(key)
            self._memories.pop(key, None)
            return ReconcileResult(wrote=False)
        now = datetime.now(UTC)
        previous, objects = read_status(job.status), self._store.owned(key)
        asked, look_again = await self._ask(job, previous, objects, now)
        self._probes.follow(key, trainer_pod(job, objects, previous.attempt))
        report = self._probes.report(key)
        observed = observe(job, objects, asked, report, secrets.token_urlsafe(32), self._images)
        decision = decide(job.object, previous, observed, now)
        status = self._with_refusal(job, decision.status)

        wrote = await write_status(self._api, self._store, job, status)
        events = list(events_between(previous, status))
        await self._carry_out(job, decision)
        first = Ref("Deployment", component_name(key.name, "taskApp"))
        if any(ref(manifest) == first for manifest in decision.manifests):
            events += self._created(job, existed=observed.has(first))
        await self._post(job.owner, events, now)

        timers = [(decision.requeue_at - now).total_seconds()] if decision.requeue_at else []
        timers += [look_again] if look_again is not None else []
        wrote = wrote or bool(decision.manifests or decision.deletions)
        return ReconcileResult(wrote, min(timers, default=None))

    def _memory(self, job: StoredJob) -> _Memory:
        key = Key(job.owner.namespace, job.owner.name)
        if key not in self._memories or self._memories[key].uid != job.uid:
            self._memories[key] = _Memory(job.uid)
        return self._memories[key]

    # --- what no watch reports

    async def _ask(
        self, job: StoredJob, previous: JobStatus, objects: Mapping[Ref, OwnedObject], now: datetime
    ) -> tuple[Asked, float | None]:
        """Answers, and when to ask again."""
        asked = Asked(has_secret=await self._has_secret(job, untouched=not objects and not job.status))
        if self._workload is not None and job.object.document["spec"].get("queueName"):
            owner = job.owner
            workload = await self._api.get(self._workload, owner.namespace, owner.name)
            asked = replace(asked, workload=workload is not None)
        podless = {} if previous.finished else podless_attempts(job, objects)
        ages = {attempt: (now - moment(found.created)).total_seconds() for attempt, found in podless.items()}
        overdue = [attempt for attempt, age in ages.items() if age >= PODLESS_SECONDS]
        if overdue:
            reasons = {attempt: await self._creation_failure(job, podless[attempt]) for attempt in overdue}
            return replace(asked, creation_failures=reasons), PODLESS_CHECK_SECONDS
        return asked, PODLESS_SECONDS if podless else None

    async def _has_secret(self, job: StoredJob, untouched: bool) -> bool:
        seen = self._memory(job).secret_seen
        if seen is not None and time.monotonic() - seen < SECRET_CHECK_SECONDS:
            return True
        if untouched:
            return False  # creating it shows whether it was there
        owner = job.owner
        secret = await self._api.get(SECRET, owner.namespace, key_name(owner.name))
        owners = [found["uid"] for found in secret["metadata"].get("ownerReferences", ())] if secret else []
        if owner.uid not in owners:
            return False
        self._memory(job).secret_seen = time.monotonic()
        return True

    async def _creation_failure(self, job: StoredJob, run: OwnedObject) -> str:
        """The newest message of the Job controller about a pod that it could not make."""
        selector = f"involvedObject.uid={run.uid},reason=FailedCreate"
        try:
            found = await self._api.list(EVENT, job.owner.namespace, fieldSelector=selector, limit=10)
        except ApiError as error:
            logger.warning("why %s has no pod cannot be read: %s", run.ref, error)
            return ""
        events = sorted(found["items"], key=lambda item: item.get("lastTimestamp") or "")
        return str(events[-1].get("message", "")) if events else ""

    # --- carrying out

    async def _carry_out(self, job: StoredJob, decision: DesiredState) -> None:
        owner = job.owner
        if decision.delete_job:
            await self._applier.delete_job(owner)
            return
        for target in decision.deletions:
            await self._applier.delete(owner, target)
        for stage in _stages(decision.manifests):
            done = await asyncio.gather(*(self._apply(job, manifest) for manifest in stage), return_exceptions=True)
            for problem in done:
                if problem is not None:
                    raise problem
        if decision.manifests:
            self._memory(job).refusal = ""

    async def _apply(self, job: StoredJob, manifest: Manifest) -> None:
        try:
            await self._applier.apply(job.owner, manifest)
        except (ApiError, NameTaken) as error:
            why = error.message if isinstance(error, ApiError) else str(error)
            self._memory(job).refusal = f"cannot make {ref(manifest)}: {why}"
            raise
        if manifest["kind"] == "Secret":
            self._memory(job).secret_seen = time.monotonic()

    def _with_refusal(self, job: StoredJob, status: JobStatus) -> JobStatus:
        """The status with what kept the last pass from making an object, as the reason."""
        refusal = self._memory(job).refusal
        if not refusal or status.finished:
            return status
        return status.model_copy(update={"reason": refusal})

    # --- events

    def _created(self, job: StoredJob, existed: bool) -> list[JobEvent]:
        if existed:
            return []
        if not job.status:
            age = (datetime.now(UTC) - moment(job.created)).total_seconds()
            self._metrics.children_seconds.observe(max(0.0, age))
        return [JobEvent("Normal", "Created", "made configuration, services and task app; the rest follows in order")]

    async def _post(self, owner: Owner, events: list[JobEvent], now: datetime) -> None:
        for item in events:
            logger.info("%s/%s: %s: %s", owner.namespace, owner.name, item.reason, item.message)
            try:
                await self._api.create(EVENT, owner.namespace, event_manifest(owner, item, now))
            except ApiError as error:
                logger.warning("%s/%s: event %s is lost: %s", owner.namespace, owner.name, item.reason, error)


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
    return base64.b64decode(secret["data"][KEY_FILE]).decode()
