"""Recorded episodes of a run, as moving pictures."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

from PIL import Image, ImageDraw, UnidentifiedImageError
from visionrl_trainer.report.replay import Replay, ReplayFrame, load_all

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
LEAST_SIDE = 320
"""Pixels: smaller frames are enlarged by a whole number."""
CAPTION = 28
"""Pixels below a frame, for what was done."""


class MovingError(Exception):
    """Why there is nothing to show; the message is for the user."""


def recordings(run: Path) -> list[Replay]:
    """All recordings of a run, by iteration. Raises :class:`MovingError` where there are none."""
    found = load_all(run / "films")
    if not found:
        raise MovingError(
            f"{run}: no recorded episode in {run / 'films'}; a run records one at every evaluation "
            "(evaluation.episodes of the job), and needs frames (not text alone)"
        )
    return found


def write(replay: Replay, out: Path, seconds: float) -> None:
    """Write it. Raises :class:`MovingError`, ``OSError``."""
    form = FORMATS.get(out.suffix.lower())
    if form is None:
        raise MovingError(f"{out}: its name must end with {' or '.join(FORMATS)}")
    pictures = [_picture(index, frame) for index, frame in enumerate(replay.frames) if frame.png]
    if not pictures:
        raise MovingError(f"the recording of iteration {replay.iteration} has no frames: its policy sees text")
    first, *rest = pictures
    first.save(out, form, save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0)


def _picture(index: int, frame: ReplayFrame) -> Image.Image:
    """The frame, enlarged, above what followed."""
    try:
        seen = Image.open(io.BytesIO(base64.b64decode(frame.png, validate=True))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, ValueError) as error:
        raise MovingError(f"frame {index} of the recording is damaged: {error}") from None
    scale = max(1, -(-LEAST_SIDE // seen.width))
    large = seen.resize((seen.width * scale, seen.height * scale), Image.Resampling.NEAREST)
    picture = Image.new("RGB", (large.width, large.height + CAPTION), "black")
    picture.paste(large)
    draw = ImageDraw.Draw(picture)
    draw.text((4, large.height + 2), caption(index, frame), fill="white")
    if frame.unlocked:
        draw.text((4, large.height + 14), f"+ {', '.join(frame.unlocked)}", fill="yellow")
    return picture


def caption(index: int, frame: ReplayFrame) -> str:
    """ "3: move_left, do"."""
    done = ", ".join(frame.actions) or "nothing"
    return f"{index + 1}: {done}{'' if frame.valid else ' (no valid tool call)'}"
