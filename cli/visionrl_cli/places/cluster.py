"""Jobs in a cluster: through the API server, with the rights of the user's kubeconfig."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import config
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from yaml import YAMLError

from visionrl.job import API_GROUP, Component, Job
from visionrl_cli.places.kubectl import Kubectl, KubectlError
from visionrl_cli.places.place import (
    CANCELLED,
    METRICS,
    Event,
    JobRecord,
    Metrics,
    PlaceError,
    Tail,
    metrics_of,
    read_status,
)
from visionrl_core.clock import stamp
from visionrl_core.kinds import EVENT, JOB, POD, Kind
from visionrl_core.manifests.common import SUFFIXES, selector
from visionrl_core.manifests.pods import RUN_DIR

CANCELLED_ANNOTATION = f"{API_GROUP}/cancelled"
"""When ``visionrl jobs cancel`` ended the job."""

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
PAGE = 500
MAX_ANSWER_BYTES = 64 << 20
MAX_LINE_BYTES = 1 << 20
JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML

Body = dict[str, Any]

# What the client raises for a kubeconfig that is damaged, besides its own error.
_UNUSABLE = (config.ConfigException, YAMLError, OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass
class Cluster:
    """One namespace of a cluster."""

    configuration: Any
    namespace: str
    context: str | None = None
    """Of the kubeconfig; None where the user named none."""

    def __post_init__(self) -> None:
        self._pool: urllib3.PoolManager = RESTClientObject(self.configuration).pool_manager

    @classmethod
    def connect(cls, context: str | None, namespace: str | None) -> Cluster:
        """The cluster of the kubeconfig's context, else of the pod that this runs in. Raises :class:`PlaceError`."""
        configuration = Configuration(retries=False)
        try:
            if context is None and "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=configuration)
                return cls(configuration, namespace or NAMESPACE_FILE.read_text().strip())
            files = os.environ.get("KUBECONFIG") or None
            config.load_kube_config(files, context, client_configuration=configuration)
            contexts, current = config.list_kube_config_contexts(files)
        except _UNUSABLE as error:
            named = f"--context {context}: " if context else ""
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PlaceError(
                f"{named}no cluster can be used: {reason}; set KUBECONFIG, or use --local for this machine"
            ) from None
        chosen = next((each for each in contexts if each["name"] == context), current)
        return cls(configuration, namespace or chosen["context"].get("namespace") or "default", context)

    @property
    def title(self) -> str:
        return f"{f'context {self.context}, ' if self.context else ''}namespace {self.namespace}"

    def command(self, words: str) -> str:
        context = f" --context {self.context}" if self.context else ""
        return f"kubectl visionrl {words}{context} -n {self.namespace}"

    # --- reading

    def jobs(self) -> list[JobRecord]:
        return [_record(body) for body in self._list(JOB)]

    def job(self, name: str) -> JobRecord:
        return _record(self.read(JOB.path(self.namespace, name), f"no job {name} in {self.title}"))

    def events(self, name: str) -> list[Event]:
        parts = tuple(f"{name}-{suffix}" for suffix in SUFFIXES.values())

        def tells_of_it(about: Body) -> bool:
            if about.get("kind") == JOB.name:
                return bool(about.get("name") == name)
            return str(about.get("name", "")).startswith(parts)

        found = [_event(body) for body in self._list(EVENT) if tells_of_it(body.get("involvedObject") or {})]
        return sorted(found, key=lambda event: event.time)

    def logs(self, name: str, component: Component, tail: Tail) -> Iterator[str]:
        pod = self._pod(name, component)
        parameters: dict[str, Any] = {"container": SUFFIXES[component]}
        parameters |= {"tailLines": tail.lines} if tail.lines is not None else {}
        parameters |= {"follow": "true"} if tail.follow else {}
        parameters |= {"previous": "true"} if tail.previous else {}
        path = f"{POD.path(self.namespace, pod, 'log')}?{urlencode(parameters)}"
        response = self._send("GET", path, read_seconds=None if tail.follow else READ_SECONDS)
        try:
            yield from _lines(response)
        except urllib3.exceptions.HTTPError as error:
            raise PlaceError(f"the log of {pod} was cut off: {error}") from None
        finally:
            response.release_conn()

    def metrics(self, name: str) -> Metrics:
        """From the trainer's run folder, as :mod:`visionrl_cli.places.fetching` reads it; else what the status has."""
        progress = self.job(name).status.progress
        kubectl, container = Kubectl(self.context, self.namespace), SUFFIXES["trainer"]
        try:
            pod = self._pod(name, "trainer")
            text = kubectl.run("exec", pod, "--container", container, "--", "cat", f"{RUN_DIR}/{METRICS}")
            return metrics_of(text.decode(errors="replace").splitlines())
        except (PlaceError, KubectlError) as error:
            found = progress.model_dump(mode="json", by_alias=True, exclude_none=True)
            return Metrics([found] if progress.total else [], missing=str(error))

    # --- changing

    def submit(self, job: Job) -> None:
        body = job.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        body["metadata"]["namespace"] = self.namespace
        self._call("POST", JOB.path(self.namespace), JSON, body, missing=_no_definition(self.title))

    def suspend(self, name: str) -> None:
        self._merge(name, {"spec": {"suspend": True}})

    def resume(self, name: str) -> None:
        self._merge(name, {"metadata": {"annotations": {CANCELLED_ANNOTATION: None}}, "spec": {"suspend": False}})

    def cancel(self, name: str) -> None:
        if self.job(name).status.finished:
            raise PlaceError(f"{name} has ended already")
        when = stamp(datetime.now(UTC))
        self._merge(name, {"metadata": {"annotations": {CANCELLED_ANNOTATION: when}}, "spec": {"suspend": True}})

    def apply(self, kind: Kind, body: Body) -> None:
        """Server-side apply of an object."""
        path = f"{kind.path(self.namespace, body['metadata']['name'])}?fieldManager=visionrl&force=true"
        self._call("PATCH", path, APPLY_PATCH, body, missing=f"the cluster has no {kind.plural}")

    def _merge(self, name: str, patch: Body) -> None:
        path = JOB.path(self.namespace, name)
        self._call("PATCH", path, MERGE_PATCH, patch, missing=f"no job {name} in {self.title}")

    # --- requests

    def _pod(self, name: str, component: Component) -> str:
        labels = ",".join(f"{key}={value}" for key, value in selector(name, component).items())
        pods = self._list(POD, labelSelector=labels)
        if not pods:
            self.job(name)
            raise PlaceError(f"{name} has no pod of {component} now; {self.command(f'explain {name}')} says why")
        newest: Body = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
        return str(newest["metadata"]["name"])

    def _list(self, kind: Kind, **parameters: str) -> list[Body]:
        items: list[Body] = []
        follow: Mapping[str, Any] = {"limit": PAGE, **parameters}
        while True:
            path = f"{kind.path(self.namespace)}?{urlencode(follow)}"
            page = self.read(path, _no_definition(self.title) if kind is JOB else f"no {kind.plural}")
            items += page.get("items", [])
            token = page.get("metadata", {}).get("continue")
            if not token:
                return items
            follow = {"limit": PAGE, "continue": token, **parameters}

    def read(self, path: str, missing: str) -> Body:
        """The object or collection at a path of the API; ``missing`` says what it means that there is none."""
        return self._call("GET", path, JSON, None, missing)

    def _call(self, method: str, path: str, content_type: str, body: Body | None, missing: str) -> Body:
        response = self._send(method, path, content_type, body, missing=missing)
        try:
            content = response.read(MAX_ANSWER_BYTES + 1)
            found = json.loads(content) if len(content) <= MAX_ANSWER_BYTES else None
        except (urllib3.exceptions.HTTPError, ValueError, RecursionError):
            found = None
        finally:
            response.release_conn()
        if not isinstance(found, dict):
            raise PlaceError(f"{self.configuration.host} does not answer like a Kubernetes API server")
        return found

    def _send(
        self,
        method: str,
        path: str,
        content_type: str = JSON,
        body: Body | None = None,
        missing: str = "not found",
        read_seconds: float | None = READ_SECONDS,
    ) -> urllib3.BaseHTTPResponse:
        """A response that is no error. Its content is not read yet."""
        headers = {"Accept": f"{JSON}, */*", "Content-Type": content_type, "User-Agent": "visionrl"}
        headers |= {each["key"]: each["value"] for each in self.configuration.auth_settings().values()}
        try:
            response = self._pool.request(
                method,
                self.configuration.host + path,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                preload_content=False,
            )
        except urllib3.exceptions.HTTPError as error:
            reason = f"{error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error}"
            raise PlaceError(f"cannot reach the cluster at {self.configuration.host}: {reason}") from None
        if response.status < 300:
            return response
        content = response.read(65_536)
        response.release_conn()
        raise PlaceError(_refusal(response.status, content, missing, self.title))


