"""What an episode can score: the achievements of Crafter, each of which counts once."""

from __future__ import annotations

from visionrl.status import Score

ACHIEVEMENTS: tuple[str, ...] = (
    "collect_coal",
    "collect_diamond",
    "collect_drink",
    "collect_iron",
    "collect_sapling",
    "collect_stone",
    "collect_wood",
    "defeat_skeleton",
    "defeat_zombie",
    "eat_cow",
    "eat_plant",
    "make_iron_pickaxe",
    "make_iron_sword",
    "make_stone_pickaxe",
    "make_stone_sword",
    "make_wood_pickaxe",
    "make_wood_sword",
    "place_furnace",
    "place_plant",
    "place_stone",
    "place_table",
    "wake_up",
)
"""In the order of the package crafter, which the contracts do not need."""


def progress(achieved: Score) -> Score:
    """Percent of the achievements that an episode unlocks, as BALROG counts it (its `progression`)."""
    share = 100 / len(ACHIEVEMENTS)
    ends = {"mean": achieved.mean * share, "low": achieved.low * share, "high": achieved.high * share}
    return achieved.model_copy(update=ends)
