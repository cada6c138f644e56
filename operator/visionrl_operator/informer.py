"""What tells the operator of changes: kopf, which lists, watches and reconnects. Only this module knows it.

Its handlers put what they see into the store, which puts keys into our own work queue. kopf's own indexes are not used:
it wakes every object's task for every object that is indexed, which is quadratic when it starts among thousands, and it
does not report what was deleted while a watch was down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import kopf

from visionrl_core.kinds import OWNED_SELECTOR, Offered
from visionrl_operator.options import Options
from visionrl_operator.store import Store
from visionrl_operator.watchdog import watched


async def start(options: Options, store: Store, offered: Offered, stop: asyncio.Event) -> Awaitable[None]:
    """Begin to feed the store; what is returned ends when ``stop`` is set, or when kopf fails. From now on kopf has
    the handlers of signals."""
    existing = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=_registry(store, offered),
        settings=_settings(options, offered),
        standalone=True,
        clusterwide=not options.namespaces,
        namespaces=options.namespaces,
        stop_flag=stop,
    )
    return kopf.run_tasks(tasks, ignored=existing)


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
