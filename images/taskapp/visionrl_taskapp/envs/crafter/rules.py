"""The rules of Crafter as data, read from the `data.yaml` that the installed `crafter` package ships.

Recipes that circulate on the web disagree with the released package (what a table costs, for one), so
prompts and the scripted policy take them from here and nothing in this project states a cost by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from crafter import constants

ACTIONS: tuple[str, ...] = tuple(constants.actions)
"""The 17 action names; an action's index in this tuple is its number in stock Crafter."""

ACHIEVEMENTS: tuple[str, ...] = tuple(constants.achievements)
"""The 22 achievement names, in the package's order."""

ITEMS: tuple[str, ...] = tuple(constants.items)
"""The 16 inventory entries (four vital signs first), in the order in which the image shows them."""


@dataclass(frozen=True)
class Collect:
    """What `do` on a facing material needs, gives and leaves behind."""

    material: str
    requires: Mapping[str, int]
    receives: Mapping[str, int]
    leaves: str
    probability: float


@dataclass(frozen=True)
class Place:
    """What `place_<name>` uses up, and the materials that the facing cell may have."""

    name: str
    uses: Mapping[str, int]
    where: tuple[str, ...]


@dataclass(frozen=True)
class Make:
    """What `make_<name>` uses up, and the materials that must be within one cell of the player."""

    name: str
    uses: Mapping[str, int]
    nearby: tuple[str, ...]
    gives: int


@dataclass(frozen=True)
class Rules:
    """Everything `data.yaml` says about acting in the world."""

    collect: tuple[Collect, ...]
    place: tuple[Place, ...]
    make: tuple[Make, ...]
    walkable: tuple[str, ...]
    initial: Mapping[str, int]
    maximum: Mapping[str, int]


@functools.cache
def rules() -> Rules:
    """The installed package's rules; the mappings are shared, so treat them as read-only."""
    return Rules(
        collect=tuple(
            Collect(name, info["require"], info["receive"], info["leaves"], float(info.get("probability", 1)))
            for name, info in constants.collect.items()
        ),
        place=tuple(Place(name, info["uses"], tuple(info["where"])) for name, info in constants.place.items()),
        make=tuple(
            Make(name, info["uses"], tuple(info["nearby"]), info["gives"]) for name, info in constants.make.items()
        ),
        walkable=tuple(constants.walkable),
        initial={name: info["initial"] for name, info in constants.items.items()},
        maximum={name: info["max"] for name, info in constants.items.items()},
    )
