"""The scripted policy: it sees what the image shows and nothing else.

It has no memory. Every decision depends only on :class:`~visionrl_taskapp.envs.crafter.env.LocalView`: the first
goal of `GOALS` that has a plan decides, so a model that sees one frame can learn to do the same. Costs come from
`data.yaml`.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from visionrl_taskapp.envs.crafter.env import ACTIONS, LocalView
from visionrl_taskapp.envs.crafter.rules import rules
from visionrl_taskapp.envs.crafter.world import VIEW

Cell: TypeAlias = tuple[int, int]
Plan: TypeAlias = list[str]

_COLUMNS, _ROWS = VIEW
_CENTER = (_COLUMNS // 2, _ROWS // 2)
_MOVES: dict[Cell, str] = {(-1, 0): "move_left", (1, 0): "move_right", (0, -1): "move_up", (0, 1): "move_down"}
_CLOCKWISE: tuple[Cell, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))
# More than any plan needs: plans are cut to the actions that a turn may carry.
_MANY = 8

_PLACE = {place.name: place for place in rules().place}
_MAKE = {make.name: make for make in rules().make}
_TABLE_WOOD = _PLACE["table"].uses["wood"]
_WOOD_TOOLS = ("wood_pickaxe", "wood_sword")
_STONE_TOOLS = ("stone_pickaxe", "stone_sword")
_FIRST_TOOLS_WOOD = sum(_MAKE[tool].uses["wood"] for tool in _WOOD_TOOLS)
_STONE_TOOLS_WOOD = sum(_MAKE[tool].uses["wood"] for tool in _STONE_TOOLS)
_STONE_TOOLS_STONE = sum(_MAKE[tool].uses["stone"] for tool in _STONE_TOOLS)
_FURNACE_STONE = _PLACE["furnace"].uses["stone"]


class Sight:
    """A view with the questions that goals ask of it. Cells are (column, row), the player at (4, 3)."""

    def __init__(self, view: LocalView) -> None:
        self.materials: list[list[str]] = view.materials.tolist()
        self.objects: list[list[str]] = view.objects.tolist()
        self.inventory = view.inventory
        self.sleeping = view.sleeping
        self.facing = view.facing
        self.front = _CENTER[0] + view.facing[0], _CENTER[1] + view.facing[1]

    def material(self, cell: Cell) -> str:
        return self.materials[cell[0]][cell[1]]

    def object(self, cell: Cell) -> str:
        return self.objects[cell[0]][cell[1]]

    def has(self, item: str, amount: int = 1) -> bool:
        return self.inventory[item] >= amount

    def is_bare(self, cell: Cell, material: str) -> bool:
        return self.material(cell) == material and not self.object(cell)

    def is_free(self, cell: Cell) -> bool:
        """Whether the player can walk there (lava can be walked on, once)."""
        return self.material(cell) in rules().walkable and not self.object(cell)

    def shows(self, material: str) -> bool:
        return any(material in column for column in self.materials)

    def shows_object(self, name: str) -> bool:
        return any(name in column for column in self.objects)

    def is_near(self, material: str) -> bool:
        """Whether tools can be made at it: within one cell, diagonals included."""
        x, y = _CENTER
        return any(material in column[y - 1 : y + 2] for column in self.materials[x - 1 : x + 2])

    def can_place(self, name: str) -> bool:
        return self.material(self.front) in _PLACE[name].where and not self.object(self.front)

    def openness(self, step: Cell) -> float:
        """Share of the way to the view's edge that can be walked before something is in the way."""
        way = self._way(step)
        return sum(1 for _ in itertools.takewhile(self.is_free, way)) / len(way)

    def safe_moves(self, step: Cell) -> int:
        """Moves in a direction before the player would step into visible lava."""
        materials = [self.material(cell) for cell in self._way(step)]
        return materials.index("lava") if "lava" in materials else _MANY

    def _way(self, step: Cell) -> list[Cell]:
        (x, y), (dx, dy) = _CENTER, step
        return [(x + n * dx, y + n * dy) for n in range(1, (x if dx else y) + 1)]

    def path(self, goal: Callable[[Cell], bool]) -> list[Cell] | None:
        """Directions to the nearest cell that `goal` accepts, the last one into that cell; ties in fixed order."""
        came_from: dict[Cell, tuple[Cell, Cell] | None] = {_CENTER: None}
        queue = collections.deque([_CENTER])
        while queue:
            cell = queue.popleft()
            for step in _MOVES:
                neighbour = cell[0] + step[0], cell[1] + step[1]
                if neighbour in came_from or not (0 <= neighbour[0] < _COLUMNS and 0 <= neighbour[1] < _ROWS):
                    continue
                if goal(neighbour):
                    path, back = [step], came_from[cell]
                    while back is not None:
                        path.append(back[1])
                        back = came_from[back[0]]
                    return path[::-1]
                if self.is_free(neighbour):
                    came_from[neighbour] = cell, step
                    queue.append(neighbour)
        return None

    def approach(self, goal: Callable[[Cell], bool], then: Plan, reach: int = _MANY) -> Plan | None:
        """Walk up to the nearest obstacle that `goal` accepts, face it, then do `then`."""
        path = self.path(goal)
        if path is None or len(path) > reach:
            return None
        # The last move only turns towards the obstacle: not needed when the way there ends in that direction.
        facing = path[-2] if len(path) > 1 else self.facing
        steps = path[:-1] if path[-1] == facing else path
        return [_MOVES[step] for step in steps] + then


