"""The operator as a process: it stands by until it leads, and then runs the informer and the workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from visionrl_core import container_images
from visionrl_core.kinds import Offered
from visionrl_core.manifests.merge import PodDefaults
from visionrl_core.observed import ClusterRules
from visionrl_operator import informer, offers
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

logger = logging.getLogger("visionrl_operator")


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
    if not await _or_stop(stop, offers.wait_for_definition(api, options)):
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
    offered = await offers.find(api, options)
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
    informing = asyncio.create_task(
        _inform(options, watchdog, store, offered, health, stop, stop_informer), name="informer"
    )
    search = asyncio.create_task(offers.more(api, options, offered), name="search for Kueue and claims")
    try:
        yield [informing, watch, search, *workers]
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
        await asyncio.wait([informing], timeout=STOP_SECONDS)
        for task in (informing, *workers):
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
    watching = await informer.start(options, store, offered, stop_informer)
    _handle_signals(stop)  # kopf takes them for itself
    await watching


# --- signals


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
