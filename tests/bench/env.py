"""What the environment costs, and that it is the same game: processor time and every step against stock Crafter.

    python -m tests.bench.env [--rounds 5] [--seeds 32] [--steps 170] [--json FILE]

Both sides play the same worlds with the same actions, and take turns; stock has numba as well, which jits its noise,
and Pillow's PNG encoder. Figures are medians in CPU milliseconds a call, so other load on the machine matters little.
Steps, frames and files are averages over one cycle of day and night with the player kept alive; frames are dear by
night.

A start state that is played again is restored here; with stock it is a reset, a deep copy or an unpickled copy: the
last two are the fair peers. The comparison of steps ends with exit code 1 where any of them differs in frame, reward,
end or state.
"""

from __future__ import annotations

import argparse
import copy
import io
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import crafter
import numpy as np
from PIL import Image

from tests.bench.common import interleaved, median, spread, write
from tests.unit.taskapp.stock_crafter import StockCrafter, assert_same_state, provide, random_actions
from visionrl_taskapp.envs.crafter.env import ACTIONS, CrafterEnv, warm_up
from visionrl_taskapp.envs.png import encode_png

SIZES = (64, 144, 256, 288, 512)
SEED = 3
CYCLE = 300
"""Steps of a day and a night."""
FIRST_EXACT_SEED = 7001
STATE_EVERY = 25
"""Steps; the whole state is compared so often, frame, reward and end in every step."""


class Unrendered(crafter.Env):
    """Stock Crafter that renders only when asked to."""

    def _obs(self) -> None:
        return None


def again(call: Callable[[], Any], times: int) -> Callable[[], Any]:
    return lambda: [call() for _ in range(times)]


def row(
    what: str, size: int | None, sides: Mapping[str, tuple[Callable[[], Any], int]], rounds: int, **more: Any
) -> Any:
    """One line: CPU milliseconds of a call of each side, of which its function makes so many."""
    seconds = interleaved({side: call for side, (call, _) in sides.items()}, rounds, time.process_time, **more)
    ms = {side: 1000 * median(seconds[side]) / calls for side, (_, calls) in sides.items()}
    stock = ms.get("stock")
    return {
        "what": what,
        "size": size,
        "stock_ms": stock,
        "ours_ms": ms["ours"],
        "ratio": None if stock is None else stock / ms["ours"],
        "spread": max(map(spread, seconds.values())),
    }


def pillow_png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


class Episode:
    """Both environments from the same start state."""

    def __init__(self, stock: crafter.Env, ours: CrafterEnv, steps: int) -> None:
        self.envs: dict[str, crafter.Env | CrafterEnv] = {"stock": stock, "ours": ours}
        self.actions = np.random.default_rng(SEED).integers(len(ACTIONS), size=steps).tolist()

    def reset(self, side: str) -> None:
        env = self.envs[side]
        if isinstance(env, CrafterEnv):
            env.reset(SEED)
        else:
            env._episode = 0  # the next reset makes the first world of the seed again
            env.reset()

    def play(self, side: str, each: Callable[[], Any]) -> None:
        """The episode, with ``each()`` after every step."""
        env = self.envs[side]
        for action in self.actions:
            env._player.inventory.update(health=9, food=9, drink=9, energy=9)
            env.step(action)
            each()

    def sides(self, rendering: CrafterEnv | None = None) -> dict[str, tuple[Callable[[], Any], int]]:
        """Playing on each side. Stock renders as it was made; ours renders where it is named."""
        each = {} if rendering is None else {"ours": rendering.render}
        return {side: (partial(self.play, side, each.get(side, _nothing)), len(self.actions)) for side in self.envs}


def _nothing() -> None:
    return None


def start_states(rounds: int) -> Iterator[dict[str, Any]]:
    """To begin an episode, and to begin it once more from the same state."""
    stock, ours = Unrendered(seed=SEED), CrafterEnv(image_size=64)
    stock.reset()
    ours.reset(SEED)
    snapshot, pickled = ours.snapshot(), pickle.dumps(stock)
    restore = again(lambda: ours.restore(snapshot), 100), 100
    yield row("reset", None, {"stock": (stock.reset, 1), "ours": (lambda: ours.reset(SEED), 1)}, max(rounds, 5))
    yield row("restore, against reset", None, {"stock": (stock.reset, 1), "ours": restore}, max(rounds, 5))
    copied = again(lambda: copy.deepcopy(stock), 5), 5
    yield row("restore, against copy.deepcopy", None, {"stock": copied, "ours": restore}, rounds)
    loaded = again(lambda: pickle.loads(pickled), 5), 5
    yield row("restore, against pickle.loads", None, {"stock": loaded, "ours": restore}, rounds)
    yield row("snapshot", None, {"ours": (again(ours.snapshot, 100), 100)}, rounds)
    yield row("state_hash", None, {"ours": (again(ours.state_hash, 100), 100)}, rounds)


