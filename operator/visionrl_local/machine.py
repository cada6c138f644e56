"""This machine as a small cluster: keeps the objects that were applied and runs their pods as processes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Literal

import httpx

from visionrl.job import Component, Job
from visionrl.status import TrainerReport
from visionrl_core.manifests.common import ATTEMPT_LABEL, Manifest, Ref, component_name, key_digest, ref
from visionrl_core.manifests.config import JOB_FILE, config_name, key_in, key_name, with_fresh_key
from visionrl_core.observed import ClusterRules, Observed, ObservedComponent, TrainerRun
from visionrl_core.report import MAX_REPORT_BYTES, read_report
from visionrl_local.container import Argv, Launch, launch
from visionrl_local.folder import LocalFolder
from visionrl_local.health import STALLED_SECONDS
from visionrl_local.pod import Exit, LocalPod
from visionrl_local.ports import LOOPBACK

REPORT_TIMEOUT_SECONDS = 5.0
LONGEST_LOOK_SECONDS = 10.0
# In these phases somebody always computes: an environment, the model that plays, the model that learns.
BUSY_PHASES = ("WarmStart", "Evaluating", "Training")


class LocalMachine:
    """Applies and deletes a job's children, and observes them."""

    def __init__(
        self,
        job_name: str,
        folder: LocalFolder,
        ports: dict[Component, int],
        gpus: dict[Component, str],
        argv: Argv,
        accepted: Job | None,
        exited: Callable[[Exit], None],
    ) -> None:
        self.changed = asyncio.Event()
        """Set when something happened that a decision may depend on."""
        self._job_name, self._folder, self._ports, self._gpus, self._argv = job_name, folder, ports, gpus, argv
        self._exited = exited
        # Probes stay on this machine, so no proxy is used.
        self._client = httpx.AsyncClient(trust_env=False)
        self._objects: dict[Ref, Manifest] = {}
        self._pods: dict[Ref, LocalPod] = {}
        self._stopping: dict[Ref, asyncio.Task[None]] = {}
        self._report: TrainerReport | None = None
        self._idle = timedelta(0)
        self._accepted = accepted
        self._key = folder.key()
        self._job_text: str | None = None

    def observe(self) -> Observed:
        """What exists now: the input of a decision."""
        objects: dict[Ref, Manifest] = dict(self._objects)
        if self._key is not None:
            objects.setdefault(Ref("Secret", key_name(self._job_name)), {})
        trainers = tuple(sorted((self._run_of(name) for name in self._trainers()), key=lambda run: run.attempt))
        return Observed(
            rules=ClusterRules(allow_privileged=True),  # a process has the user's rights in any case
            accepted=self._accepted,
            objects=objects,
            key=key_digest(self._key) if self._key is not None else None,
            task_app=self._component("taskApp"),
            inference=self._component("inference"),
            trainers=trainers,
            report=self._report,
            run_folder=str(self._folder.root),
            idle=self._idle,
        )

    def apply(self, child: Manifest) -> None:
        """Create or update an object, as far as it has a meaning on one machine. Raises ``OSError`` where that does not
        succeed now."""
        name = ref(child)
        if name in self._stopping:
            return  # applied again when the old one is gone
        previous = self._objects.get(name)
        match child["kind"]:
            case "Secret":
                self._key = key_in(with_fresh_key(child))
                self.repair_files()
                self.changed.set()  # what runs needs it
            case "ConfigMap" if name.name == config_name(self._job_name):
                self._job_text = child["data"][JOB_FILE]
                self._accepted = Job.model_validate_json(self._job_text)
                self.repair_files()
            case "Deployment" | "Job":
                if previous is not None and previous["spec"]["template"] == child["spec"]["template"]:
                    pass
                elif name in self._pods:
                    self.delete(name)  # replaced, never doubled: started again when the old one is gone
                else:
                    self._start(name, child)
        self._objects[name] = child

    def repair_files(self) -> None:
        """Write the files that the components read where they are not as they should be. Raises ``OSError``."""
        if self._key is not None and self._folder.key() != self._key:
            self._folder.write_key(self._key)
        if self._job_text is not None and not self._folder.has_job(self._job_text):
            self._folder.write_job(self._job_text)

    def delete(self, name: Ref) -> None:
        """Delete an object; its pod ends in the background and exists until it has ended."""
        if name in self._pods and name not in self._stopping:
            self._stopping[name] = asyncio.create_task(self._end(name))
        elif name not in self._pods:
            self._objects.pop(name, None)

    async def watch(self) -> None:
        """Follow the trainer's report, and notice when nothing moves any more."""
        still, looked = 0, time.monotonic()
        while True:
            before = self._report
            await self._poll_report()
            runs = any(self._pods[name].state.started and not self._pods[name].ended for name in self._trainers())
            # After a stop of this process, the time of the stop counts for nobody.
            passed = timedelta(seconds=min(time.monotonic() - looked, LONGEST_LOOK_SECONDS))
            self._idle = self._idle + passed if runs and self._report == before else timedelta(0)
            looked = time.monotonic()
            pods = list(self._pods.values())
            busy = self._report is not None and self._report.phase in BUSY_PHASES
            idle = all(pod.state.ready and pod.pulse.idle for pod in pods)
            still = still + 1 if busy and idle and self._report == before else 0
            if still >= STALLED_SECONDS:
                still = 0
                for pod in pods:
                    pod.condemn(f"no component has computed for {STALLED_SECONDS} s, and training has not moved")
            await asyncio.sleep(1.0)

    async def _poll_report(self) -> None:
        """Ask the running trainer for its report; the last answer stays until another trainer runs."""
        name = next(iter(self._trainers()), None)
        if name is None or self._key is None or not self._pods[name].state.ready:
            return
        url = f"http://{LOOPBACK}:{self._ports['trainer']}/status"
        headers = {"Authorization": f"Bearer {self._key}", "Accept-Encoding": "identity"}
        data = b""
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            async with (
                asyncio.timeout(REPORT_TIMEOUT_SECONDS),
                self._client.stream("GET", url, headers=headers, timeout=None) as response,
            ):
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > MAX_REPORT_BYTES:
                        return
            if response.status_code == 200 and name in self._pods:
                self._report = read_report(data) or self._report

    async def close(self) -> None:
        """Stop every pod and wait until no process is left."""
        for name in list(self._pods):
            self.delete(name)
        await asyncio.gather(*self._stopping.values())
        await self._client.aclose()

    def kill(self) -> None:
        """Do not wait for the rest of the grace periods of a close."""
        for pod in self._pods.values():
            pod.kill()

    # --- pods

    def _start(self, name: Ref, child: Manifest) -> None:
        started = self._launch(child)
        attempt = child["metadata"]["labels"].get(ATTEMPT_LABEL)
        if name.kind == "Job":
            self._report = None
        self._pods[name] = LocalPod(
            started,
            self._folder.log(started.component),
            title=f"{started.component}, attempt {attempt}" if attempt else started.component,
            restarts=name.kind == "Deployment",
            client=self._client,
            changed=self.changed.set,
            exited=self._exited,
        )

    def _launch(self, child: Manifest) -> Launch:
        template = child["spec"]["template"]
        return launch(template, self._job_name, self._folder, self._ports, self._gpus, self._argv)

    async def _end(self, name: Ref) -> None:
        await self._pods[name].stop()
        del self._pods[name], self._objects[name], self._stopping[name]
        self.changed.set()

    def _trainers(self) -> list[Ref]:
        return [name for name in self._pods if name.kind == "Job"]

    def _component(self, component: Component) -> ObservedComponent:
        pod = self._pods.get(Ref("Deployment", component_name(self._job_name, component)))
        return pod.state if pod else ObservedComponent()

    def _run_of(self, name: Ref) -> TrainerRun:
        pod, labels = self._pods[name], self._objects[name]["metadata"]["labels"]
        outcome: Literal["Active", "Succeeded", "Failed"] = "Active"
        if pod.ended:
            outcome = "Succeeded" if pod.state.exit_code == 0 else "Failed"
        return TrainerRun(int(labels[ATTEMPT_LABEL]), outcome, name in self._stopping, pod.state)