def _refusal(status: int, content: bytes, missing: str, title: str) -> str:
    """What an error of the API server means. A proxy between may answer with anything: only a Status is quoted."""
    try:
        message = str(json.loads(content)["message"])
    except (ValueError, TypeError, KeyError, RecursionError):
        message = f"the server answered {status}"
    if status == 404:
        return missing
    if status == 401:
        return f"{title}: the cluster does not know you: {message}; log in again"
    if status == 403:
        return f"{title}: not allowed: {message}"
    return f"{title}: {message}"


def _no_definition(title: str) -> str:
    return f"{title}: the cluster has no VisionRLJobs: helm install visionrl charts/visionrl"


def _record(body: Body) -> JobRecord:
    metadata = body.get("metadata") or {}
    status = read_status(body.get("status"))
    cancelled = CANCELLED_ANNOTATION in (metadata.get("annotations") or {}) and not status.finished
    document = {key: body.get(key) for key in ("apiVersion", "kind", "spec")}
    document["metadata"] = {key: value for key, value in metadata.items() if key != "managedFields"}
    return JobRecord(
        name=str(metadata.get("name", "")),
        namespace=str(metadata.get("namespace", "")),
        created=str(metadata.get("creationTimestamp", "")),
        phase=CANCELLED if cancelled else status.phase,
        status=status,
        document=document,
        generation=int(metadata.get("generation", 0)),
    )


def _event(body: Body) -> Event:
    about = body["involvedObject"]
    name = f"{about.get('kind')}/{about.get('name')}"
    time = body.get("lastTimestamp") or body.get("eventTime") or (body.get("metadata") or {}).get("creationTimestamp")
    return Event(
        time=str(time or ""),
        type=str(body.get("type", "")),
        reason=str(body.get("reason", "")),
        message=" ".join(str(body.get("message", "")).split()),
        about="" if about.get("kind") == JOB.name else name,
    )


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[str]:
    rest = b""
    for chunk in response.stream(65_536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if len(rest) > MAX_LINE_BYTES:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")
