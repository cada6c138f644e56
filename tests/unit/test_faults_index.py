"""The index of faults names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "tests" / "faults" / "README.md").read_text())


@pytest.mark.parametrize(("file", "test"), NAMED, ids=lambda text: text.rpartition("/")[2])
def test_a_fault_has_its_test(file: str, test: str) -> None:
    assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE)


def test_the_index_is_read() -> None:
    assert len(NAMED) > 50
