"""Names and manifests: a name means one content, and a folder is what its manifest says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.adapters import (
    MANIFEST,
    Manifest,
    ManifestError,
    Version,
    read_manifest,
    verified_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(b"one")
    (tmp_path / "b.json").write_text("{}")
    return tmp_path


@given(job=st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True), number=st.integers(0, 999_999))
def test_a_name_is_read_as_it_was_written(job: str, number: int) -> None:
    version = Version(job, number, "0123456789ab")
    assert Version.parse(version.name) == version


@pytest.mark.parametrize(
    "name", ["", "base", "a-v000012", "a-v12-0123456789ab", "a-v000012-0123456789AB", "a-v000012-"]
)
def test_other_texts_are_no_versions(name: str) -> None:
    with pytest.raises(ValueError, match="not the name"):
        Version.parse(name)


def test_other_content_has_another_name(folder: Path) -> None:
    first = Version.of("job", 1, Manifest.of_folder(folder))
    (folder / "a.bin").write_bytes(b"two")
    second = Version.of("job", 1, Manifest.of_folder(folder))
    assert first.name != second.name
    assert second.matches(Manifest.of_folder(folder))
    assert not first.matches(Manifest.of_folder(folder))


def test_a_written_manifest_is_read_and_verified(folder: Path) -> None:
    written = write_manifest(folder)
    assert read_manifest(folder) == verified_manifest(folder) == written == Manifest.parse(written.to_json())


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "add", "no manifest"])
def test_a_damaged_folder_is_not_verified(folder: Path, damage: str) -> None:
    write_manifest(folder)
    path = folder / "a.bin"
    match damage:
        case "flip":
            path.write_bytes(b"onf")
        case "cut":
            path.write_bytes(b"")
        case "delete":
            path.unlink()
        case "add":
            (folder / "c.bin").touch()
        case "no manifest":
            (folder / MANIFEST).write_text("{")
    with pytest.raises(ManifestError):
        verified_manifest(folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"files": {}}',
        "[" * 100_000,
        " " * (2 << 20),
        json.dumps({"files": {"../a": {"size": 1, "sha256": "0" * 64}}}),
        json.dumps({"files": {MANIFEST: {"size": 1, "sha256": "0" * 64}}}),
        json.dumps({"files": {"a": {"size": -1, "sha256": "0" * 64}}}),
        json.dumps({"files": {"a": {"size": True, "sha256": "0" * 64}}}),
        json.dumps({"files": {"a": {"size": 1, "sha256": "0"}}}),
        json.dumps({"files": {"a": 1}}),
    ],
    ids=range(12),
)
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ManifestError):
        Manifest.parse(text)