def plan(view: LocalView, max_actions: int) -> Plan:
    """The next 1 to `max_actions` actions."""
    sight = Sight(view)
    return next(found for goal in GOALS if (found := goal(sight)))[:max_actions]


def random_plan(max_actions: int, rng: np.random.Generator) -> Plan:
    """A random plan that leads to states which the scripted policy does not reach."""
    if rng.random() < 0.6:
        return list(rng.choice(ACTIONS, size=rng.integers(1, max_actions + 1), p=_RANDOM_ACTIONS).tolist())
    return [list(_MOVES.values())[rng.integers(len(_MOVES))]] * int(rng.integers(1, max_actions + 1))


def _action_weights() -> np.ndarray:
    weights = np.array([3.0 if a == "do" else 2.0 if a.startswith("move_") else 0.3 for a in ACTIONS])
    return weights / weights.sum()


_RANDOM_ACTIONS = _action_weights()


# --- goals, in the order in which they are asked


def stay_asleep(sight: Sight) -> Plan | None:
    return ["sleep"] * _MANY if sight.sleeping else None


def fight(sight: Sight) -> Plan | None:
    """A zombie that stands next to the player."""
    return sight.approach(lambda cell: sight.object(cell) == "zombie", ["do"] * _MANY, reach=1)


def plant_sapling(sight: Sight) -> Plan | None:
    if not sight.has("sapling"):
        return None
    if sight.can_place("plant"):
        return ["place_plant"]
    path = sight.path(lambda cell: sight.is_bare(cell, "grass"))
    return [_MOVES[path[0]], "place_plant"] if path else None


def make_tools(sight: Sight) -> Plan | None:
    """Every tool that the inventory pays for, at a table within reach."""
    if not sight.is_near("table"):
        return None
    left, plan = collections.Counter(sight.inventory), []
    for tool in _WOOD_TOOLS + _STONE_TOOLS:
        uses = _MAKE[tool].uses
        if not sight.has(tool) and all(left[item] >= amount for item, amount in uses.items()):
            left.subtract(uses)
            plan.append(f"make_{tool}")
    return plan or None


def place_table(sight: Sight) -> Plan | None:
    """With enough wood for the table and the tools that are made there at once."""
    if sight.is_near("table"):
        return None
    if not sight.has("wood_pickaxe"):
        tools, needs = _WOOD_TOOLS, {"wood": _TABLE_WOOD + _FIRST_TOOLS_WOOD}
    elif not sight.has("stone_pickaxe"):
        tools, needs = _STONE_TOOLS, {"wood": _TABLE_WOOD + _STONE_TOOLS_WOOD, "stone": _STONE_TOOLS_STONE}
    else:
        return None
    if not all(sight.has(item, amount) for item, amount in needs.items()):
        return None
    craft = ["place_table", *(f"make_{tool}" for tool in tools)]
    if sight.can_place("table"):
        return craft
    path = sight.path(sight.is_free)
    return [_MOVES[path[0]], *craft] if path else None


