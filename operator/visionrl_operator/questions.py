"""What no watch reports of a job: asked of the API server when it may matter, and remembered for a while."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from visionrl.status import JobStatus
from visionrl_core.clock import moment
from visionrl_core.desired import OUT_OF_SERVICE
from visionrl_core.kinds import EVENT, NODE, OWNED_KINDS, Kind, Kueue
from visionrl_core.kueue import Flavor, Queue, WorkloadView, flavor_of
from visionrl_core.manifests.common import Ref
from visionrl_core.observed import StuckPod
from visionrl_core.pods import PodView
from visionrl_operator.api import FORBIDDEN, Api, ApiError, Body
from visionrl_operator.observe import Asked, overdue_pods, podless_attempts, workload_of
from visionrl_operator.store import Key, OwnedObject, StoredJob

# While pods start: what they wait for is asked about so often.
STARTING_CHECK_SECONDS = 10.0
# A pod that has a node and does not run after this time is asked about, and again after a while.
SLOW_START = timedelta(seconds=30)
PROBLEM_CHECK_SECONDS = 60.0
# A pod that has not ended this long after its grace period: its node is looked at, and looked at again.
STUCK_AFTER = timedelta(seconds=60)
STUCK_CHECK_SECONDS = 30.0
# A ResourceFlavor of Kueue is read again after this time.
FLAVOR_SECONDS = 60.0
# A job that waits for something that no watch reports, such as a priority class: asked again.
UNWATCHED_CHECK_SECONDS = 30.0
# A Job without a pod for this long probably cannot make one.
PODLESS_SECONDS = 3.0
PODLESS_CHECK_SECONDS = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Problem:
    """Why a pod does not start, as its events say."""

    asked_at: float
    found: tuple[str, str]


class Questions:
    """``kueue`` is given where the cluster has it; ``clock`` returns seconds that never go back."""

    def __init__(self, api: Api, kueue: Kueue | None, clock: Callable[[], float]) -> None:
        self._api, self._kueue, self._clock = api, kueue, clock
        self._flavors: dict[str, tuple[float, Flavor]] = {}
        self._known: dict[Key, dict[str, _Problem]] = {}
        """Problems by job and pod."""

    def forget(self, key: Key) -> None:
        """The job is gone."""
        self._known.pop(key, None)

    async def ask(
        self,
        job: StoredJob,
        key: str | None,
        previous: JobStatus,
        objects: Mapping[Ref, OwnedObject],
        starting: Sequence[OwnedObject],
        now: datetime,
    ) -> tuple[Asked, float | None]:
        """Answers, and when to ask again. ``key``: digest of the job's; ``starting``: pods that a job which has not
        ended waits for."""
        asked = Asked(key)
        if starting:
            asked = replace(asked, problems=await self._problems(job, starting, now))
        again = STARTING_CHECK_SECONDS if starting else None
        if not job.status.get("accepted"):
            asked = replace(asked, cache_access=await self._cache_access(job))
        if job.object.document["spec"].get("queueName"):
            workload = workload_of(job, objects)
            asked = replace(asked, queue=await self._queue(job, workload[1] if workload else None))
            again = again or (None if workload else UNWATCHED_CHECK_SECONDS)
        if late := overdue_pods(objects, now, STUCK_AFTER):
            asked, again = replace(asked, stuck=await self._stuck(late)), STUCK_CHECK_SECONDS
        podless = {} if previous.finished else podless_attempts(job, objects)
        ages = {attempt: (now - moment(found.created)).total_seconds() for attempt, found in podless.items()}
        overdue = [attempt for attempt, age in ages.items() if age >= PODLESS_SECONDS]
        if overdue:
            reasons = {attempt: await self._creation_failure(job, podless[attempt]) for attempt in overdue}
            return replace(asked, creation_failures=reasons), PODLESS_CHECK_SECONDS
        return asked, PODLESS_SECONDS if podless else again

    async def _cache_access(self, job: StoredJob) -> tuple[str, ...]:
        storage = job.object.document["spec"].get("storage")
        name = storage.get("modelCacheClaim") if isinstance(storage, dict) else None
        if not isinstance(name, str) or not name:
            return ()
        claim = await self._api.get(OWNED_KINDS["PersistentVolumeClaim"], job.owner.namespace, name)
        return tuple(claim["spec"].get("accessModes", ())) if claim is not None else ()

    async def _queue(self, job: StoredJob, workload: WorkloadView | None) -> Queue:
        if self._kueue is None:
            return Queue()
        flavors = {name: await self._flavor(name) for name in workload.flavors} if workload is not None else {}
        name = job.object.document["spec"].get("queuePriorityClass")
        priority = await self._priority(name) if workload is None and isinstance(name, str) else None
        known = {name: flavor for name, flavor in flavors.items() if flavor is not None}
        return Queue(self._kueue.api_version, workload, known, priority)

    async def _flavor(self, name: str) -> Flavor | None:
        assert self._kueue is not None
        asked_at, flavor = self._flavors.get(name, (-FLAVOR_SECONDS, None))
        if flavor is not None and self._clock() - asked_at < FLAVOR_SECONDS:
            return flavor
        found = await self._of_the_cluster(self._kueue.flavor, name)
        if found is None:
            return None
        self._flavors[name] = self._clock(), flavor_of(found)
        return self._flavors[name][1]

    async def _priority(self, name: str) -> int | None:
        assert self._kueue is not None
        found = await self._of_the_cluster(self._kueue.priority_class, name)
        return found["value"] if found is not None else None

    async def _of_the_cluster(self, kind: Kind, name: str) -> Body | None:
        try:
            return await self._api.get(kind, None, name)
        except ApiError as error:
            if error.status != FORBIDDEN:
                raise
            logger.warning("%s %s cannot be read: %s", kind.name, name, error)
            return None

    async def _problems(
        self, job: StoredJob, starting: Sequence[OwnedObject], now: datetime
    ) -> dict[str, tuple[str, str]]:
        """What keeps pods from starting that have a node and should run by now: only events say that a volume cannot be
        attached or mounted, or that the node has no network for them."""
        key = Key(job.owner.namespace, job.owner.name)
        known, fresh = self._known.get(key, {}), dict[str, _Problem]()
        for pod in starting:
            if now - moment(pod.created) < SLOW_START:
                continue
            before = known.get(pod.uid)
            if before is None or self._clock() - before.asked_at >= PROBLEM_CHECK_SECONDS:
                warning = await self._newest_event(job, f"involvedObject.uid={pod.uid},type=Warning")
                before = _Problem(self._clock(), warning or ("ContainerCreating", f"since {pod.created}"))
            fresh[pod.uid] = before
        self._known[key] = fresh
        return {uid: problem.found for uid, problem in fresh.items()}

    async def _stuck(self, overdue: list[OwnedObject]) -> tuple[StuckPod, ...]:
        stuck = []
        for found in overdue:
            pod = found.detail
            assert isinstance(pod, PodView)
            node, since = pod.state.node or "", moment(pod.grace_ends or found.created)
            stuck.append(StuckPod(found.ref.name, pod.component, node, since, await self._is_lost(node)))
        return tuple(stuck)

    async def _is_lost(self, name: str) -> bool:
        """Whether what ran on a node runs no more: the node object is gone, or a person or the cloud marked it."""
        if not name:
            return False
        try:
            node = await self._api.get(NODE, None, name)
        except ApiError as error:  # an operator with rights in some namespaces only may not look at nodes
            logger.warning("node %s cannot be read: %s", name, error)
            return False
        taints = node.get("spec", {}).get("taints") or () if node is not None else ()
        return node is None or any(taint.get("key") == OUT_OF_SERVICE for taint in taints)

    async def _creation_failure(self, job: StoredJob, run: OwnedObject) -> str:
        """The newest message of the Job controller about a pod that it could not make."""
        found = await self._newest_event(job, f"involvedObject.uid={run.uid},reason=FailedCreate")
        return found[1] if found else ""

    async def _newest_event(self, job: StoredJob, selector: str) -> tuple[str, str] | None:
        """Reason and message."""
        try:
            found = await self._api.list(EVENT, job.owner.namespace, fieldSelector=selector, limit=20)
        except ApiError as error:
            logger.warning("events of %s/%s cannot be read: %s", job.owner.namespace, job.owner.name, error)
            return None
        newest = max(found["items"], key=_time_of, default=None)
        return (str(newest.get("reason", "")), str(newest.get("message", ""))) if newest is not None else None


def _time_of(event: Body) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or ""
