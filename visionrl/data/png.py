"""Whether a PNG is whole, and its size, without decoding it."""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels. Raises ``ValueError`` for anything but a whole PNG with intact chunks."""
    if not data.startswith(SIGNATURE):
        raise ValueError("no PNG")
    place, kind, size = len(SIGNATURE), b"", (0, 0)
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, place) if place + 8 <= len(data) else (len(data), b"")
        end = place + 8 + length
        if end + 4 > len(data):
            raise ValueError("the PNG is cut off")
        body = memoryview(data)[place + 4 : end]
        if zlib.crc32(body) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"the PNG's chunk {kind!r} is damaged")
        if kind == b"IHDR":
            size = struct.unpack_from(">II", data, place + 8)
        place = end + 4
    return size
