"""Whether a live object still is what its manifest says, in the fields that the manifest sets.

Everything else of the object belongs to others: defaults that the API server filled in, fields that other controllers
or people added. The comparison is on values, not on a hash that we wrote ourselves: whoever changes a field leaves
the hash alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from visionrl_core.manifests.common import Manifest

# Fields of a manifest that name the object and are no content of it.
IDENTITY = ("apiVersion", "kind", "name", "namespace", "status")
# Maps that are one value: another key in them changes what they select.
ATOMIC = frozenset({"selector", "matchLabels", "nodeSelector"})
# What tells the items of a list apart, the first that all items have.
ITEM_KEYS = ("name", "uid", "mountPath")

_ABSENT = object()


def differences(manifest: Manifest, live: Mapping[str, Any]) -> list[str]:
    """Paths of the manifest's fields whose live value is another one, such as ``spec.replicas``."""
    content = {name: value for name, value in manifest.items() if name not in IDENTITY}
    content["metadata"] = {name: value for name, value in content["metadata"].items() if name not in IDENTITY}
    return list(_differences(content, live, ""))


def _differences(wanted: Any, live: Any, path: str) -> Iterator[str]:
    if wanted in ({}, []) and live in (_ABSENT, None, {}, []):
        return
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        if path.rpartition(".")[2] in ATOMIC and wanted.keys() != live.keys():
            yield path
            return
        for name, value in wanted.items():
            yield from _differences(value, live.get(name, _ABSENT), f"{path}.{name}" if path else name)
    elif isinstance(wanted, list) and isinstance(live, list):
        yield from _list_differences(wanted, live, path)
    elif wanted != live:
        yield path


def _list_differences(wanted: list[Any], live: list[Any], path: str) -> Iterator[str]:
    key = _item_key(wanted)
    if key is None:
        if len(wanted) != len(live):
            yield path
            return
        for index, (ours, found) in enumerate(zip(wanted, live, strict=True)):
            yield from _differences(ours, found, f"{path}[{index}]")
        return
    for ours in wanted:
        found = next((item for item in live if isinstance(item, Mapping) and item.get(key) == ours[key]), _ABSENT)
        yield from _differences(ours, found, f"{path}[{ours[key]}]")


def _item_key(items: Sequence[Any]) -> str | None:
    """The field by which items of a list are found, wherever others were put between them."""
    if not all(isinstance(item, Mapping) for item in items):
        return None
    for key in ITEM_KEYS:
        values = [item.get(key) for item in items]
        if None not in values and len(set(values)) == len(values):
            return key
    return None
