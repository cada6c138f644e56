"""The page of the benchmarks: what was measured, on what, and what was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.page import page

MACHINE = {"processor": "Some CPU", "cores": 2, "load": [14.0, 12.5, 9.1], "python": "3.11.7", "date": "2026-01-02"}


def result(folder: Path, bench: str, **fields: Any) -> None:
    (folder / f"{bench}.json").write_text(json.dumps({"bench": bench, "machine": MACHINE, **fields}))


def test_each_table_names_the_machine_and_what_was_not_run_is_named(tmp_path: Path) -> None:
    result(tmp_path, "startup", rows=[{"what": "the operator", "cpu_s": 1.26, "spread": 0.04}])
    text = page(tmp_path)
    assert "| the operator | 1.26 ± 4% |" in text
    assert "Some CPU, 2 cores, load 14.0, 12.5, 9.1, 2026-01-02." in text
    assert "Not run on this machine yet: `trainer`, `gpu`" in text
    assert "`startup`" not in text.split("Not run")[1]


@pytest.mark.parametrize("waits", [["seconds of the 4B"], []])
def test_what_waits_for_a_card_is_told(tmp_path: Path, waits: list[str]) -> None:
    row = {"device": "CPU", "decisions": 4, "lever": "as configured", "seconds": 1.0, "spread": 0.1}
    result(tmp_path, "gpu", rows=[row | {"tokens_per_s": 1000, "mfu": None, "peak_gib": 1.2}], waits_for_a_card=waits)
    assert ("- seconds of the 4B" in page(tmp_path)) is bool(waits)


def test_a_side_is_shown_with_its_ratio(tmp_path: Path) -> None:
    side = {"iteration_s": 0.691, "spread": 0.03, "tokens_per_s": 17_500, "mfu": 0.06, "peak_over_loaded_mib": 226}
    sides = {"ours": side | {"logprobs_differ_by": 0.0}, "trl": side | {"logprobs_differ_by": 2e-6}}
    over = {"trl": {"iteration": 2.18, "update_alone": 1.5, "peak_over_loaded": 0.85}}
    result(tmp_path, "trainer", shapes={"tiny": {"sides": sides, "over_ours": over}})
    assert "| tiny | trl | 0.69 ± 3% | 17,500 | 6% | 226 | 2e-06 |" in page(tmp_path)
    assert "| tiny | trl | 2.18× | 1.5× | 0.85× |" in page(tmp_path)
