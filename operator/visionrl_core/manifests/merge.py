"""Pod templates merged over the operator's, as a strategic merge patch does it: maps by key, lists by what names their
items. Other lists replace the operator's, but for tolerations, which are added: without its own, a GPU pod finds no
node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from visionrl_core.manifests.common import Manifest

# What names the items of a list, by the list's name.
NAMED_BY = {
    "containers": "name",
    "env": "name",
    "hostAliases": "ip",
    "imagePullSecrets": "name",
    "initContainers": "name",
    "ports": "containerPort",
    "resourceClaims": "name",
    "topologySpreadConstraints": "topologyKey",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
ADDED = frozenset({"tolerations", "envFrom"})
FIXED_IDS = ("runAsUser", "runAsGroup", "fsGroup")
# A volume or a variable has one source: another one takes its place.
ONE_SOURCE = {"volumes": "name", "env": "name"}


@dataclass(frozen=True)
class PodDefaults:
    """What a cluster gives all pods of jobs."""

    template: Mapping[str, Any] = field(default_factory=dict)
    """``metadata`` and ``spec``, below what a job says itself."""
    fixed_ids: bool = True
    """Whether pods name user and group; where a cluster assigns them (OpenShift), they must not."""


NO_DEFAULTS = PodDefaults()


def merged(base: Manifest, patch: Mapping[str, Any]) -> Manifest:
    """``base`` with everything that ``patch`` says."""
    found = dict(base)
    for name, value in patch.items():
        found[name] = _merged(name, found.get(name), value)
    return found


def with_defaults(template: Manifest, defaults: PodDefaults) -> Manifest:
    """A pod template with the cluster's defaults."""
    found = merged(template, defaults.template)
    if defaults.fixed_ids:
        return found
    context = {name: value for name, value in found["spec"]["securityContext"].items() if name not in FIXED_IDS}
    return {**found, "spec": {**found["spec"], "securityContext": context}}


def _merged(name: str, old: Any, new: Any) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return merged(dict(old), new)
    if isinstance(old, list) and isinstance(new, list):
        if name in ADDED:
            return [*old, *(item for item in new if item not in old)]
        if name in NAMED_BY:
            return _by_name(name, old, new)
    return new


def _by_name(name: str, old: list[Any], new: list[Any]) -> list[Any]:
    key = NAMED_BY[name]
    patches = {item.get(key): item for item in new}
    replaced = name in ONE_SOURCE
    found = [
        item if (patch := patches.pop(item.get(key), None)) is None else patch if replaced else merged(item, patch)
        for item in old
    ]
    return [*found, *patches.values()]
