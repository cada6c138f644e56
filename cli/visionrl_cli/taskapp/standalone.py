"""A task app without a job: what it says of itself, and its objects in a cluster."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from visionrl.documents import DocumentError, parse_json
from visionrl.job import Job
from visionrl.jobfile import JobFileError, load_job
from visionrl_cli.files import unusable
from visionrl_cli.places.place import PlaceError
from visionrl_core.kinds import JOB, OWNED_KINDS, Kind
from visionrl_core.manifests.common import PORT, Manifest, Owner, component_name
from visionrl_core.manifests.config import config_map, key_name, secret
from visionrl_core.manifests.taskapp import task_app_deployment
from visionrl_core.manifests.workloads import service

ASK_SECONDS = 30.0
MAX_ANSWER_BYTES = 4 << 20
LOOK_SECONDS = 1.0
MANAGED_BY = "app.kubernetes.io/managed-by"


def info(url: str, key_file: Path | None, as_json: bool) -> int:
    """Print what ``GET /info`` of a task app answers; the exit code."""
    from visionrl_cli.evaluation.session import task_app_key
    from visionrl_cli.evaluation.text import EvalError

    try:
        key = task_app_key(key_file)
        found = _asked(f"{url.rstrip('/')}/info", key)
    except (EvalError, PlaceError) as error:
        return _refused(str(error))
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for line in _lines(found):
            print(line)
    return 0


def _asked(url: str, key: str) -> dict[str, Any]:
    """Raises :class:`PlaceError`."""
    try:
        with httpx.stream("GET", url, headers={"X-API-Key": key}, timeout=ASK_SECONDS) as response:
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise PlaceError(f"{url}: its answer is larger than {MAX_ANSWER_BYTES >> 20} MiB")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise PlaceError(f"{url}: {error or type(error).__name__}; is it running there?") from None
    if response.status_code in (401, 403):
        raise PlaceError(f"{url}: the key is refused: set ENVIRONMENT_API_KEY, or --key-file, to that of the task app")
    try:
        found = parse_json(content)
    except DocumentError:
        found = None
    if response.status_code != 200 or not isinstance(found, dict):
        raise PlaceError(f"{url}: status {response.status_code}, and no answer of a task app")
    return found


def _lines(value: Any, indent: str = "") -> Iterator[str]:
    """Nested settings as indented lines."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{name}:"
            yield from _lines(inner, f"{indent}  ")
        else:
            yield f"{indent}{name}: {inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)}"


# --- in a cluster


def deploy(file: Path, context: str | None, namespace: str | None, wait_s: float) -> int:
    """Make the objects, wait until the pod is ready, and say how to reach it; the exit code."""
    from visionrl_cli.places.cluster import Cluster

    try:
        job = load_job(file)
        place = Cluster.connect(context, namespace)
        if _exists(place, JOB, job.name):
            return _refused(f"the job {job.name} is there and has its own task app; choose another metadata.name")
        for kind, manifest in objects(job, place.namespace):
            if kind.name == "Secret" and _exists(place, kind, manifest["metadata"]["name"]):
                continue  # its key is in use
            place.apply(kind, manifest)
        name = component_name(job.name, "taskApp")
        if wait_s > 0 and not _ready(place, name, wait_s):
            return _refused(f"{name} is not ready after {wait_s:g} s: kubectl -n {place.namespace} describe pod")
    except (JobFileError, OSError) as error:
        return unusable(file, error)
    except PlaceError as error:
        return _refused(str(error))
    key = f"kubectl -n {place.namespace} get secret {key_name(job.name)} -o jsonpath='{{.data.api-key}}' | base64 -d"
    print(f"http://{name}.{place.namespace}.svc:{PORT}")
    print(f"its key:         {key}", file=sys.stderr)
    print(f"from here:       kubectl -n {place.namespace} port-forward service/{name} {PORT}", file=sys.stderr)
    objects_named = f"deployment/{name} service/{name} configmap/{job.name}-config secret/{key_name(job.name)}"
    print(f"to delete it:    kubectl -n {place.namespace} delete {objects_named}", file=sys.stderr)
    return 0


def objects(job: Job, namespace: str) -> Iterator[tuple[Kind, Manifest]]:
    """The task app's objects as a job has them, without the job: nobody owns them or looks after them."""
    owner = Owner(job.name, namespace, "")
    for manifest in (
        secret(owner, secrets.token_urlsafe(32)),
        config_map(job, owner),
        service(owner, "taskApp"),
        task_app_deployment(job, owner),
    ):
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "ownerReferences"}
        metadata["labels"] = {**metadata["labels"], MANAGED_BY: "visionrl"}
        if manifest["kind"] == "Deployment":
            manifest["spec"]["template"]["metadata"]["labels"][MANAGED_BY] = "visionrl"
        yield OWNED_KINDS[manifest["kind"]], {**manifest, "metadata": metadata}


def _exists(place: Any, kind: Kind, name: str) -> bool:
    try:
        place.read(kind.path(place.namespace, name), "absent")
    except PlaceError as error:
        if str(error) == "absent":
            return False
        raise
    return True


def _ready(place: Any, name: str, wait_s: float) -> bool:
    end = time.monotonic() + wait_s
    path = OWNED_KINDS["Deployment"].path(place.namespace, name)
    while True:
        if place.read(path, f"{name} is gone").get("status", {}).get("readyReplicas", 0) >= 1:
            return True
        if not time.monotonic() < end:
            return False
        time.sleep(LOOK_SECONDS)


def _refused(text: str) -> int:
    print(f"visionrl: {text}", file=sys.stderr)
    return 1
