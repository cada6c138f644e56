"""Writing data: lines of messages, tools and metadata; files are moved into place when all of them are complete."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from visionrl.data.config import FilterError
from visionrl.data.read import Session, TracedDecision
from visionrl.durable import fsync

IMAGES = "images"
ImageForm = Literal["inline", "files", "none"]


def line(
    session: Session,
    decision: TracedDecision,
    image: Callable[[str], bytes],
    form: ImageForm,
    with_metadata: bool,
) -> dict[str, Any]:
    """One decision as a line of supervised data; its last message is the answer to learn."""
    prompt = [_message(message, image, form) for message in decision.messages]
    found: dict[str, Any] = {
        "messages": [*prompt, {"role": "assistant", "content": decision.target}],
        "tools": session.tools,
    }
    if with_metadata:
        found["metadata"] = metadata(session, decision)
    return found


def metadata(session: Session, decision: TracedDecision) -> dict[str, str | int | float]:
    """Where a line comes from."""
    return {
        "session_id": session.session_id,
        "env_name": session.env_name,
        "policy_name": session.policy_name,
        "seed": session.seed,
        "total_reward": session.total_reward,
        "achievements_count": session.achievements,
        "model": decision.model,
        "created_at": session.created_at,
        "turn": decision.turn,
    }


def image_path(sha256: str) -> str:
    """Path of an image, relative to the data's folder."""
    return f"{IMAGES}/{sha256}.png"


def _message(message: dict[str, Any], image: Callable[[str], bytes], form: ImageForm) -> dict[str, Any]:
    if isinstance(message["content"], str) or form == "none":
        return message
    return {**message, "content": [_part(part, image, form) for part in message["content"]]}


def _part(part: dict[str, Any], image: Callable[[str], bytes], form: ImageForm) -> dict[str, Any]:
    if part["type"] != "image":
        return part
    name = part["sha256"]
    inline = f"data:image/png;base64,{base64.b64encode(image(name)).decode()}" if form == "inline" else ""
    return {"type": "image_url", "image_url": {"url": inline or image_path(name)}}


class Draft:
    """Files for a folder: all of them are moved into place at the end of the block, or none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = folder / f".draft-{os.getpid()}"

    @contextlib.contextmanager
    def written(self) -> Iterator[Draft]:
        """Raises :class:`FilterError` where the files cannot be written; former files stay unchanged."""
        try:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root.mkdir(parents=True)
            yield self
            self._put_in_place()
        except OSError as error:
            raise FilterError(f"{self._folder} cannot be written: {error.strerror or error}") from None
        finally:
            shutil.rmtree(self._root, ignore_errors=True)

    def path(self, name: str) -> Path:
        """Where a file is to be written."""
        return self._root / name

    def lines(self, name: str, values: Iterator[dict[str, Any]]) -> None:
        """A file with one JSON object per line."""
        with (self._root / name).open("w", encoding="utf-8") as stream:
            for value in values:
                stream.write(json.dumps(value, ensure_ascii=False) + "\n")

    def document(self, name: str, value: dict[str, Any]) -> None:
        """A file with one JSON object."""
        (self._root / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def image(self, sha256: str, png: bytes) -> None:
        """An image beside the data."""
        path = self._root / image_path(sha256)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png)

    def _put_in_place(self) -> None:
        """Images first, so that no line ever names a missing one."""
        files = sorted(
            (path for path in self._root.rglob("*") if path.is_file()), key=lambda path: path.suffix != ".png"
        )
        for path in files:
            fsync(path)
        for path in files:
            target = self._folder / path.relative_to(self._root)
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
        fsync(self._folder)
