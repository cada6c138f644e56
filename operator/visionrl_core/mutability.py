"""Which fields of a job may change once it was accepted, and which changes restart a component."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from visionrl.job import Job, JobSpec

# The trainer reads its configuration file again at every iteration; the operator reads the rest. `taskApp.resources`
# restarts the task app alone, which keeps nothing that an episode cannot be played again without.
MUTABLE_PATHS = (
    "training.iterations",
    "evaluation",
    "lifecycle",
    "failurePolicy",
    "storage.export",
    "suspend",
    "taskApp.resources",
)


def immutable_part(spec: JobSpec) -> dict[str, Any]:
    """The fields that are fixed once the job was accepted and that differ from their defaults: an upgrade of the
    operator that adds a field with a default changes nothing for jobs that run."""
    fields = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for path in MUTABLE_PATHS:
        *parents, leaf = path.split(".")
        inner: Any = fields
        for parent in parents:
            inner = inner.get(parent, {})
        inner.pop(leaf, None)
    return {key: value for key, value in fields.items() if value != {}}


def changed_immutable_fields(accepted: JobSpec, wanted: JobSpec) -> list[str]:
    """Dotted paths, from ``spec``, of the fixed fields in which two specifications differ."""
    if accepted == wanted:
        return []
    return [
        path
        for path in _differences(accepted.model_dump(by_alias=True), wanted.model_dump(by_alias=True), "spec")
        if not _is_mutable(path.removeprefix("spec."))
    ]


def with_mutable_fields_of(accepted: Job, wanted: JobSpec) -> Job:
    """The accepted job with the changeable fields of another specification."""
    document = accepted.model_dump(mode="json", by_alias=True)
    source = wanted.model_dump(mode="json", by_alias=True)
    for path in MUTABLE_PATHS:
        *parents, leaf = path.split(".")
        target, origin = document["spec"], source
        for parent in parents:
            target, origin = target[parent], origin[parent]
        target[leaf] = origin[leaf]
    return Job.model_validate(document, by_alias=True, by_name=False)


def _is_mutable(path: str) -> bool:
    return any(path == mutable or path.startswith(f"{mutable}.") for mutable in MUTABLE_PATHS)


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        yield path
