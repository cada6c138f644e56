"""Carries a decision out in Kubernetes: manifests are applied server-side under one field manager; deletions start with
the pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visionrl_core.desired import MADE_ONCE
from visionrl_core.kinds import JOB, OWNED_KINDS, POD, WORKLOAD, Kind, Kueue
from visionrl_core.manifests.common import OWNER_ANNOTATION, Manifest, Owner, Ref, ref
from visionrl_core.manifests.config import with_fresh_key
from visionrl_operator.api import Api, Body
from visionrl_operator.status_writer import Outdated
from visionrl_operator.store import Key, OwnedObject, Store


class NameTaken(Exception):
    """An object of that name exists and belongs to something else."""


class Applier:
    """Writes owned objects. The answers go to the store, so that the next decision knows them before the watch does."""

    def __init__(self, api: Api, store: Store, kueue: Kueue | None) -> None:
        self._api, self._store = api, store
        self._kinds = OWNED_KINDS | ({WORKLOAD: kueue.workload} if kueue is not None else {})

    async def apply(self, owner: Owner, manifest: Manifest) -> Body | None:
        """Make the object match the manifest: the object as it is now; None while a former one is being deleted. Raises
        :class:`NameTaken`, ``ApiError``."""
        target, kind = ref(manifest), self._kinds[manifest["kind"]]
        existing = self._store.owned(Key(owner.namespace, owner.name)).get(target)
        if existing is not None and existing.owner_uid != owner.uid:
            raise _taken(target)
        if existing is not None and existing.deleting:
            return None  # made again once it is gone
        if kind.name == "Secret":
            return await self._create(kind, owner, with_fresh_key(manifest))
        if kind.name in MADE_ONCE:
            made = await self._create(kind, owner, manifest)
        else:
            if existing is None:
                await self._refuse_taken(kind, owner, target)
            made = await self._api.apply(kind, owner.namespace, target.name, manifest)
        self._store.note(kind.name, made)
        return made

    async def delete(self, owner: Owner, target: Ref) -> None:
        """Delete the object after its pods: it exists until they are gone. No error where it is gone already."""
        existing = self._store.owned(Key(owner.namespace, owner.name)).get(target)
        if existing is None or existing.deleting:
            return
        kind = self._kinds[target.kind]
        propagation = "Background" if kind.name == WORKLOAD else "Foreground"  # a Workload has no pods
        going = await self._api.delete(kind, owner.namespace, target.name, existing.uid, propagation)
        if going is not None and going.get("kind", kind.name) == kind.name and "metadata" in going:
            self._store.note(kind.name, going)

    async def write_workload(self, owner: Owner, observed: OwnedObject, status: Mapping[str, Any]) -> None:
        """Write into the status of Kueue's Workload what was decided about exactly this version of it. Raises
        :class:`Outdated`."""
        kind, name = self._kinds[WORKLOAD], observed.ref.name
        metadata = {"resourceVersion": str(observed.version), "uid": observed.uid}
        written = await self._api.patch_status(kind, owner.namespace, name, {"metadata": metadata, "status": status})
        if written is None:
            raise Outdated(f"{owner.namespace}/{name}")
        self._store.note(kind.name, written)

    async def delete_pod_now(self, owner: Owner, target: Ref) -> None:
        """Delete a pod that its lost node would never confirm to have ended."""
        pod = self._store.owned(Key(owner.namespace, owner.name)).get(target)
        if pod is not None:
            await self._api.delete_now(POD, owner.namespace, target.name, pod.uid)

    async def delete_job(self, owner: Owner) -> None:
        """Delete the job itself; the garbage collector takes what it owns."""
        await self._api.delete(JOB, owner.namespace, owner.name, owner.uid, "Background")

    async def _refuse_taken(self, kind: Kind, owner: Owner, target: Ref) -> None:
        """Watches show what has our labels. Applying would merge with anything else of that name and make it ours, to
        be deleted with the job: a volume, perhaps."""
        found = await self._api.get(kind, owner.namespace, target.name)
        if found is not None and not _owned(found, owner):
            raise _taken(target)

    async def _create(self, kind: Kind, owner: Owner, manifest: Manifest) -> Body:
        name = manifest["metadata"]["name"]
        made = await self._api.create(kind, owner.namespace, manifest)
        if made is None:  # made before, by us or by somebody else
            made = await self._api.get(kind, owner.namespace, name)
            if made is None or not _owned(made, owner):
                raise _taken(ref(manifest))
            made = await self._labelled(kind, owner, manifest["metadata"]["labels"], made)
        return made

    async def find_unlabelled(self, owner: Owner, target: Ref, labels: Mapping[str, str]) -> bool:
        """Look for an owned object that no watch shows, because somebody changed its labels, and give it those back.
        Whether it was there."""
        kind = self._kinds[target.kind]
        found = await self._api.get(kind, owner.namespace, target.name)
        if found is None or not _owned(found, owner):
            return False
        self._store.note(kind.name, await self._labelled(kind, owner, labels, found))
        return True

    async def _labelled(self, kind: Kind, owner: Owner, labels: Mapping[str, str], found: Body) -> Body:
        present = found["metadata"].get("labels", {})
        if all(present.get(name) == value for name, value in labels.items()):
            return found
        name = found["metadata"]["name"]
        metadata = {"name": name, "namespace": owner.namespace, "labels": dict(labels)}
        body = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
        return await self._api.apply(kind, owner.namespace, name, body)


def _owned(body: Body, owner: Owner) -> bool:
    """Whether an object is this job's: by its owner reference, or, where it outlives the job, by its annotation."""
    metadata = body["metadata"]
    if "ownerReferences" not in metadata:
        return bool(metadata.get("annotations", {}).get(OWNER_ANNOTATION) == owner.uid)
    return any(found["uid"] == owner.uid for found in metadata["ownerReferences"])


def _taken(target: Ref) -> NameTaken:
    return NameTaken(f"{target} exists and is not this job's; delete it or give the job another name")
