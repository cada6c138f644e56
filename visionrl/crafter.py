"""What the contracts know of Crafter, the environment of a job that names none."""

from __future__ import annotations

import math
from collections.abc import Mapping

from visionrl.job import DEFAULT_ENVIRONMENT
from visionrl.status import Score

ACTIONS: tuple[str, ...] = (
    "noop",
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "do",
    "sleep",
    "place_stone",
    "place_table",
    "place_furnace",
    "place_plant",
    "make_wood_pickaxe",
    "make_stone_pickaxe",
    "make_iron_pickaxe",
    "make_wood_sword",
    "make_stone_sword",
    "make_iron_sword",
)
"""In the order of its action space (indices 0–16)."""

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
"""Its events, in the order of the package crafter, which the contracts do not need."""


def crafter_score(rates: Mapping[str, float]) -> float:
    """Crafter's score in percent: ``exp(mean ln(1 + sᵢ)) − 1`` over all 22 achievements (Hafner 2021, §3.2).

    `rates` has the share of the episodes that unlocked each achievement; those that are not named have none.
    """
    logs = [math.log1p(100 * rate) for rate in rates.values()]
    return math.expm1(sum(logs) / len(ACHIEVEMENTS))


def own_score(env_name: str, rates: Mapping[str, float]) -> dict[str, float]:
    """The score of many episodes that Crafter alone has, by its name in files; empty for any other environment."""
    return {"crafter_score": crafter_score(rates)} if env_name == DEFAULT_ENVIRONMENT else {}


def progress(achieved: Score) -> Score:
    """Percent of the achievements that an episode unlocks, as BALROG counts it (its `progression`)."""
    share = 100 / len(ACHIEVEMENTS)
    ends = {"mean": achieved.mean * share, "low": achieved.low * share, "high": achieved.high * share}
    return achieved.model_copy(update=ends)
