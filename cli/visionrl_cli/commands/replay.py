"""``visionrl replay``: a recorded episode as a picture that moves."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionrl_cli.extras import needed_packages

DESCRIPTION = """Write a recorded episode as a GIF (or WebP, or MP4): each frame with the actions that followed it.

A run records one episode on its first held-out seed at every evaluation (runs/<job>/films). Without --iteration the
last one is taken; --list shows which there are.
"""
EXAMPLES = """examples:
  visionrl replay runs/crafter-tiny --out after.gif
  visionrl replay runs/crafter-tiny --iteration 0 --out before.gif
  visionrl replay runs/crafter-tiny --out film.mp4 --seconds 0.4        # pip install "visionrl[video]"
  visionrl replay runs/crafter-tiny --list
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, such as runs/crafter-tiny")
    parser.add_argument("--iteration", metavar="N", type=int, help="which recording (default: the last one)")
    parser.add_argument("--out", metavar="FILE", type=Path, help=".gif, .webp or .mp4 (default: <job>-<iteration>.gif)")
    parser.add_argument("--list", action="store_true", help="list the recordings")
    parser.add_argument("--seconds", metavar="S", type=_seconds, default=0.8, help="per frame (default: 0.8)")


def command(options: argparse.Namespace) -> int:
    with needed_packages("replay", "trainer"):
        from visionrl_cli.moving import MovingError, recordings, write
    try:
        found = recordings(options.run)
        if options.list:
            for each in found:
                told = f"seed {each.seed}, {len(each.turns)} turns, score {each.score:.2f}"
                print(f"{each.iteration:>6}  {told}  {each.policy}")
            return 0
        chosen = next((each for each in reversed(found) if options.iteration in (None, each.iteration)), None)
        if chosen is None:
            listed = ", ".join(str(each.iteration) for each in found)
            raise MovingError(f"no recording of iteration {options.iteration}; there are {listed}")
        out: Path = options.out or Path(f"{options.run.resolve().name}-{chosen.iteration}.gif")
        write(chosen, out, options.seconds)
    except MovingError as error:
        print(f"visionrl: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.filename else f"visionrl: {error}", file=sys.stderr)
        return 1
    print(f"{out}: iteration {chosen.iteration}, seed {chosen.seed}, {len(chosen.turns)} turns")
    return 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.02 <= seconds <= 60:
        raise argparse.ArgumentTypeError(f"{text!r}: give 0.02 to 60 seconds")
    return seconds
