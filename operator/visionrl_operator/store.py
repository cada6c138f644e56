"""What the operator knows of the cluster: jobs and the objects they own, fed by watches and by its own writes.

Of an object, only what decisions depend on is kept. A change that the operator made itself, or that no decision depends
on, starts no pass.
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from visionrl.job import API_GROUP
from visionrl_core.kinds import JOB, POD, WORKLOAD
from visionrl_core.kueue import WorkloadView, workload_view
from visionrl_core.manifests.common import HASH_ANNOTATION, JOB_LABEL, OWNER_ANNOTATION, Owner, Ref
from visionrl_core.observed import JobObject
from visionrl_core.pods import PodView, RunView, pod_view, replica_failure, run_view

Body = Mapping[str, Any]
REMEMBERED_GONE = 20_000
# The kinds that are applied again where they differ from their manifests.
COMPARED = frozenset({"ConfigMap", "Deployment", "NetworkPolicy", "Service"})


class Key(NamedTuple):
    """A job."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class OwnedObject:
    """An object of a job. ``detail`` is the kind's: a PodView, a RunView, a WorkloadView, or why a Deployment's pods
    could not be made."""

    ref: Ref
    uid: str
    version: int
    owner_uid: str
    """Of the controller; of a claim that outlives its job, the job's."""
    deleting: bool
    created: str
    hash: str = ""
    detail: PodView | RunView | WorkloadView | str = ""
    content: bytes = b""
    """What is compared with the manifest, compressed: as parsed objects, it would be most of the operator's memory.
    Empty for kinds that are made once."""

    def live(self) -> dict[str, Any]:
        """The object as far as it is compared: labels, our annotations, owners, and everything but its status."""
        found: dict[str, Any] = json.loads(zlib.decompress(self.content)) if self.content else {}
        return found

    def same(self, other: Entry | None) -> bool:
        """Whether nothing that matters differs."""
        return isinstance(other, OwnedObject) and replace(self, version=other.version) == other


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A VisionRLJob. Document and status are kept as text: as parsed objects, thousands of them would be most of the
    operator's memory."""

    owner: Owner
    generation: int
    version: int
    created: str
    deleting: bool
    phase: str
    """As the status says; a job that nobody has looked at is pending."""
    document_text: str
    status_text: str

    @property
    def uid(self) -> str:
        return self.owner.uid

    @property
    def object(self) -> JobObject:
        return JobObject(self.owner, self.generation, json.loads(self.document_text))

    @property
    def status(self) -> dict[str, Any]:
        """As it was written; empty before the first pass."""
        found: dict[str, Any] = json.loads(self.status_text)
        return found

    def same(self, other: Entry | None) -> bool:
        """Whether nothing that matters differs."""
        return isinstance(other, StoredJob) and replace(self, version=other.version) == other


Entry = OwnedObject | StoredJob


class Store:
    """``changed`` is called with the job of every object that changed."""

    def __init__(self, changed: Callable[[Key, Entry | None], None] = lambda key, entry: None) -> None:
        self._changed = changed
        self._jobs: dict[Key, StoredJob] = {}
        self._owned: dict[Key, dict[Ref, OwnedObject]] = {}
        # The version at which an object was gone, by uid: a late event is older and must not bring it back. An object
        # that only lost the label that is watched may come back; then its event is newer.
        self._gone: OrderedDict[str, int] = OrderedDict()

    # --- reading

    def job(self, key: Key) -> StoredJob | None:
        return self._jobs.get(key)

    def jobs(self) -> Iterator[tuple[Key, StoredJob]]:
        yield from list(self._jobs.items())

    def owned(self, key: Key) -> Mapping[Ref, OwnedObject]:
        return self._owned.get(key, {})

    def entries(self, kind: str) -> Iterator[tuple[Key, Entry]]:
        """Everything of one kind."""
        if kind == JOB.name:
            yield from list(self._jobs.items())
            return
        for key, objects in list(self._owned.items()):
            yield from ((key, found) for ref, found in list(objects.items()) if ref.kind == kind)

    def knows(self, uid: str, entry: Entry | None, version: int) -> bool:
        """Whether this version, or a newer one, is known."""
        gone = self._gone.get(uid, -1) >= version
        return gone or (entry is not None and entry.uid == uid and entry.version >= version)

    def find(self, kind: str, body: Body) -> Entry | None:
        """What is stored under the name of an object."""
        key = key_of(kind, body)
        return self._jobs.get(key) if kind == JOB.name else self.owned(key).get(_ref(kind, body))

    # --- feeding

    def feed(self, kind: str, body: Body) -> None:
        """An object as a watch or a list shows it."""
        self._take(kind, body, wake=True)

    def note(self, kind: str, body: Body) -> None:
        """An object as the answer to our own write shows it."""
        self._take(kind, body, wake=False)

    def remove(self, kind: str, body: Body) -> None:
        """An object is gone."""
        uid, key = body["metadata"]["uid"], key_of(kind, body)
        self._gone[uid] = version_of(body)
        if len(self._gone) > REMEMBERED_GONE:
            self._gone.popitem(last=False)
        entry = self.find(kind, body)
        if entry is None or entry.uid != uid:
            return
        if kind == JOB.name:
            del self._jobs[key]
        else:
            del self._owned[key][_ref(kind, body)]
            if not self._owned[key]:
                del self._owned[key]
        self._changed(key, None)

    def forget(self, kind: str, entry: Entry, key: Key) -> None:
        """An object whose deletion no watch reported."""
        name = entry.ref.name if isinstance(entry, OwnedObject) else key.name
        labels = {JOB_LABEL: key.name}
        version = str(entry.version)
        metadata = {
            "uid": entry.uid, "namespace": key.namespace, "name": name, "labels": labels, "resourceVersion": version,
        }  # fmt: skip
        self.remove(kind, {"metadata": metadata})

    def _take(self, kind: str, body: Body, wake: bool) -> None:
        uid, version = body["metadata"]["uid"], version_of(body)
        old = self.find(kind, body)
        if self._gone.get(uid, -1) >= version or (old is not None and old.version >= version):
            return
        self._gone.pop(uid, None)
        key = key_of(kind, body)
        entry: Entry
        if kind == JOB.name:
            entry = self._jobs[key] = _stored_job(body, version)
        else:
            entry = _owned_object(kind, body, version)
            self._owned.setdefault(key, {})[entry.ref] = entry
        if wake and not entry.same(old):
            self._changed(key, entry)


