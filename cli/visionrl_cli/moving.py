"""Recorded episodes of a run, as moving pictures."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageDraw, UnidentifiedImageError

from visionrl_trainer.report.films import Film, FilmTurn

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
VIDEO = ".mp4"
LEAST_SIDE = 320
"""Pixels: smaller frames are enlarged by a whole number."""
CAPTION = 28
"""Pixels below a frame, for what was done."""


class MovingError(Exception):
    """Why there is nothing to show; the message is for the user."""


def recordings(run: Path) -> list[Film]:
    """The films of a run's evaluations, by iteration; a damaged one is left out. Raises :class:`MovingError` where
    there are none."""
    found = []
    for path in sorted((run / "films").glob("[0-9]*.json")):
        with contextlib.suppress(OSError, ValueError):
            found.append(Film.model_validate_json(path.read_bytes()))
    if not found:
        raise MovingError(
            f"{run}: no recorded episode in {run / 'films'}; a run records one at every evaluation "
            "(evaluation.episodes of the job), and needs frames (not text alone)"
        )
    return found


def write(film: Film, out: Path, seconds: float) -> None:
    """Write it. Raises :class:`MovingError`, ``OSError``."""
    suffix = out.suffix.lower()
    if suffix not in (*FORMATS, VIDEO):
        raise MovingError(f"{out}: its name must end with {', '.join(FORMATS)} or {VIDEO}")
    pictures = [_picture(index, turn) for index, turn in enumerate(film.turns) if turn.image]
    if not pictures:
        raise MovingError(f"the recording of iteration {film.iteration} has no frames: its policy sees text")
    if suffix == VIDEO:
        _write_video(pictures, out, seconds)
        return
    first, *rest = pictures
    first.save(out, FORMATS[suffix], save_all=True, append_images=rest, duration=round(1000 * seconds), loop=0)


def _write_video(pictures: Sequence[Image.Image], out: Path, seconds: float) -> None:
    """H.264, as browsers and slides play it: with an even number of pixels on both sides."""
    try:
        import av
    except ModuleNotFoundError:
        raise MovingError(
            f'{out}: a video needs the package av: pip install "visionrl[video]"; .gif and .webp need nothing'
        ) from None
    width, height = (side + side % 2 for side in pictures[0].size)
    with out.open("wb") as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(1 / seconds).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture.crop((0, 0, width, height)))))
        container.mux(stream.encode())


def _picture(index: int, turn: FilmTurn) -> Image.Image:
    """The frame, enlarged, above what followed."""
    try:
        data = base64.b64decode(turn.image.partition(",")[2], validate=True)
        seen = Image.open(io.BytesIO(data)).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError) as error:
        raise MovingError(f"frame {index} of the recording is damaged: {error}") from None
    scale = max(1, -(-LEAST_SIDE // seen.width))
    large = seen.resize((seen.width * scale, seen.height * scale), Image.Resampling.NEAREST)
    picture = Image.new("RGB", (large.width, large.height + CAPTION), "black")
    picture.paste(large)
    draw = ImageDraw.Draw(picture)
    draw.text((4, large.height + 2), caption(index, turn), fill="white")
    if turn.events:
        draw.text((4, large.height + 14), f"+ {', '.join(turn.events)}", fill="yellow")
    return picture


def caption(index: int, turn: FilmTurn) -> str:
    """ "3: move_left, do"."""
    done = ", ".join(turn.actions) or "nothing"
    return f"{index + 1}: {done}{'' if turn.valid else ' (no valid tool call)'}"
