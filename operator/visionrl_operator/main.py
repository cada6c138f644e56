"""The operator as a process. This is the only module that knows kopf, and kopf is the informer only: it lists,
watches and reconnects. Its handlers put what they see into the store, which puts keys into our own work queue.

kopf's own indexes are not used: it wakes every object's task for every object that is indexed, which is quadratic
when it starts among thousands, and it does not report what was deleted while a watch was down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import kopf

from visionrl_core import container_images
from visionrl_core.clock import stamp
from visionrl_core.kinds import CLAIM_TEMPLATE, JOB, OWNED_SELECTOR, Kind, Kueue, Offered
from visionrl_core.manifests.merge import PodDefaults
from visionrl_core.observed import ClusterRules
from visionrl_operator.api import Api, ApiError, KubernetesTransport
from visionrl_operator.apply import NameTaken
from visionrl_operator.health import Health, serve
from visionrl_operator.leader import Leader
from visionrl_operator.metrics import Metrics
from visionrl_operator.options import Options
from visionrl_operator.probe import Probes
from visionrl_operator.reconciler import CONFIRM_SECONDS, Reconciler, read_key
from visionrl_operator.status_writer import Outdated
from visionrl_operator.store import Entry, Key, Store, StoredJob
from visionrl_operator.watchdog import Watchdog, watched
from visionrl_operator.workqueue import ShutDown, WorkQueue

# Changes of owned objects come in bursts; a change of the job itself is acted on at once.
SETTLE_SECONDS = 0.2
PASS_SECONDS = 120.0
WATCHDOG_GRACE_SECONDS = 30.0
FIRST_CHECK_SECONDS = 30.0
STOP_SECONDS = 20.0
CRD_CHECK_SECONDS = 5.0
OFFER_CHECK_SECONDS = 300.0

logger = logging.getLogger("visionrl_operator")


class MoreIsOffered(Exception):
    """The cluster has something now that it had not when this process began."""


async def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT: exit code 0; or until only a restart helps: 1."""
    stop = asyncio.Event()
    _handle_signals(stop)
    metrics, health = Metrics(), Health()
    transport = await KubernetesTransport.connect(connections=2 * options.workers + 16)
    api = Api(transport, options.request_timeout, metrics.count_request)
    stop_server, port = await serve(health, metrics, options.health_host, options.health_port)
    logger.info("health and metrics on port %d", port)
    try:
        return await _until_stopped(options, api, metrics, health, stop)
    finally:
        health.state = "stopping"
        await stop_server()  # type: ignore[misc]
        await api.close()


