"""Whether a live object still is what its manifest says, in the fields that the manifest sets.

Everything else of the object belongs to others: defaults that the API server filled in, fields that other controllers
or people added. The comparison is on values, not on a hash that we wrote ourselves: whoever changes a field leaves
the hash alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

from visionrl_core.manifests.common import Manifest

# Fields of a manifest that name the object and are no content of it.
IDENTITY = ("apiVersion", "kind", "name", "namespace", "status")
# Maps that are one value: another key in them changes what they select.
ATOMIC = frozenset({"selector", "matchLabels", "nodeSelector"})
# What tells the items of a list apart, the first that all items have.
ITEM_KEYS = ("name", "uid", "mountPath")

_ABSENT = object()
# What the API server leaves out of its answers where a field may be absent.
EMPTY: tuple[Any, ...] = (None, False, 0, "", {}, [])

# Maps of quantities, which the API server writes in a form of its own: "1000m" becomes "1".
QUANTITIES = frozenset({"requests", "limits"})
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(m|k|[KMGTPE]i?)?")
POWERS = {"m": -1, "": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def differences(manifest: Manifest, live: Mapping[str, Any]) -> list[str]:
    """Paths of the manifest's fields whose live value is another one, such as ``spec.replicas``."""
    content = {name: value for name, value in manifest.items() if name not in IDENTITY}
    content["metadata"] = {name: value for name, value in content["metadata"].items() if name not in IDENTITY}
    return list(_differences(content, live, ""))


def _differences(wanted: Any, live: Any, path: str) -> Iterator[str]:
    if wanted == live:
        return  # most of an object, and quickly
    if live is _ABSENT and any(wanted == empty for empty in EMPTY):
        return
    if wanted in ({}, []) and live in (None, {}, []):
        return
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        if path.rpartition(".")[2] in ATOMIC and wanted.keys() != live.keys():
            yield path
            return
        for name, value in wanted.items():
            found = live.get(name, _ABSENT)
            if value != found:
                yield from _differences(value, found, f"{path}.{name}" if path else name)
    elif isinstance(wanted, list) and isinstance(live, list):
        yield from _list_differences(wanted, live, path)
    elif not _same_quantity(wanted, live, path):
        yield path


def _same_quantity(wanted: Any, live: Any, path: str) -> bool:
    if not QUANTITIES & set(path.split(".")) and not path.endswith(".sizeLimit"):
        return False
    amount = _amount(wanted)
    return amount is not None and amount == _amount(live)


def _amount(quantity: Any) -> Fraction | None:
    match = QUANTITY.fullmatch(str(quantity))
    if match is None:
        return None
    suffix = match[2] or ""
    base = 1024 if suffix.endswith("i") else 1000
    return Fraction(match[1].rstrip(".")) * Fraction(base) ** POWERS[suffix[:1]]


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
