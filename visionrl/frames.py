"""The identity of an image: how frames are hashed and decoded.

The task app names each image of a decision by its hash. Inference and trainer decode the images they get and hash
them again, so a policy is never trained on other pixels than those it acted on.
"""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def frame_hash(frame: np.ndarray) -> str:
    """SHA-256 (hex) over the shape and the raw RGB bytes of a uint8 [H, W, 3] frame."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"frame is {frame.dtype} {list(frame.shape)}; frame_hash needs uint8 [H, W, 3]")
    height, width, channels = frame.shape
    digest = hashlib.sha256(f"{height}x{width}x{channels}:".encode())
    digest.update(frame.tobytes())
    return digest.hexdigest()


def decode_png(data: bytes) -> np.ndarray:
    """An 8-bit RGB PNG as a uint8 [H, W, 3] array that the caller owns.

    Raises `ValueError` for anything else, cut-off files included (Pillow alone lets some of them pass).
    """
    if not data.startswith(_SIGNATURE):
        raise ValueError(f"not a PNG: the first bytes are {bytes(data[:8])!r}, not the PNG signature")
    if not data.endswith(_END):
        raise ValueError(
            f"the PNG of {len(data)} bytes is cut off or followed by other bytes: it does not end with its IEND chunk"
        )
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            mode, frame = image.mode, np.array(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and more for broken files
        raise ValueError(f"the PNG of {len(data)} bytes is damaged: {error}") from error
    if mode != "RGB":
        raise ValueError(f"the PNG has mode {mode}; frames are 8-bit RGB")
    return frame