async def _until_stopped(options: Options, api: Api, metrics: Metrics, health: Health, stop: asyncio.Event) -> int:
    leader = (
        Leader(api, options.lease_namespace, options.identity, options.lease_name) if options.leader_election else None
    )
    if not await _or_stop(stop, _wait_for_crd(api, options)):
        return 0
    health.state = "standing by"
    try:
        if leader is not None and not await _or_stop(stop, leader.acquire()):
            return 0
        health.state = "leading"
        metrics.leader.set(1)
        logger.info("leading as %s", options.identity)
        lease = asyncio.create_task(leader.hold() if leader else asyncio.Event().wait(), name="lease")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            async with _controller(options, api, metrics, health, stop) as tasks:
                done, _ = await asyncio.wait([stopped, lease, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            lease.cancel()
            stopped.cancel()
        if stopped in done:
            return 0
        ended = next(iter(done))
        logger.error("%s ended: %s", ended.get_name(), "cancelled" if ended.cancelled() else ended.exception())
        return 1
    finally:
        if leader is not None:
            await leader.release()


@contextlib.asynccontextmanager
async def _controller(
    options: Options, api: Api, metrics: Metrics, health: Health, stop: asyncio.Event
) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Everything that a leader runs; none of the tasks ends while all is well."""
    queue: WorkQueue[Key] = WorkQueue(time.monotonic)
    store = Store(partial(_enqueue, queue))
    probes = Probes(
        partial(read_key, api, store), queue.add, lambda result: metrics.probe_requests.labels(result).inc()
    )
    offered = await _offered(api, options)
    rules = ClusterRules(
        images=container_images.named(options.image_prefix, options.image_tag),
        allowed_images=options.allowed_images,
        allow_privileged=options.allow_privileged,
        pod_defaults=PodDefaults(options.pod_template, options.fixed_ids),
        resource_claims=offered.claim_templates,
        scraped_by=options.scraped_by,
    )
    reconciler = Reconciler(api, store, probes, metrics, rules, offered.kueue)
    watchdog = Watchdog(api, store, options.namespaces, metrics.count_missed, kinds=watched(offered))
    metrics.watch_queue(queue.ready, lambda: len(queue.active))
    metrics.watch_phases(lambda: (job.phase for _, job in store.jobs()))

    stop_informer = asyncio.Event()
    # Before the informer starts: when kopf stops, it ends every task that is younger than itself.
    workers = [
        asyncio.create_task(_work(queue, reconciler, store, metrics, health, number), name=f"worker {number}")
        for number in range(options.workers)
    ]
    watch = asyncio.create_task(_watch(watchdog, health, options.watchdog_interval), name="watchdog")
    informer = asyncio.create_task(
        _inform(options, watchdog, store, offered, health, stop, stop_informer), name="informer"
    )
    search = asyncio.create_task(_more_is_offered(api, options, offered), name="search for Kueue and claims")
    try:
        yield [informer, watch, search, *workers]
    finally:
        queue.shut_down()
        watch.cancel()
        search.cancel()
        if not (stop.is_set() and health.synced.is_set()):
            for worker in workers:
                worker.cancel()  # another process may lead by now, or no pass has begun
        await asyncio.wait(workers, timeout=STOP_SECONDS)
        await probes.close()
        stop_informer.set()
        await asyncio.wait([informer], timeout=STOP_SECONDS)
        for task in (informer, *workers):
            task.cancel()


def _enqueue(queue: WorkQueue[Key], key: Key, entry: Entry | None) -> None:
    queue.add_after(key, 0 if isinstance(entry, StoredJob) else SETTLE_SECONDS)


async def _watch(watchdog: Watchdog, health: Health, interval: float) -> None:
    await health.synced.wait()
    # The first time soon: what was deleted between our own lists and kopf's is known to neither.
    await asyncio.sleep(min(interval, FIRST_CHECK_SECONDS))
    await watchdog.run(interval, WATCHDOG_GRACE_SECONDS)


async def _work(
    queue: WorkQueue[Key], reconciler: Reconciler, store: Store, metrics: Metrics, health: Health, number: int
) -> None:
    """One worker: passes over jobs until the queue is shut down."""
    await health.synced.wait()  # deciding from half of what exists would make what exists already
    while True:
        try:
            key = await queue.get()
        except ShutDown:
            return
        started = health.busy_since[number] = time.monotonic()
        result = "ok"
        try:
            async with asyncio.timeout(PASS_SECONDS):
                outcome = await reconciler.reconcile(key)
            queue.forget(key)
            if outcome.wrote:
                queue.add_after(key, CONFIRM_SECONDS)
            if outcome.again_after is not None:
                queue.add_after(key, outcome.again_after)
        except Outdated:
            result = "outdated"  # the newer object is on its way
            queue.add_after(key, CONFIRM_SECONDS)
        except (ApiError, NameTaken, TimeoutError) as error:
            result = "error"
            logger.warning("%s: %s; again in %.1f s", key, error or "timeout", queue.add_with_backoff(key))
        except Exception:
            result = "error"
            logger.exception("%s: again in %.1f s", key, queue.add_with_backoff(key))
        finally:
            queue.done(key)
            del health.busy_since[number]
            metrics.reconcile_seconds.labels(result).observe(time.monotonic() - started)


# --- before there is anything to lead


async def _wait_for_crd(api: Api, options: Options) -> None:
    """Without the CRD, kopf would wait for ever without a word."""
    logged = False
    while True:
        try:
            await api.list(JOB, options.namespaces[0] if options.namespaces else None, limit=1)
            return
        except ApiError as error:
            if not logged:
                hint = "; apply crds/ first" if error.status == 404 else ""
                logger.warning("waiting for %s.%s: %s%s", JOB.plural, JOB.group, error, hint)
            logged = True
        await asyncio.sleep(CRD_CHECK_SECONDS)


async def _offered(api: Api, options: Options, log_level: int = logging.INFO) -> Offered:
    """Which of the kinds that not every cluster has are there, and may be used."""
    groups = (await api.groups())["groups"]
    served = {f"{group['name']}/{version['version']}" for group in groups for version in group["versions"]}
    kueue = next((Kueue(f"{Kueue.GROUP}/{v}") for v in Kueue.VERSIONS if f"{Kueue.GROUP}/{v}" in served), None)
    if kueue is None:
        logger.log(log_level, "the cluster has no Kueue: jobs with spec.queueName wait")
    elif refusal := await _refusal(api, options, kueue.workload):
        logger.log(log_level, "Kueue is not used, jobs with spec.queueName wait: %s (chart: kueue.enabled)", refusal)
        kueue = None
    claims = CLAIM_TEMPLATE.api_version in served
    if claims and (refusal := await _refusal(api, options, CLAIM_TEMPLATE)):
        logger.log(log_level, "gpu.resourceClaim is refused: %s (chart: resourceClaims.enabled)", refusal)
        claims = False
    return Offered(kueue, claims)


async def _refusal(api: Api, options: Options, kind: Kind) -> str:
    """Why objects of a kind cannot be read; empty where they can."""
    try:
        await api.list(kind, options.namespaces[0] if options.namespaces else None, limit=1)
    except ApiError as error:
        return str(error)
    return ""


async def _more_is_offered(api: Api, options: Options, offered: Offered) -> None:
    """Raise :class:`MoreIsOffered` once something is there that was not: the next process watches it from the start."""
    while True:
        await asyncio.sleep(OFFER_CHECK_SECONDS)
        with contextlib.suppress(ApiError):
            found = await _offered(api, options, logging.DEBUG)
            if found.kueue is not None and offered.kueue is None:
                raise MoreIsOffered("Kueue is there now: a restart is needed to watch it")
            if found.claim_templates and not offered.claim_templates:
                raise MoreIsOffered("resource claims are there now: a restart is needed to watch them")


# --- kopf


async def _inform(
    options: Options,
    watchdog: Watchdog,
    store: Store,
    offered: Offered,
    health: Health,
    stop: asyncio.Event,
    stop_informer: asyncio.Event,
) -> None:
    """List everything, then have kopf list it again and watch it. Our own lists are known ten times sooner: kopf runs
    a task for each object."""
    started = time.monotonic()
    await watchdog.list_everything()
    logger.info("all that exists is known after %.1f s", time.monotonic() - started)
    health.synced.set()
    existing = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=_registry(store, offered),
        settings=_settings(options, offered),
        standalone=True,
        clusterwide=not options.namespaces,
        namespaces=options.namespaces,
        stop_flag=stop_informer,
    )
    _handle_signals(stop)  # kopf takes them for itself
    await kopf.run_tasks(tasks, ignored=existing)


def _registry(store: Store, offered: Offered) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    async def on_event(event: Any, param: Any = None, **_: Any) -> None:
        if event["type"] == "DELETED":
            store.remove(param, event["object"])
        else:
            store.feed(param, event["object"])

    async def log_in(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_kubeconfig(settings=settings) or kopf.login_with_service_account(settings=settings)

    kopf.on.login(registry=registry)(log_in)
    for kind in watched(offered):
        kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural, param=kind.name)(
            on_event
        )
    return registry


def _settings(options: Options, offered: Offered) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # no right to watch CRDs and namespaces
    settings.posting.enabled = False
    settings.watching.chunk_size = 500
    settings.watching.connect_timeout = options.request_timeout
    settings.networking.request_timeout = 2 * options.request_timeout
    settings.queueing.idle_timeout = 1.0
    settings.persistence.diffbase_storage = _NoDiffs()
    for kind in watched(offered)[1:]:
        settings.watching.label_selectors[kind.group, kind.version, kind.plural] = OWNED_SELECTOR
    return settings


class _NoDiffs(kopf.DiffBaseStorage):
    """kopf copies every object several times to find out what its change handlers should see; there are none."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> Any:
        return None

    def store(self, **_: Any) -> None:
        return None


# --- the process


def _handle_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _or_stop(stop: asyncio.Event, work: Any) -> bool:
    """Do the work, unless the process is to stop first; whether it was done."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    done, pending = await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    for other in pending:
        other.cancel()
    if task in done:
        task.result()
    return task in done


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": stamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(options: Options) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if options.log_format == "json" else text)
    logging.basicConfig(level=options.log_level, handlers=[handler], force=True)
    quiet: Iterable[str] = ("kopf", "kubernetes.aio", "aiohttp.access")
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
