"""Supervised data of files: the lines or rows that ``visionrl filter`` writes, as demonstrations."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionrl.component import ConfigurationError
from visionrl.frames import decode_png, frame_hash
from visionrl_trainer.rollout.batch import VISION_TOKENS
from visionrl_trainer.sft import parquet
from visionrl_trainer.sft.teacher import Demonstration, Demonstrations

DATA_URL = "data:image/png;base64,"
ROLES = ("system", "user", "assistant")


class SftFileError(ConfigurationError):
    """A file or a line that cannot be trained on; the message begins with ``file:line``."""


@dataclass
class _Reader:
    """What is collected from one file after another."""

    image_size: int
    images: dict[str, bytes] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    first: str = ""
    """Where the tools come from."""
    achievements: dict[str, float] = field(default_factory=dict)
    """By episode."""
    _files: dict[Path | None, str] = field(default_factory=dict)
    """Hash of each image file, so that each is decoded once."""

    def read(self, file: Path) -> list[Demonstration]:
        entries = _rows(file) if file.suffix == parquet.SUFFIX else _lines(file)
        return [self._demonstration(where, entry, file.parent) for where, entry in entries]

    def _demonstration(self, where: str, entry: dict[str, Any], folder: Path) -> Demonstration:
        listed = _checked(where, "messages", entry.get("messages"), list)
        messages = tuple(
            self._message(f"{where}: messages[{index}]", each, folder) for index, each in enumerate(listed)
        )
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise SftFileError(f"{where}: messages: a prompt and, last, the assistant's answer are needed")
        answer = messages[-1]["content"]
        if not isinstance(answer, str) or not answer:
            raise SftFileError(f"{where}: messages[{len(messages) - 1}].content: the answer must be a text, not empty")
        self._take_tools(where, entry.get("tools"))
        self._take_metadata(where, entry.get("metadata"))
        prompt = messages[:-1]
        images = tuple(
            part["sha256"]
            for message in prompt
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "image"
        )
        return Demonstration(prompt, images, answer)

    def _message(self, where: str, value: Any, folder: Path) -> dict[str, Any]:
        message = _checked(where, "", value, dict)
        if message.get("role") not in ROLES:
            raise SftFileError(f"{where}.role: {message.get('role')!r}; use one of {', '.join(ROLES)}")
        if unknown := sorted(message.keys() - {"role", "content"}):
            raise SftFileError(f"{where}.{unknown[0]}: not read; an answer with its tool call is a text in content")
        content = message.get("content")
        if isinstance(content, str):
            return {**message, "content": _text(f"{where}.content", content)}
        parts = _checked(where, "content", content, list)
        return {
            **message,
            "content": [self._part(f"{where}.content[{n}]", part, folder) for n, part in enumerate(parts)],
        }

    def _part(self, where: str, value: Any, folder: Path) -> dict[str, Any]:
        part = _checked(where, "", value, dict)
        match part.get("type"):
            case "text":
                return {"type": "text", "text": _text(f"{where}.text", _checked(where, "text", part.get("text"), str))}
            case "image_url":
                source = _checked(where, "image_url", part.get("image_url"), dict)
                url = _checked(where, "image_url.url", source.get("url"), str)
                return {"type": "image", "sha256": self._image(f"{where}.image_url.url", url, folder)}
            case "image":
                raise SftFileError(f"{where}: an image by its hash alone; filter again with include_images = true")
        raise SftFileError(f"{where}.type: {part.get('type')!r}; use text or image_url")

    def _image(self, where: str, url: str, folder: Path) -> str:
        file = None if url.startswith(DATA_URL) else folder / url
        if file in self._files:
            return self._files[file]
        png = _png(where, url, folder)
        try:
            frame = decode_png(png)
        except ValueError as error:
            raise SftFileError(f"{where}: {error}") from None
        height, width, _ = frame.shape
        if (height, width) != (self.image_size, self.image_size):
            raise SftFileError(
                f"{where}: {width} × {height} px, but the job's rollout.envConfig.imageSize is {self.image_size}"
            )
        digest = frame_hash(frame)
        self.images[digest] = png
        if file:
            self._files[file] = digest
        return digest

    def _take_tools(self, where: str, value: Any) -> None:
        tools = None if value is None else _checked(where, "tools", value, list)
        if not self.first:
            self.first, self.tools = where, tools
        elif tools != self.tools:
            raise SftFileError(
                f"{where}: tools: other ones than in {self.first}; one training run offers one set of tools"
            )

    def _take_metadata(self, where: str, value: Any) -> None:
        if value is None:
            return
        metadata = _checked(where, "metadata", value, dict)
        episode, count = metadata.get("session_id"), metadata.get("achievements_count")
        if isinstance(episode, str) and isinstance(count, int | float):
            self.achievements[episode] = float(count)


def read_sft(training: Path, validation: Path | None, image_size: int) -> Demonstrations:
    """The demonstrations of a training file and, where there is one, of its validation file.

    Images are data URLs or files beside the data, squares of ``image_size`` pixels; they are named by the hash of
    their pixels. Raises :class:`SftFileError` for the first line that cannot be used, or a file that cannot be read.
    """
    reader = _Reader(image_size)
    train = reader.read(training)
    if not train:
        raise SftFileError(f"{training}: no line to train on")
    held_out = reader.read(validation) if validation else []
    returns, digest = tuple(reader.achievements.values()), _digest(train, held_out, reader.tools)
    return Demonstrations(train, held_out, reader.images, reader.tools, returns, digest)


def _digest(train: list[Demonstration], held_out: list[Demonstration], tools: list[dict[str, Any]] | None) -> str:
    """SHA-256 over what is learned from, frames by their own hashes: the same wherever the files lie."""
    found = hashlib.sha256(json.dumps(tools).encode())
    for side in (train, held_out):
        found.update(b"%d" % len(side))
        for each in side:
            found.update(json.dumps([each.messages, each.label]).encode())
    return found.hexdigest()


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of every row of a Parquet file."""
    try:
        for number, row in enumerate(parquet.read_rows(file), start=1):
            yield f"{file}: row {number}", row
    except ModuleNotFoundError as error:
        raise SftFileError(
            f'{file}: needs {error.name}, which is not installed: pip install "visionrl[data]"'
        ) from None
    except (ValueError, TypeError, KeyError) as error:
        raise SftFileError(f"{file}: {error}") from None
    except OSError as error:
        raise SftFileError(f"{file}: {error.strerror or error}") from None