def place_furnace(sight: Sight) -> Plan | None:
    if sight.shows("furnace") or not sight.has("stone", _FURNACE_STONE):
        return None
    return ["place_furnace"] if sight.can_place("furnace") else None


def eat(sight: Sight) -> Plan | None:
    if sight.inventory["food"] > 8:
        return None
    return sight.approach(lambda cell: sight.object(cell) == "cow", ["do"] * _MANY, reach=4)


def drink(sight: Sight) -> Plan | None:
    missing = rules().maximum["drink"] - sight.inventory["drink"]
    if missing < 2:
        return None
    return sight.approach(lambda cell: sight.material(cell) == "water", ["do"] * missing)


def find_sapling(sight: Sight) -> Plan | None:
    """At the start, for as long as nothing shows that it was done before."""
    done = sight.has("wood") or sight.has("wood_pickaxe") or sight.shows_object("plant") or sight.shows("table")
    return ["do"] * _MANY if not done and sight.is_bare(sight.front, "grass") else None


def gather_wood(sight: Sight) -> Plan | None:
    """For the first tools from any tree; then for the stone tools, and for a second table where trees are near."""
    if sight.has("stone_pickaxe"):
        return None
    wanted = _STONE_TOOLS_WOOD if sight.has("wood_pickaxe") else _TABLE_WOOD + _FIRST_TOOLS_WOOD
    reach = _MANY
    if sight.has("wood_pickaxe") and sight.has("wood", wanted):
        wanted, reach = wanted + _TABLE_WOOD, 3
    if sight.has("wood", wanted):
        return None
    return sight.approach(lambda cell: sight.material(cell) == "tree", ["do"], reach)


def first_stone(sight: Sight) -> Plan | None:
    """Mine one, put it back, mine it again: both achievements where stone is."""
    if not sight.has("wood_pickaxe") or sight.has("stone"):
        return None
    return sight.approach(lambda cell: sight.material(cell) == "stone", ["do", "place_stone", "do"])


def return_to_table(sight: Sight) -> Plan | None:
    if sight.has("stone_pickaxe") or not (sight.has("stone") and sight.has("wood")):
        return None
    return sight.approach(lambda cell: sight.material(cell) == "table", [])


def mine_iron(sight: Sight) -> Plan | None:
    if not sight.has("stone_pickaxe") or sight.has("iron"):
        return None
    return sight.approach(lambda cell: sight.material(cell) == "iron", ["do"])


def mine_coal(sight: Sight) -> Plan | None:
    if not sight.has("wood_pickaxe") or sight.has("coal"):
        return None
    return sight.approach(lambda cell: sight.material(cell) == "coal", ["do"])


def mine_stone(sight: Sight) -> Plan | None:
    if not sight.has("wood_pickaxe") or sight.has("stone", _FURNACE_STONE + _STONE_TOOLS_STONE):
        return None
    return sight.approach(lambda cell: sight.material(cell) == "stone", ["do"])


def explore(sight: Sight) -> Plan:
    """Straight on while the way is free, else towards the side that is open farthest; never into lava."""
    ahead = sight.facing
    if not sight.openness(ahead):
        turn = _CLOCKWISE.index(ahead)
        ahead = max((_CLOCKWISE[(turn + quarter) % 4] for quarter in (1, 3, 2)), key=sight.openness)
    return [_MOVES[ahead]] * sight.safe_moves(ahead) or ["noop"]


GOALS: tuple[Callable[[Sight], Plan | None], ...] = (
    stay_asleep,
    fight,
    plant_sapling,
    make_tools,
    place_table,
    place_furnace,
    eat,
    drink,
    find_sapling,
    gather_wood,
    first_stone,
    return_to_table,
    mine_iron,
    mine_coal,
    mine_stone,
    explore,
)
