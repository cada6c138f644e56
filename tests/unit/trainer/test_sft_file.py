"""Supervised data of files, and what is wrong with lines that cannot be used."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visionrl.frames import frame_hash
from visionrl_trainer.sft.file import SftFileError, read_sft

FRAME = np.full((16, 16, 3), 7, np.uint8)


def png(frame: np.ndarray = FRAME) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def line(url: str = "", answer: Any = "do", **more: Any) -> dict[str, Any]:
    url = url or f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    prompt = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
    return {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
        "tools": [],
        "metadata": {"session_id": "s", "achievements_count": 3},
        **more,
    }


def written(folder: Path, *lines: Any) -> Path:
    file = folder / "train.jsonl"
    file.write_text("".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines))
    return file


def test_a_line_becomes_a_demonstration(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    data = read_sft(written(tmp_path, line(), "", line("images/a.png")), None, 16)
    digest = frame_hash(FRAME)
    inline, file = data.training
    assert inline == file
    assert inline.images == (digest,)
    assert inline.label == "do"
    assert inline.messages[0]["content"] == [{"type": "text", "text": "look"}, {"type": "image", "sha256": digest}]
    assert data.images == {digest: png()}
    assert (data.tools, data.returns, data.validation) == ([], (3.0,), [])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (json.dumps(line())[:-40], "train.jsonl:2: no JSON, perhaps cut off"),
        ("[]", "train.jsonl:2: the line: expected dict, found list"),
        ({}, "train.jsonl:2: messages: missing"),
        ({"messages": [1]}, r"train.jsonl:2: messages\[0\]: expected dict, found int"),
        (line(answer=""), r"messages\[1\].content: the answer must be a text, not empty"),
        (line(answer=5), r"messages\[1\].content: expected list, found int"),
        (line(url="https://example.org/a.png"), r"messages\[0\].content\[1\].image_url.url: 'https://example.org"),
        (line(url="../a.png"), "nor a file beside the data"),
        (line(url="images/none.png"), "none.png: No such file or directory"),
        (line(url="data:image/png;base64,!!!"), "no base64"),
        (line(url="data:image/png;base64,AAAA"), "not a PNG"),
        (
            line(url=f"data:image/png;base64,{base64.b64encode(png(np.zeros((16, 32, 3), np.uint8))).decode()}"),
            r"train.jsonl:2: .*image_url.url: 32 × 16 px, but the job's rollout.envConfig.imageSize is 16",
        ),
        (line(answer="<|image_pad|>"), r"messages\[1\].content: contains <\|image_pad\|>"),
        (line(tools=[{"type": "function"}]), r"train.jsonl:2: tools: other ones than in .*train.jsonl:1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role: 'robot'; use one of"),
        ({"messages": [{"role": "user", "content": "x"}]}, "last, the assistant's answer"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "sha256": "0"}]}]},
            "filter again with include_images = true",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": []}]},
            r"messages\[0\].tool_calls: not read",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(SftFileError, match=message):
        read_sft(written(tmp_path, line(), bad, line()), None, 16)


def test_bytes_that_are_no_text_and_files_without_lines_are_told(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"\xff\xfe\n")
    with pytest.raises(SftFileError, match=r"train.jsonl:1: no UTF-8 text"):
        read_sft(file, None, 16)
    file.write_bytes(b"\n")
    with pytest.raises(SftFileError, match="no line to train on"):
        read_sft(file, None, 16)
    with pytest.raises(SftFileError, match=r"none.jsonl: No such file or directory"):
        read_sft(tmp_path / "none.jsonl", None, 16)


def test_the_digest_is_that_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png())
    inline = read_sft(written(tmp_path, line()), None, 16).digest
    beside = read_sft(written(tmp_path, line("images/a.png")), None, 16).digest
    other = read_sft(written(tmp_path, line(answer="noop")), None, 16).digest
    twice = read_sft(written(tmp_path, line()), tmp_path / "train.jsonl", 16).digest
    assert inline == beside
    assert len({inline, other, twice}) == 3
