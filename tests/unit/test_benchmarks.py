"""The benchmarks run, in a tiny size; their page says what was measured, on what, and what was not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.common import interleaved
from tests.bench.page import page
from tests.support.inference import InferenceServer
from visionrl.jobfile import load_job

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
    row = {"device": "Some card", "decisions": 4, "lever": "as configured", "seconds": 1.0, "spread": 0.1}
    row |= {
        "tokens_per_s": 1000,
        "mfu": None,
        "mfu_of_computed": None,
        "over_loaded_gib": 1.2,
        "planned_gib": 1.5,
        "differs_by": 0.0,
    }
    result(tmp_path, "gpu", rows=[row], waits_for_a_card=waits)
    assert ("- seconds of the 4B" in page(tmp_path)) is bool(waits)


def test_a_side_is_shown_with_its_ratio(tmp_path: Path) -> None:
    side = {"iteration_s": 0.691, "spread": 0.03, "tokens_per_s": 17_500, "mfu": 0.06, "peak_over_loaded_mib": 226}
    sides = {"ours": side | {"logprobs_differ_by": 0.0}, "trl": side | {"logprobs_differ_by": 2e-6}}
    over = {"trl": {"iteration": 2.18, "waited": 2.5, "update_alone": 1.5, "peak_over_loaded": 0.85}}
    result(tmp_path, "trainer", shapes={"tiny": {"sides": sides, "over_ours": over}})
    assert "| tiny | trl | 0.69 ± 3% | 17,500 | 6% | 226 | 2e-06 |" in page(tmp_path)
    assert "| tiny | trl | 2.18× | 2.5× | 1.5× | 0.85× |" in page(tmp_path)


def test_sides_take_turns_and_are_prepared_outside_of_their_time() -> None:
    clock, turns = iter(range(100)), list[str]()
    sides = {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}
    seconds = interleaved(sides, 2, clock=lambda: next(clock), prepare=lambda side: turns.append(f"({side})"))
    assert seconds == {"a": [1, 1], "b": [1, 1]}
    assert "".join(turns) == "(a)a(b)b(b)b(a)a(a)a(b)b"  # the first round warms up


def test_the_environments_benchmark_runs_and_finds_the_same_game(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.bench import env

    monkeypatch.setattr(env, "SIZES", (64,))
    rows = [*env.start_states(rounds=1), *env.steps(rounds=1, cycle=10)]
    exact = env.compare(seeds=2, steps_each=30)
    assert (exact["steps"], exact["different"], exact["first"]) == (60, 0, None)
    result(tmp_path, "env", rows=rows, exact=exact)
    assert "| restore, against pickle.loads | – |" in page(tmp_path)
    assert "none was different" in page(tmp_path)


@pytest.mark.vision
def test_the_loops_benchmark_runs_all_ways(tmp_path: Path) -> None:
    from tests.bench import loop

    found = loop.measure(seconds=0.01, iterations=2, rounds=1)
    assert [row["maxStaleness"] for row in found["rows"]] == [0, 1, 0, 1]
    result(tmp_path, "loop", **found)
    assert "| ahead | 1 |" in page(tmp_path)


@pytest.mark.vision
def test_the_cards_benchmark_runs_without_a_card(tmp_path: Path) -> None:
    import torch

    from tests.bench import gpu

    device = torch.device("cpu")
    levers = ["as configured", "prefix not shared"]
    arguments = argparse.Namespace(decisions=[2], sides=["ours"], levers=levers, rounds=1, profile=None)
    rows = list(gpu.measure(arguments, device, gpu.bench_spec(device)))
    assert [row["lever"] for row in rows] == levers
    assert all(row["differs_by"] < 1e-5 for row in rows)
    result(tmp_path, "gpu", rows=rows, waits_for_a_card=gpu.WAIT_FOR_A_CARD)
    assert "NVIDIA" in page(tmp_path), "what a card showed stays"


class ExactServer(InferenceServer):
    """Starts in seconds."""

    module = "tests.support.exact_inference"


@pytest.mark.vision
def test_the_rollouts_benchmark_plays_and_sends_the_same_number_of_decisions(tmp_path: Path) -> None:
    from tests.bench import rollouts

    [row] = rollouts.measure("tiny", [4], turns=2, rounds=1, server_class=ExactServer)
    assert row["ratio"] > 0
    result(tmp_path, "rollouts", rows=[row])
    assert "| 4 |" in page(tmp_path)


def test_the_run_at_scale_drops_iterations_so_that_its_last_evaluation_has_the_time(tmp_path: Path) -> None:
    from tests.bench.at_scale import NAME, Scaled, parse

    scaled = Scaled(parse(["--runs", str(tmp_path), "--minutes", "2", "--iterations", "8"]))
    scaled.write_job()
    scaled.first_seen = {"Running: playing": 10.0, "first evaluation": 30.0}
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "evaluations.jsonl").write_text(json.dumps({"iteration": 0}) + "\n")

    def iterations_with(done: int, seconds: float) -> int:
        records = [{"iteration": n + 1, "seconds": seconds, "sync_seconds": 0.5} for n in range(done)]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
        scaled.finish_in_time()
        return load_job(scaled.file).spec.training.iterations

    assert iterations_with(done=0, seconds=0) == 8
    assert iterations_with(done=2, seconds=10) == 8
    assert iterations_with(done=3, seconds=50) == 4
    assert iterations_with(done=4, seconds=50) == 4  # once is enough
