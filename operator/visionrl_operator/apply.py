"""Carrying a decision out in Kubernetes: children are applied server-side under one field manager, and deleted from
the pods upwards."""

from __future__ import annotations

from visionrl_operator.api import FIELD_CONFLICT, Api, ApiError, Body
from visionrl_operator.children.common import Manifest, Owner, Ref, ref
from visionrl_operator.decide import MADE_ONCE
from visionrl_operator.kinds import CHILDREN, JOB, Kind
from visionrl_operator.store import Key, Store


class NameTaken(Exception):
    """An object of a child's name exists and belongs to something else."""


class Applier:
    """Writes children. Answers go to the store, so that the next decision knows of them before the watch does."""

    def __init__(self, api: Api, store: Store, workload: Kind | None) -> None:
        self._api, self._store, self._workload = api, store, workload

    async def apply(self, owner: Owner, child: Manifest) -> None:
        """Make the object so. Raises :class:`NameTaken`, ``ApiError``."""
        target, kind = ref(child), CHILDREN[child["kind"]]
        existing = self._store.children(Key(owner.namespace, owner.name)).get(target)
        if existing is not None and existing.owner_uid != owner.uid:
            raise _taken(target)
        if existing is not None and existing.deleting:
            return  # made again once it is gone
        if kind.name in MADE_ONCE or (kind.name == "ConfigMap" and existing is None):
            made = await self._create(kind, owner, child)
        else:
            made = await self._apply(kind, owner, child, ours=existing is not None)
        if kind.name != "Secret":
            self._store.note(kind.name, made)

    async def delete(self, owner: Owner, target: Ref) -> None:
        """Delete the object after its pods: it exists until they are gone. No error where it is gone already."""
        if target.kind == "Workload":
            if self._workload is not None:
                await self._api.delete(self._workload, owner.namespace, target.name, None, "Background")
            return
        existing = self._store.children(Key(owner.namespace, owner.name)).get(target)
        if existing is None or existing.deleting:
            return
        kind = CHILDREN[target.kind]
        going = await self._api.delete(kind, owner.namespace, target.name, existing.uid, "Foreground")
        if going is not None and going.get("kind", kind.name) == kind.name and "metadata" in going:
            self._store.note(kind.name, going)

    async def delete_job(self, owner: Owner) -> None:
        """Delete the job itself; the garbage collector takes what it owns."""
        await self._api.delete(JOB, owner.namespace, owner.name, owner.uid, "Background")

    async def _apply(self, kind: Kind, owner: Owner, child: Manifest, ours: bool) -> Body:
        """What is not known to be ours is not forced to be. (Somebody else's ConfigMap would not conflict with ours,
        so those are created.)"""
        try:
            return await self._api.apply(kind, owner.namespace, child["metadata"]["name"], child, force=ours)
        except ApiError as error:
            if error.reason == FIELD_CONFLICT:
                raise _taken(ref(child)) from None
            raise

    async def _create(self, kind: Kind, owner: Owner, child: Manifest) -> Body:
        name = child["metadata"]["name"]
        made = await self._api.create(kind, owner.namespace, child)
        if made is None:  # made before, by us or by somebody else
            made = await self._api.get(kind, owner.namespace, name)
            owners = [] if made is None else made["metadata"].get("ownerReferences", [])
            if made is None or not any(found["uid"] == owner.uid for found in owners):
                raise _taken(ref(child))
        return made


def _taken(target: Ref) -> NameTaken:
    return NameTaken(f"{target} exists and is not this job's; delete it or give the job another name")
