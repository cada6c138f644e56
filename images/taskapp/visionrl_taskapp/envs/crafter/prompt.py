"""Crafter in words: the system prompt, with the rules of the installed package (`rules()`), and the state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from visionrl.tools import TOOL_NAME
from visionrl_taskapp.envs.crafter.env import LocalView
from visionrl_taskapp.envs.crafter.rules import ACHIEVEMENTS, Rules, rules
from visionrl_taskapp.envs.protocol import PromptStyle


def system_prompt(style: PromptStyle) -> str:
    """Rules, strategy and tool use."""
    seen = _IMAGE_GUIDE if style.frames else _TEXT_GUIDE
    last = (
        "You see only the current situation, so decide from it alone."
        if style.segment_turns == 1
        else "What came last is the current situation."
    )
    return "\n\n".join(
        (
            "You play Crafter, a survival game on a grid. Unlock as many different achievements as you can; each "
            "counts once.",
            seen,
            "Rules\n" + "\n".join(f"- {line}" for line in rule_lines(rules())),
            "Strategy\n" + "\n".join(f"- {line}" for line in _strategy(rules())),
            "Achievements: " + ", ".join(ACHIEVEMENTS) + ".",
            f"Answer with one call of {TOOL_NAME} with 1 to {style.max_actions} actions; they are done in order. "
            f"{last}",
        )
    )


_IMAGE_GUIDE = (
    "The image shows 9 × 7 cells of the map, you in the middle, and below them your inventory: first health, food, "
    "drink and energy (0 to 9), then what you carry. Your figure looks in the direction that you face."
)
_TEXT_GUIDE = (
    "The text tells your inventory, what you face and what is in view: 9 × 7 cells with you in the middle. Offsets "
    "are (right, down) from you."
)


def rule_lines(game: Rules) -> list[str]:
    """The rules of Crafter as sentences."""
    lines = [
        "move_left, move_right, move_up and move_down turn you in that direction and move you one cell if it is free "
        f"({', '.join(game.walkable)}). Lava kills.",
        "do acts on the cell that you face: it gathers materials, drinks water, hits creatures, eats ripe plants.",
    ]
    for item in game.collect:
        needs = f" with a {_words(item.requires)}" if item.requires else ""
        chance = f" with probability {item.probability:g}" if item.probability < 1 else ""
        leaves = "" if item.leaves == item.material else f"; it becomes {item.leaves}"
        lines.append(f"do on {item.material}{needs} gives {_amounts(item.receives)}{chance}{leaves}.")
    for place in game.place:
        lines.append(f"place_{place.name} costs {_amounts(place.uses)}, on {', '.join(place.where)} in front of you.")
    for make in game.make:
        near = " and a ".join(make.nearby)
        lines.append(f"make_{make.name} costs {_amounts(make.uses)}, next to a {near}.")
    lines += [
        "Cows (food) and zombies take several hits, fewer with a sword; skeletons live in tunnels and shoot.",
        "A sapling that you placed must grow for a long time before it can be eaten; keep creatures away.",
        "sleep lasts until your energy is full or you are hurt; nothing else is done meanwhile.",
        "Food, drink and energy sink over time; health sinks while one of them is 0.",
    ]
    return lines


def _strategy(game: Rules) -> list[str]:
    table = next(place.uses["wood"] for place in game.place if place.name == "table")
    tools = sum(make.uses["wood"] for make in game.make if make.name in ("wood_pickaxe", "wood_sword"))
    return [
        "Walk up to a thing until it is the cell in front of you and you look at it, then do.",
        f"Gather {table + tools} wood from trees, place a table, make a wood pickaxe and a wood sword beside it.",
        "Then stone (place one too), coal, stone tools at a table, a furnace; then iron, and iron tools beside both.",
        "On the way: do on grass until you have a sapling and place it, drink at water, eat cows, fight zombies.",
        "Sleep when energy is low and no zombie is near: waking up counts.",
        "With nothing useful in view, walk on in one direction.",
    ]


def _amounts(amounts: Mapping[str, int]) -> str:
    return " + ".join(f"{amount} {name.replace('_', ' ')}" for name, amount in amounts.items())


def _words(names: Mapping[str, int]) -> str:
    return " and a ".join(name.replace("_", " ") for name in names)


# --- the state as text

_VITALS = ("health", "food", "drink", "energy")
_GROUND = ("grass", "sand", "path")


def state_text(view: LocalView, unlocked: Sequence[str]) -> str:
    """What the image shows, as text, plus the achievements so far."""
    columns, rows = view.materials.shape
    x, y = columns // 2, rows // 2
    front = x + view.facing[0], y + view.facing[1]
    carried = [f"{name} {amount}" for name, amount in view.inventory.items() if amount and name not in _VITALS]
    lines = [
        "Vitals: " + ", ".join(f"{name} {view.inventory[name]}" for name in _VITALS),
        "Carried: " + (", ".join(carried) or "nothing"),
        "You sleep." if view.sleeping else f"You face: {_thing(view, front)} at {view.facing}",
        "In view: " + ("; ".join(_sights(view, x, y)) or "nothing but open ground"),
        "Unlocked: " + (", ".join(unlocked) or "nothing"),
    ]
    return "\n".join(lines)


def _thing(view: LocalView, cell: tuple[int, int]) -> str:
    return str(view.objects[cell] or view.materials[cell]) or "the edge of the map"


def _sights(view: LocalView, x: int, y: int) -> list[str]:
    """Each kind of thing with the offsets of the nearest three."""
    found: dict[str, list[tuple[int, int]]] = {}
    columns, rows = view.materials.shape
    cells = sorted(((i - x, j - y) for i in range(columns) for j in range(rows)), key=lambda c: abs(c[0]) + abs(c[1]))
    for dx, dy in cells:
        name = _thing(view, (x + dx, y + dy))
        if (dx, dy) != (0, 0) and name not in _GROUND:
            found.setdefault(name, []).append((dx, dy))
    return [f"{name} at {', '.join(map(str, offsets[:3]))}" for name, offsets in found.items()]