def key_of(kind: str, body: Body) -> Key:
    """The job that an object belongs to: its label, or, where somebody removed that, its owner."""
    metadata = body["metadata"]
    if kind == JOB.name:
        return Key(metadata["namespace"], metadata["name"])
    name = metadata.get("labels", {}).get(JOB_LABEL) or _controller(metadata)["name"]
    return Key(metadata["namespace"], name)


def version_of(body: Body) -> int:
    """Resource versions of one cluster are ordered: etcd's revisions, and by contract since Kubernetes 1.35."""
    return int(body["metadata"]["resourceVersion"])


def _controller(metadata: Body) -> Body:
    return next((owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")), {})


def _ref(kind: str, body: Body) -> Ref:
    return Ref(kind, body["metadata"]["name"])


def _stored_job(body: Body, version: int) -> StoredJob:
    metadata = body["metadata"]
    shown = {
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "labels": metadata.get("labels", {}),
        # The components get these with the job file; kubectl's copy of the object would be most of it.
        "annotations": {k: v for k, v in metadata.get("annotations", {}).items() if "kubernetes.io/" not in k},
    }
    document = {"apiVersion": JOB.api_version, "kind": JOB.name, "metadata": shown, "spec": body["spec"]}
    status = body.get("status", {})
    return StoredJob(
        owner=Owner(metadata["name"], metadata["namespace"], metadata["uid"]),
        generation=metadata.get("generation", 1),
        version=version,
        created=metadata["creationTimestamp"],
        deleting="deletionTimestamp" in metadata,
        phase=status.get("phase", "Pending"),
        document_text=_text(document),
        status_text=_text(status),
    )


def _text(document: Body) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _owned_object(kind: str, body: Body, version: int) -> OwnedObject:
    metadata = body["metadata"]
    detail: PodView | RunView | WorkloadView | str = ""
    if kind == POD.name:
        detail = pod_view(body)
    elif kind == "Job":
        detail = run_view(body)
    elif kind == "Deployment":
        detail = replica_failure(body)
    elif kind == WORKLOAD:
        detail = workload_view(body)
    own_annotations = metadata.get("annotations", {})
    return OwnedObject(
        ref=_ref(kind, body),
        uid=metadata["uid"],
        version=version,
        owner_uid=_controller(metadata).get("uid") or own_annotations.get(OWNER_ANNOTATION, ""),
        deleting="deletionTimestamp" in metadata,
        created=metadata["creationTimestamp"],
        hash=own_annotations.get(HASH_ANNOTATION, ""),
        detail=detail,
        content=_content(body) if kind in COMPARED else b"",
    )


def _content(body: Body) -> bytes:
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    kept = {
        "labels": metadata.get("labels", {}),
        "annotations": {name: text for name, text in annotations.items() if name.startswith(f"{API_GROUP}/")},
        "ownerReferences": metadata.get("ownerReferences", []),
    }
    others = {name: value for name, value in body.items() if name not in ("apiVersion", "kind", "metadata", "status")}
    return zlib.compress(_text({"metadata": kept, **others}).encode(), 1)