def _lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of every line that is not blank."""
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                where = f"{file}:{number}"
                try:
                    text = raw.decode()
                except UnicodeDecodeError as error:
                    raise SftFileError(f"{where}: no UTF-8 text: {error.reason} at byte {error.start}") from None
                if text.strip():
                    yield where, _json(where, text)
    except OSError as error:
        raise SftFileError(f"{file}: {error.strerror or error}") from None


def _json(where: str, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SftFileError(f"{where}: no JSON, perhaps cut off: {error}") from None
    entry: dict[str, Any] = _checked(where, "the line", data, dict)
    return entry


def _checked(where: str, name: str, value: Any, kind: type) -> Any:
    if type(value) is kind:
        return value
    found = "missing" if value is None else f"expected {kind.__name__}, found {type(value).__name__}"
    separator = "" if not name else "." if where.endswith("]") else ": "
    raise SftFileError(f"{where}{separator}{name}: {found}")


def _text(where: str, text: str) -> str:
    if found := [token for token in VISION_TOKENS if token in text]:
        raise SftFileError(f"{where}: contains {found[0]}, which stands for an image; give images as image_url")
    return text


def _png(where: str, url: str, folder: Path) -> bytes:
    if url.startswith(DATA_URL):
        try:
            return base64.b64decode(url.removeprefix(DATA_URL), validate=True)
        except binascii.Error as error:
            raise SftFileError(f"{where}: no base64: {error}") from None
    path = folder / url
    if ":" in url or not path.resolve().is_relative_to(folder.resolve()):
        raise SftFileError(f"{where}: {url[:60]!r} is neither a {DATA_URL}… URL nor a file beside the data")
    try:
        return path.read_bytes()
    except OSError as error:
        raise SftFileError(f"{where}: {path}: {error.strerror}") from None
