"""Parquet files for TRL: the same decisions, which our trainer reads back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.test_reference_traces import database, png, record
from visionrl.data.config import FilterError, make_config
from visionrl.data.filter import filter_traces
from visionrl_cli import main
from visionrl_trainer.sft.file import SftFileError, read_sft

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def settings(path: Path, out: str, **filter_keys: Any) -> dict[str, Any]:
    selection = {"input_db": str(path), "output_dir": str(path.parent / out), **filter_keys}
    return {"filter": selection, "split": {"val": 0.5}}


def filtered(path: Path, out: str, **filter_keys: Any) -> Path:
    filter_traces(make_config(settings(path, out, **filter_keys), "t"))
    return path.parent / out


def test_the_rows_are_the_lines_in_columns(tmp_path: Path) -> None:
    path = database(tmp_path, [[record(0), record(50)], [record(100), record(150)]])
    lines, rows = filtered(path, "lines"), filtered(path, "rows", export_format="trl")
    assert sorted(file.name for file in rows.iterdir()) == ["stats.json", "train.parquet", "val.parquet"]
    found = read_sft(rows / "train.parquet", rows / "val.parquet", 64)
    expected = read_sft(lines / "train.jsonl", lines / "val.jsonl", 64)
    assert (found.training, found.validation) == (expected.training, expected.validation)
    assert (found.images, found.tools, found.digest) == (expected.images, expected.tools, expected.digest)


def test_datasets_reads_the_columns_by_the_files_own_words(tmp_path: Path) -> None:
    file = filtered(database(tmp_path, [[record(7)], [record(7)]]), "out", export_format="trl") / "train.parquet"
    table = parquet.read_table(file)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.schema.names == ["prompt", "completion", "images", "tools", "metadata"]
    assert features["images"] == {"_type": "List", "feature": {"_type": "Image"}}
    (row,) = table.to_pylist()
    assert row["images"] == [{"bytes": png(7), "path": None}]
    assert [part["type"] for part in row["prompt"][-1]["content"]] == ["text", "image"]
    assert row["metadata"]["seed"] in (0, 1)


def test_the_flag_has_the_short_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = database(tmp_path, [[record(0)], [record(50)]])
    assert main(["filter", str(path), "--output-dir", str(tmp_path / "out"), "--format", "trl"]) == 0
    assert (tmp_path / "out" / "train.parquet").is_file()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"filter": {"include_images": False}}, "filter.include_images: must be true with export_format trl"),
        ({"output": {"images": "files"}}, "output.images: has no effect with export_format trl"),
    ],
)
def test_images_are_always_inside(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    data = settings(tmp_path / "x.db", "out", export_format="trl")
    with pytest.raises(FilterError, match=told):
        make_config({**data, **changes, "filter": {**data["filter"], **changes.get("filter", {})}}, "t")


def test_a_file_that_is_no_whole_parquet_is_told(tmp_path: Path) -> None:
    file = filtered(database(tmp_path, [[record(0)], [record(50)]]), "out", export_format="trl") / "train.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SftFileError, match=r"train.parquet: is no whole Parquet file: "):
        read_sft(file, None, 64)
    other = tmp_path / "other.parquet"
    parquet.write_table(pyarrow.table({"messages": ["x"]}), other)
    with pytest.raises(SftFileError, match="has no column completion; prompt, completion and images are needed"):
        read_sft(other, None, 64)
    with pytest.raises(SftFileError, match=r"none.parquet: No such file"):
        read_sft(tmp_path / "none.parquet", None, 64)
