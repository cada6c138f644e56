"""The components of an evaluation: a task app, and the inference server of a policy on this machine with the files that
it fetches.

The containers of the operator's pods run as processes under their guards, as in ``visionrl run``. This process serves
the files, with the trainer's own service.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from visionrl.checks import exports_base
from visionrl.component import ConfigurationError
from visionrl.job import Component, Job
from visionrl.status import TrainerReport
from visionrl_cli.evaluation.local_policy import LocalPolicy
from visionrl_cli.evaluation.plan import Plan
from visionrl_cli.evaluation.text import EvalError
from visionrl_core.manifests.common import Manifest, Owner
from visionrl_core.manifests.inference import inference_deployment
from visionrl_core.manifests.taskapp import task_app_deployment
from visionrl_local.container import Launch, launch
from visionrl_local.folder import LocalFolder, cache_folder, tail
from visionrl_local.gpus import claimed_gpus, visible_gpus
from visionrl_local.pod import Exit, LocalPod
from visionrl_local.ports import LOOPBACK, reserved_ports
from visionrl_trainer.sync.publish import AdapterStore
from visionrl_trainer.sync.service import StatusPublisher, application, serve

NEWS_S = 30.0
"""Between two lines about a component that is not ready yet."""
ALL_TRACES = 1_000_000
"""Largest number of episodes in a traces.db of an evaluation: whoever asks for traces wants all of them."""


@dataclass(frozen=True)
class Addresses:
    """The addresses of the components."""

    task_app: str
    key: str
    """The task app's."""
    inference: str | None = None
    """The local policy's server."""


class Components:
    """Processes on this machine. All of them have ended when the ``async with`` block ends."""

    def __init__(self, plan: Plan, trace_dir: Path | None, note: Callable[[str], None]) -> None:
        self._plan, self._trace_dir, self._note = plan, trace_dir, note
        self._pods: dict[Component, LocalPod] = {}
        self._changed = asyncio.Event()
        self._failure: Exit | None = None

    def kill(self) -> None:
        """Skip the grace periods of the end."""
        for pod in self._pods.values():
            pod.kill()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Addresses]:
        """Start all and wait until they are ready. Raises :class:`EvalError` where a component ends instead."""
        local = self._plan.local
        async with contextlib.AsyncExitStack() as stack:
            ports = stack.enter_context(reserved_ports(None))
            spec = _without_trainer(self._plan.job).spec
            gpus = stack.enter_context(claimed_gpus(spec, visible_gpus())) if local else {}
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="visionrl-eval-")))
            folder, key = LocalFolder(scratch), secrets.token_urlsafe(32)
            folder.write_job(self._plan.job.model_dump_json(by_alias=True))
            folder.write_key(key)
            client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
            stack.push_async_callback(self._stop)
            if local:
                files = application(bulletin_of(local, scratch / "adapters"), key)
                await stack.enter_async_context(serve(files, LOOPBACK, ports["trainer"]))
            for started in self._launches(folder, ports, gpus):
                self._pods[started.component] = LocalPod(
                    started,
                    folder.log(started.component),
                    title=started.component,
                    restarts=False,
                    client=client,
                    changed=self._changed.set,
                    exited=self._exited,
                )
            await self._ready(folder)
            urls = {component: f"http://{LOOPBACK}:{port}" for component, port in ports.items()}
            yield Addresses(urls["taskApp"], key, urls["inference"] if local else None)

    async def broken(self) -> EvalError:
        """Wait until a component ends that should run; the error that says so."""
        while self._failure is None:
            self._changed.clear()
            await self._changed.wait()
        end = self._failure
        lines = "".join(f"\n    {line}" for line in end.tail)
        return EvalError(f"{end.launch.component} ended: exit code {end.code} ({end.reason}); its last lines:{lines}")

    def _launches(self, folder: LocalFolder, ports: dict[Component, int], gpus: dict[Component, str]) -> list[Launch]:
        job = self._plan.job

        def of(deployment: Manifest) -> Launch:
            return launch(deployment["spec"]["template"], job.name, folder, ports, gpus)

        owner = Owner(job.name, "default", "local")
        task_app = of(task_app_deployment(job, owner))
        traces = str(self._trace_dir.resolve()) if self._trace_dir else ""
        kept = {"VISIONRL_TRACE_DIR": traces, "VISIONRL_TRACE_MAX_EPISODES": str(ALL_TRACES)}
        launches = [replace(task_app, env={**task_app.env, **kept})]
        return [*launches, of(inference_deployment(job, owner))] if self._plan.local else launches

    async def _ready(self, folder: LocalFolder) -> None:
        """Wait until all are; every now and then say for what, by the last line of its log."""
        broken = asyncio.create_task(self.broken())
        for component, pod in self._pods.items():
            self._note(f"starting {component}")
            ready = asyncio.create_task(_is_ready(pod))
            while not (await asyncio.wait({ready, broken}, timeout=NEWS_S, return_when=asyncio.FIRST_COMPLETED))[0]:
                log = folder.log(component)
                self._note(f"{component} is not ready yet ({log}): {' '.join(tail(log, 1))}")
            ready.cancel()
            if broken.done():
                raise broken.result()
        broken.cancel()

    def _exited(self, end: Exit) -> None:
        self._failure = self._failure or end
        self._changed.set()

    async def _stop(self) -> None:
        await asyncio.gather(*(pod.stop() for pod in self._pods.values()))


