"""Folders appear whole, or not at all, whatever has their name already."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from visionrl import folders
from visionrl.adapters import verified_manifest, write_manifest


def draft_of(root: Path, content: str) -> Path:
    draft = folders.new_draft(root, "x")
    (draft / "weights").write_text(content)
    write_manifest(draft)
    return draft


def left(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a damaged folder", "another folder", "a file"])
def test_what_is_not_whole_makes_room(tmp_path: Path, before: str) -> None:
    target = tmp_path / "target"
    if before == "a file":
        target.touch()
    elif before != "nothing":
        target.mkdir()
    if before == "a damaged folder":
        folders.place(draft_of(tmp_path, "former"), target)
        (target / "weights").write_text("damaged")
    elif before == "another folder":
        (target / "notes").touch()
    folders.place(draft_of(tmp_path, "new"), target)
    assert (target / "weights").read_text() == "new"
    assert left(tmp_path) == ["target"]


@pytest.mark.parametrize("same", [True, False])
def test_a_whole_folder_stays_unless_other_content_is_asked_for(tmp_path: Path, same: bool) -> None:
    target = tmp_path / "target"
    folders.place(draft_of(tmp_path, "first"), target)
    draft = draft_of(tmp_path, "second")
    folders.place(draft, target, None if same else verified_manifest(draft))
    assert (target / "weights").read_text() == ("first" if same else "second")
    assert left(tmp_path) == ["target"]


def test_what_cannot_be_deleted_is_swept_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: Path) -> None:
        raise OSError(f"{path} is busy")

    target = tmp_path / "target"
    target.mkdir()
    (target / "notes").touch()
    draft = draft_of(tmp_path, "new")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        folders.place(draft, target)
    assert (target / "weights").read_text() == "new"
    assert len(left(tmp_path)) == 2
    (tmp_path / ".hidden").touch()
    folders.sweep(tmp_path)
    assert left(tmp_path) == [".hidden", "target"]


def test_a_draft_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        folders.place(tmp_path / "draft", tmp_path / "target")
