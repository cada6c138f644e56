"""Supervised data for TRL: Parquet with a column of images, as the `datasets` library writes it.

A row has ``prompt`` and ``completion`` (messages whose contents are lists of typed parts), ``images`` (the PNG of each
frame, in the order of the prompt), ``tools`` (JSON) and ``metadata``. Of the two kinds that TRL's trainer takes for
images, this is the one whose loss is on the answer alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from visionrl.data.config import FilterError
from visionrl.data.read import Session, TracedDecision
from visionrl.data.write import metadata

SUFFIX = ".parquet"
GROUP_ROWS = 256
"""Rows that are in memory at once: of 300 KB frames, 75 MB."""

_TEXT, _INTEGER, _NUMBER = ({"dtype": kind, "_type": "Value"} for kind in ("string", "int64", "float64"))
_MESSAGES = {
    "_type": "List",
    "feature": {"role": _TEXT, "content": {"_type": "List", "feature": {"type": _TEXT, "text": _TEXT}}},
}
FEATURES: dict[str, Any] = {
    "prompt": _MESSAGES,
    "completion": _MESSAGES,
    "images": {"_type": "List", "feature": {"_type": "Image"}},
    "tools": _TEXT,
    "metadata": {
        **dict.fromkeys(("session_id", "env_name", "policy_name", "model", "created_at"), _TEXT),
        **dict.fromkeys(("seed", "achievements_count", "turn"), _INTEGER),
        "total_reward": _NUMBER,
    },
}
"""The columns, in the words of `datasets`, which reads them from the file's own metadata."""


def row(
    session: Session, decision: TracedDecision, image: Callable[[str], bytes], with_metadata: bool
) -> dict[str, Any]:
    """One decision as a row."""
    found: dict[str, Any] = {
        "prompt": [{"role": each["role"], "content": _parts(each["content"])} for each in decision.messages],
        "completion": [{"role": "assistant", "content": _parts(decision.target)}],
        "images": [{"bytes": image(name), "path": None} for name in decision.images],
        "tools": json.dumps(session.tools, ensure_ascii=False),
    }
    return {**found, "metadata": metadata(session, decision)} if with_metadata else found


def write(file: Path, rows: Iterator[dict[str, Any]], with_metadata: bool) -> None:
    """A file with these rows, or with none. Raises :class:`FilterError` where the package for it is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise FilterError('Parquet needs pyarrow, which is not installed: pip install "visionrl[data]"') from None
    features = {name: feature for name, feature in FEATURES.items() if with_metadata or name != "metadata"}
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pyarrow.schema([(name, _type(feature)) for name, feature in features.items()], metadata=described)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := list(itertools.islice(rows, GROUP_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, str | None]]:
    """A content as typed parts of one form, which is what a column can hold; frames are in the column of images."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": part["type"], "text": part.get("text")} for part in content]


def _type(feature: dict[str, Any]) -> Any:
    """The Arrow type of a feature."""
    import pyarrow

    match feature.get("_type"):
        case "Value":
            return pyarrow.type_for_alias(feature["dtype"])
        case "List":
            return pyarrow.list_(_type(feature["feature"]))
        case "Image":
            return pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    return pyarrow.struct([(name, _type(inner)) for name, inner in feature.items()])
