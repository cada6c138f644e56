"""Texts that are damaged, hostile or enormous: each is read or refused, soon and in words."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionrl.documents import MAX_BYTES, DocumentError, parse_json, parse_toml, parse_yaml, read_text

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (parse_yaml, BOMB, "more than 20000 values"),
        (parse_yaml, MERGES, "more than 20000 values"),
        (parse_yaml, "a: &a {b: [*a]}", "an alias stands inside what it stands for"),
        (parse_yaml, "[" * (MAX_BYTES - 1), "nested more than 64 levels"),
        (parse_yaml, "- " * 60_000, "nested more than 64 levels"),
        (parse_yaml, "a: 1\nb: [", "not YAML"),
        (parse_yaml, "a: " + "9" * 5000, "not YAML"),
        (parse_yaml, "a: 1\n---\nb: 1", "must have one document, found 2"),
        (parse_json, "[" * 100_000, "nested more than 64 levels"),
        (parse_json, "[" * 66 + "]" * 66, "nested more than 64 levels"),
        (parse_json, '{"a": NaN}', "NaN is not a number"),
        (parse_json, '{"a": -Infinity}', "-Infinity is not a number"),
        (parse_json, '{"a": 1e999}', "1e999 is too large a number"),
        (parse_json, "9" * 5000, "not JSON"),
        (parse_json, b"\xff\xfe\x00", "not JSON"),
        (parse_toml, "a." * 60_000 + "a = 1", "more than 2000 dots"),
        (parse_toml, "a = " + "[" * 100_000, "nested more than 64 levels"),
        (parse_toml, "a = 1\na = 2\n", "not TOML"),
    ],
)
def test_what_would_take_minutes_or_gigabytes_is_refused(read: Callable[[str], Any], text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        read(text)


def test_the_line_of_an_error_is_known() -> None:
    for read, text in ((parse_yaml, "a: 1\nb: [\n"), (parse_json, '{"a": 1,\n]'), (parse_toml, "a = 1\nb = = 1\n")):
        with pytest.raises(DocumentError) as refused:
            read(text)
        assert refused.value.line in (2, 3)


def test_an_alias_is_read_where_it_is_small() -> None:
    data, lines = parse_yaml("a: &a {x: 1}\nb: *a\nc:\n  - <<: *a\n    y: 2\n")
    assert data == {"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1, "y": 2}]}
    assert (lines["b"], lines["c[0]"], lines["c[0].y"]) == (2, 4, 5)


def test_the_lines_of_a_toml_file() -> None:
    text = 'top = 1\n[a]\n"b" = 2\n[a.c]\nd.e = { f = 1 }\n[[g]]\nh = 1\n'
    data, lines = parse_toml(text)
    assert data["a"] == {"b": 2, "c": {"d": {"e": {"f": 1}}}}
    assert lines == {"top": 1, "a": 2, "a.b": 3, "a.c": 4, "a.c.d.e": 5, "g": 6, "g.h": 7}


@pytest.mark.parametrize("content", [b"x" * (MAX_BYTES + 1), b"\xff\xfe"])
def test_a_file_that_is_no_settings_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(DocumentError, match=r"larger than 128 KiB|not UTF-8"):
        read_text(file)


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(DocumentError, match="larger than"):
        read_text(Path("/dev/zero"))


def test_standard_input_is_a_file_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a: 1")))
    assert read_text(Path("-")) == "a: 1"


@given(
    st.sampled_from([parse_yaml, parse_json, parse_toml]),
    st.text(max_size=200) | st.lists(st.sampled_from(list('[]{}&*a:\n,"=.- #<9e\\')), max_size=60).map("".join),
)
def test_any_text_is_read_or_refused(read: Callable[[str], Any], text: str) -> None:
    with contextlib.suppress(DocumentError):
        read(text)