async def _is_ready(pod: LocalPod) -> None:
    while not pod.state.ready:  # noqa: ASYNC110 - its event belongs to who watches for failures
        await asyncio.sleep(0.05)


def bulletin_of(policy: LocalPolicy, adapters: Path) -> StatusPublisher:
    """What the trainer would serve for this policy: its base, and the version that is evaluated."""
    publisher = StatusPublisher(TrainerReport(phase="Complete", base_ready=True))
    publisher.exports_base = exports_base(policy.job.spec)
    publisher.base = policy.base
    publisher.adapters = AdapterStore(adapters, policy.job.name)
    policy.publish_to(adapters)
    return publisher


def _without_trainer(job: Job) -> Job:
    """The job without the trainer's GPU: it does not run here."""
    trainer = job.spec.trainer.model_copy(update={"gpu": None})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"trainer": trainer})})


async def banned_ids(policy: LocalPolicy) -> list[int]:
    """See :meth:`LocalPolicy.banned_ids`."""
    try:
        return await asyncio.to_thread(policy.banned_ids, cache_folder())
    except (ConfigurationError, OSError, ValueError, KeyError, TypeError) as error:
        raise EvalError(f"{policy.title}: the base model's tokenizer.json cannot be read: {error}") from None


async def check_task_app(url: str, key: str) -> None:
    """Ask a remote task app for its description, so that a wrong address or key is reported at once. Raises
    :class:`EvalError`."""
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            answer = await client.get("/info", headers={"Authorization": f"Bearer {key}"})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EvalError(f"--task-app {url}: {error or type(error).__name__}") from None
    if answer.status_code == 401:
        raise EvalError(f"--task-app {url} refuses the key (ENVIRONMENT_API_KEY or --task-app-key-file)")
    if answer.status_code != 200 or "service" not in answer.text:
        raise EvalError(f"--task-app {url} is not a ready task app: status {answer.status_code} on /info")


async def lost_traces(addresses: Addresses) -> str:
    """What the local task app says about traces that it could not write; empty where it wrote all."""
    async with httpx.AsyncClient(base_url=addresses.task_app, trust_env=False, timeout=30) as client:
        answer = await client.get("/info", headers={"Authorization": f"Bearer {addresses.key}"})
    traces = answer.json()["runtime"]["traces"]
    return f"{traces['failed']} traces are lost: {traces['last_error']}" if traces and traces["failed"] else ""
