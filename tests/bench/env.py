"""What the environment costs: process CPU time against stock Crafter with Pillow's PNG encoder.

    python tests/bench/env.py [--repeats 5] [--json FILE]

Both sides play the same worlds with the same actions; stock has numba as well, which jits its noise. Every
figure is the median over `--repeats` runs in CPU milliseconds a call, so other load on the machine matters
little. Steps, frames and files are averages over one cycle of day and night with the player kept alive;
frames are dear by night.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import crafter
import numpy as np
from PIL import Image

from visionrl_taskapp.envs.crafter.env import ACTIONS, CrafterEnv, warm_up
from visionrl_taskapp.envs.png import encode_png

SIZES = (64, 144, 256, 288, 512)
SEED = 3
STEPS = 300  # one cycle of day and night
ACTION_SEQUENCE = np.random.default_rng(SEED).integers(len(ACTIONS), size=STEPS).tolist()


@dataclass(frozen=True)
class Row:
    """One line of the table: CPU milliseconds a call."""

    what: str
    size: int | None
    stock_ms: float | None
    ours_ms: float

    @property
    def ratio(self) -> float | None:
        return None if self.stock_ms is None else self.stock_ms / self.ours_ms


class Unrendered(crafter.Env):
    """Stock Crafter that renders only when asked to."""

    def _obs(self) -> None:
        return None


def cpu_ms(call: Callable[[], Any], calls: int, repeats: int, prepare: Callable[[], Any] = int) -> float:
    """Median CPU milliseconds of one of the `calls` calls that `call()` stands for.

    `prepare()` runs before each run and is not measured; neither is a first run of both.
    """
    times = []
    for _ in range(1 + repeats):
        prepare()
        start = time.process_time()
        call()
        times.append(1000 * (time.process_time() - start) / calls)
    return statistics.median(times[1:])


def keep_alive(player: Any) -> None:
    player.inventory.update(health=9, food=9, drink=9, energy=9)


def pillow_png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def play(env: crafter.Env | CrafterEnv, each: Callable[[], Any] = int) -> None:
    """Play the episode from a reset env on, with `each()` after each step."""
    for action in ACTION_SEQUENCE:
        keep_alive(env._player)
        env.step(action)
        each()


def step_ms(env: crafter.Env | CrafterEnv, repeats: int, each: Callable[[], Any] = int) -> float:
    """CPU milliseconds of a step and of `each()` after it; the resets in between are not measured."""

    def reset() -> None:
        if isinstance(env, CrafterEnv):
            env.reset(SEED)
        else:
            env._episode = 0  # the next reset makes the first world of the seed again
            env.reset()

    return cpu_ms(lambda: play(env, each), STEPS, repeats, prepare=reset)


def rendered(env: CrafterEnv) -> list[np.ndarray]:
    """The frames of one episode."""
    frames: list[np.ndarray] = []
    env.reset(SEED)
    play(env, lambda: frames.append(env.render()))
    return frames


def png_ms(encode: Callable[[np.ndarray], bytes], frames: list[np.ndarray], repeats: int) -> float:
    """CPU milliseconds of encoding one of the frames."""
    return cpu_ms(lambda: [encode(frame) for frame in frames], len(frames), repeats)


def measure(repeats: int) -> Iterator[Row]:
    warm_up()
    stock, ours = Unrendered(seed=SEED), CrafterEnv(image_size=64)
    stock_reset = cpu_ms(stock.reset, 1, max(repeats, 5))
    ours.reset(SEED)
    snapshot = ours.snapshot()

    def many(call: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [call() for _ in range(100)]

    yield Row("reset", None, stock_reset, cpu_ms(lambda: ours.reset(SEED), 1, max(repeats, 20)))
    yield Row("restore (against reset)", None, stock_reset, cpu_ms(many(lambda: ours.restore(snapshot)), 100, repeats))
    yield Row("snapshot", None, None, cpu_ms(many(ours.snapshot), 100, repeats))
    yield Row("state_hash", None, None, cpu_ms(many(ours.state_hash), 100, repeats))
    yield Row("step", None, step_ms(stock, repeats), step_ms(ours, repeats))
    for size in SIZES:
        ours = CrafterEnv(image_size=size)
        stock_step = step_ms(crafter.Env(seed=SEED, size=(size, size)), repeats)
        ours_step = step_ms(ours, repeats, each=ours.render)
        yield Row("step + render", size, stock_step, ours_step)
        frames = rendered(ours)[::5]  # encoding apart, on every fifth frame of the episode: Pillow takes long
        stock_png = png_ms(pillow_png, frames, repeats)
        ours_png = png_ms(encode_png, frames, repeats)
        yield Row("PNG", size, stock_png, ours_png)
        yield Row("step + render + PNG", size, stock_step + stock_png, ours_step + ours_png)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    rows = []
    print(f"{'CPU ms':<24}{'px':>5}{'stock':>10}{'here':>9}{'ratio':>8}")
    for row in measure(arguments.repeats):
        rows.append(row)
        stock = "" if row.stock_ms is None else f"{row.stock_ms:.3f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.1f}×"
        print(f"{row.what:<24}{row.size or '':>5}{stock:>10}{row.ours_ms:>9.3f}{ratio:>8}", flush=True)
    if arguments.json:
        document = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
