"""crafter-react: the prompt of each turn.

The built-in system prompt states the rules of the installed Crafter (`rules()`), a strategy and the tool. The context
is one frame, or a segment of turns that grows until the next segment begins. Responses from before the segment stay as
the model's own turns, with a short text in place of their frames and without thoughts: the roles alternate as chat
templates require, and a prompt's length is bounded.

Text that the model or the environment wrote is shown without control tokens (`without_control_tokens`), so that a
prompt has the frames and turns that were sent and no others.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visionrl.checks import takes_images
from visionrl.rollout import PolicyConfig
from visionrl.tools import TOOL_NAME
from visionrl_taskapp.envs.crafter.env import LocalView
from visionrl_taskapp.envs.crafter.rules import ACHIEVEMENTS, Rules, rules
from visionrl_taskapp.policies.toolcalls import without_thoughts

EARLIER_FRAME = "(an earlier frame)"
EARLIER_STATE = "(an earlier state)"

Message = dict[str, Any]

# Control tokens as text: ends of turns and image placeholders of the families that `visionrl.checks` knows as vision
# models. A tokenizer reads them as tokens wherever they occur. Matches the first character of each.
_CONTROL_TOKEN = re.compile(
    r"<(?=\|[^|<>\s]{1,64}\|>)"  # Qwen, Llama, Phi: <|im_end|>, <|image_pad|>
    r"|<(?=/?(?:s|bos|eos|image|img|video|IMG_CONTEXT|image_soft_token|(?:start|end)_of_[a-z]+)>)"  # Gemma, InternVL
    r"|\[(?=(?:/?INST|IMG|IMG_BREAK|IMG_END)\])"  # Pixtral
)


@dataclass(frozen=True)
class Frame:
    """An image of a prompt: the SHA-256 of its pixels and its PNG."""

    sha256: str
    png: bytes


def sends_frames(config: PolicyConfig) -> bool:
    """Whether prompts carry frames: `use_vision`, else `supports_vision`, else by the model's name.

    Without a model (the scripted policy), prompts are those of a vision model.
    """
    for explicit in (config.use_vision, config.supports_vision):
        if explicit is not None:
            return explicit
    return not config.model or takes_images(config.model)


def has_control_tokens(text: str) -> bool:
    """Whether a text spells a control token."""
    return _CONTROL_TOKEN.search(text) is not None


def without_control_tokens(text: str) -> str:
    """The text with each control token that it spells broken up by a space: `<|im_end|>` becomes `< |im_end|>`."""
    return _CONTROL_TOKEN.sub(r"\g<0> ", text)


@dataclass(frozen=True)
class PastTurn:
    """What an earlier prompt showed last, and the response to it."""

    frame: Frame | None
    text: str | None
    response: str


def build_messages(
    config: PolicyConfig, history: Sequence[PastTurn], frame: Frame | None, state_text: str | None
) -> list[Message]:
    """The prompt of one decision, images by hash: ``{"type": "image", "sha256": …}``.

    `history` holds the episode's earlier turns, oldest first. Those of the current segment are shown in full, so the
    prompt continues the segment's previous one; of those before it, the last `history_turns` responses are shown
    without their frames. A text policy passes no frame and gets string contents; in image-only mode `state_text` is
    None.
    """
    prompt = system_prompt(config) if config.system_prompt is None else config.system_prompt
    messages: list[Message] = [{"role": "system", "content": prompt}] if prompt else []
    start = segment_start(config, len(history))
    for past in history[start - min(config.history_turns, start) : start]:
        messages.append({"role": "user", "content": EARLIER_STATE if past.frame is None else EARLIER_FRAME})
        messages.append(
            {"role": "assistant", "content": without_control_tokens(without_thoughts(past.response).strip())}
        )
    for past in history[start:]:
        messages.append({"role": "user", "content": _observation(past.frame, past.text)})
        messages.append({"role": "assistant", "content": without_control_tokens(past.response)})
    messages.append({"role": "user", "content": _observation(frame, state_text)})
    return messages


def frames_of(config: PolicyConfig, history: Sequence[PastTurn], frame: Frame | None) -> list[Frame]:
    """The frames of that prompt, in order."""
    shown = [past.frame for past in history[segment_start(config, len(history)) :]]
    return [image for image in (*shown, frame) if image is not None]


def segment_start(config: PolicyConfig, turn: int) -> int:
    """First turn of the segment that this turn belongs to."""
    return turn - turn % config.segment_turns


def with_pixels(messages: Sequence[Message], frames: Sequence[Frame]) -> list[Message]:
    """The same messages with each image as a PNG data URL, as a server takes it."""
    urls = {frame.sha256: f"data:image/png;base64,{base64.b64encode(frame.png).decode()}" for frame in frames}

    def part(content: Message) -> Message:
        if content["type"] != "image":
            return content
        return {"type": "image_url", "image_url": {"url": urls[content["sha256"]]}}

    return [
        message if isinstance(message["content"], str) else {**message, "content": list(map(part, message["content"]))}
        for message in messages
    ]


def _observation(frame: Frame | None, state_text: str | None) -> str | list[Message]:
    if state_text is not None:
        state_text = without_control_tokens(state_text)
    if frame is None:
        return state_text or ""
    image = {"type": "image", "sha256": frame.sha256}
    return [{"type": "text", "text": state_text}, image] if state_text is not None else [image]


# --- the system prompt


def system_prompt(config: PolicyConfig) -> str:
    """Rules, strategy and tool use, for this configuration."""
    seen = _IMAGE_GUIDE if sends_frames(config) else _TEXT_GUIDE
    last = (
        "You see only the current situation, so decide from it alone."
        if config.segment_turns == 1
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
            f"Answer with one call of {TOOL_NAME} with 1 to {config.max_actions} actions; they are done in order. "
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