def steps(rounds: int, cycle: int) -> Iterator[dict[str, Any]]:
    """A step, its frame, and the frame's PNG."""
    episode = Episode(Unrendered(seed=SEED), CrafterEnv(image_size=64), cycle)
    yield row("step", None, episode.sides(), rounds, prepare=episode.reset)
    for size in SIZES:
        ours = CrafterEnv(image_size=size)
        episode = Episode(crafter.Env(seed=SEED, size=(size, size)), ours, cycle)
        rendered = row("step + render", size, episode.sides(ours), rounds, prepare=episode.reset)
        yield rendered
        frames = rendered_frames(episode, ours)
        some = frames[::5]  # Pillow takes long
        encoders = {"stock": pillow_png, "ours": encode_png}
        encoded = {side: (partial(_encode, encode, some), len(some)) for side, encode in encoders.items()}
        png = row("PNG", size, encoded, rounds)
        yield png
        both = {key: rendered[key] + png[key] for key in ("stock_ms", "ours_ms")}
        yield {
            **png,
            **both,
            "what": "step + render + PNG",
            "ratio": both["stock_ms"] / both["ours_ms"],
            "spread": max(rendered["spread"], png["spread"]),
        }


def rendered_frames(episode: Episode, ours: CrafterEnv) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    episode.reset("ours")
    episode.play("ours", lambda: frames.append(ours.render()))
    return frames


def _encode(encode: Callable[[np.ndarray], bytes], frames: list[np.ndarray]) -> None:
    for frame in frames:
        encode(frame)


def compare(seeds: int, steps_each: int) -> dict[str, Any]:
    """Play so many worlds in both, step by step, at sizes in turn; counts what was compared and what was different."""
    found: dict[str, Any] = {"seeds": seeds, "steps": 0, "night": 0, "asleep": 0, "different": 0, "first": None}
    for index in range(seeds):
        seed, size = FIRST_EXACT_SEED + 13 * index, SIZES[index % len(SIZES)]
        stock, ours = StockCrafter(seed, size), CrafterEnv(image_size=size)
        ours.reset(seed)
        for step, action in enumerate(random_actions(seed, steps_each)):
            for player in (stock._player, ours._player):
                provide(player, step)
            stock._last_health = stock._player.health  # what was given is no reward
            frame, reward, done, _ = stock.step(ACTIONS.index(action))
            mine = ours.step(action)
            found["steps"] += 1
            found["night"] += stock._world.daylight < 0.5
            found["asleep"] += bool(stock._player.sleeping)
            same = np.array_equal(frame, ours.render()) and (reward, done) == (mine.reward, mine.done)
            if not (same and (step % STATE_EVERY or _same_state(ours, stock))):
                found["different"] += 1
                found["first"] = found["first"] or [seed, step, size]
                break
    return {key: int(value) if isinstance(value, np.integer) else value for key, value in found.items()}


def _same_state(ours: CrafterEnv, stock: crafter.Env) -> bool:
    try:
        assert_same_state(ours, stock)
    except AssertionError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=32, help="worlds that are compared step by step")
    parser.add_argument("--steps", type=int, default=170, help="steps of each of them")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    warm_up()
    rows = []
    print(f"{'CPU ms':<34}{'px':>5}{'stock':>10}{'here':>9}{'ratio':>9}{'spread':>8}")
    for rows_of in (start_states(arguments.rounds), steps(arguments.rounds, CYCLE)):
        for line in rows_of:
            rows.append(line)
            stock = "" if line["stock_ms"] is None else f"{line['stock_ms']:.3f}"
            ratio = "" if line["ratio"] is None else f"{line['ratio']:.1f}×"
            print(
                f"{line['what']:<34}{line['size'] or '':>5}{stock:>10}{line['ours_ms']:>9.3f}{ratio:>9}"
                f"{line['spread']:>8.0%}",
                flush=True,
            )
    exact = compare(arguments.seeds, arguments.steps)
    print(exact)
    write(arguments.json, "env", {"rows": rows, "exact": exact})
    return bool(exact["different"])


if __name__ == "__main__":
    sys.exit(main())
