"""What the components read: the job as JSON, and its key."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Any

from visionrl.job import Job
from visionrl_core.manifests.common import Manifest, Owner, owned_manifest

JOB_FILE = "job.json"
KEY_FILE = "api-key"


def config_name(job_name: str) -> str:
    return f"{job_name}-config"


def key_name(job_name: str) -> str:
    return f"{job_name}-key"


def job_json(job: Job) -> str:
    """The resolved job: camelCase, defaults filled in."""
    return job.model_dump_json(by_alias=True, indent=2) + "\n"


def config_map(job: Job, owner: Owner) -> Manifest:
    return owned_manifest("v1", "ConfigMap", config_name(job.name), owner, data={JOB_FILE: job_json(job)})


def secret(owner: Owner, key: str | None = None) -> Manifest:
    """The Secret with the job's key. It is created once and never changed: running components hold its key. Without a
    key, it is the wish for one that is random: whoever makes it gives it that (:func:`with_fresh_key`)."""
    return owned_manifest(
        "v1",
        "Secret",
        key_name(owner.name),
        owner,
        type="Opaque",
        immutable=True,
        data={} if key is None else _data(key),
    )


def with_fresh_key(manifest: Manifest) -> Manifest:
    """A Secret with a new random key."""
    return {**manifest, "data": _data(secrets.token_urlsafe(32))}


def key_in(manifest: Mapping[str, Any]) -> str:
    """The key in a Secret."""
    return base64.b64decode(manifest["data"][KEY_FILE]).decode()


def _data(key: str) -> dict[str, str]:
    return {KEY_FILE: base64.b64encode(key.encode()).decode()}
