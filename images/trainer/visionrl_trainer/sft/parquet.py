"""Supervised data of Parquet files, as ``visionrl filter --format trl`` writes them, in the form of lines."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIX = ".parquet"
ROWS = 64
"""Rows that are read at once."""


def read_rows(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as the entries of lines: messages, tools, metadata.

    Raises ``ValueError`` for a file of another kind, ``OSError`` where it cannot be read, ``ModuleNotFoundError`` where
    pyarrow is not installed.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with file.open("rb") as stream, parquet.ParquetFile(stream) as opened:
            names = set(opened.schema_arrow.names)
            if missing := {"prompt", "completion", "images"} - names:
                raise ValueError(f"has no column {min(missing)}; prompt, completion and images are needed")
            for batch in opened.iter_batches(ROWS):
                yield from map(_entry, batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise ValueError(f"is no whole Parquet file: {error}") from None


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    images = iter(row["images"] or ())
    messages = [
        {**message, "content": _content(message["content"], images)} for message in row["prompt"] + row["completion"]
    ]
    if next(images, None) is not None:
        raise ValueError("has a row with more images than its prompt has places for them")
    tools = row.get("tools")
    return {"messages": messages, "tools": json.loads(tools) if tools else None, "metadata": row.get("metadata")}


def _content(parts: list[dict[str, Any]], images: Iterator[dict[str, Any]]) -> str | list[dict[str, Any]]:
    if [part["type"] for part in parts] == ["text"]:
        return str(parts[0]["text"])
    return [_image(images) if part["type"] == "image" else {"type": "text", "text": part["text"]} for part in parts]


def _image(images: Iterator[dict[str, Any]]) -> dict[str, Any]:
    image = next(images, None)
    if image is None or not image["bytes"]:
        raise ValueError("has a row with fewer images than its prompt has places for them")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(image['bytes']).decode()}"},
    }
