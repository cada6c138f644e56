"""The learning evidence: its jobs, its steps, its tables and pictures."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ruamel.yaml import YAML

from recipes.learn import __main__ as command
from recipes.learn import tables
from recipes.learn.ablations import ITERATIONS, SEEDS, VARIANTS, Variant, all_changes, give_base
from recipes.learn.evidence import gather
from recipes.learn.jobs import derive, write_derived
from recipes.learn.plan import LEARN_JOB, MAIN, Places, Step, all_steps, version_after
from recipes.learn.report import load_records, read_records, write_report
from recipes.learn.runner import StepFailed, carry_out, is_done, read_record
from visionrl.checks import evaluation_seeds
from visionrl.job import Job
from visionrl.jobfile import load_job
from visionrl.seeds import parse_seeds

LEARN = Path(__file__).parents[3] / LEARN_JOB
SHARED = {"training.iterations", "evaluation.episodes"}

# --- jobs


def test_the_evidence_is_judged_on_seeds_of_its_own() -> None:
    seeds = evaluation_seeds(load_job(LEARN).spec)
    assert load_job(LEARN).name == MAIN
    assert len(seeds) == 300
    assert seeds.start > 1000
    assert not set(seeds) & set(parse_seeds(SEEDS))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_an_ablation_is_the_learn_job_with_its_one_change(variant: Variant, tmp_path: Path) -> None:
    write_derived(LEARN, variant.job, all_changes(variant), tmp_path / "job.yaml")
    derived = load_job(tmp_path / "job.yaml")
    differing = differences(as_data(load_job(LEARN)), as_data(derived))
    assert differing == SHARED | set(variant.changes)
    assert derived.name == variant.job
    assert derived.spec.training.iterations == ITERATIONS


def test_deriving_leaves_the_learn_job_as_it_is() -> None:
    learn = YAML(typ="safe", pure=True).load(LEARN)
    before = json.dumps(learn)
    derive(learn, "other", all_changes(VARIANTS[0]))
    assert json.dumps(learn) == before


def test_an_ablation_begins_with_the_main_runs_base_and_keeps_its_own_later(tmp_path: Path) -> None:
    base, run = tmp_path / "main" / "base", tmp_path / "run"
    base.mkdir(parents=True)
    (base / "weights").write_text("warm")
    give_base(tmp_path / "main", run)
    (base / "weights").write_text("another run's")
    give_base(tmp_path / "main", run)
    assert (run / "base" / "weights").read_text() == "warm"


def test_a_repetition_has_another_training_seed_and_other_initial_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(LEARN.parents[1])
    step = next(step for step in all_steps(Places(tmp_path)) if step.name == "seed-2")
    step.prepare()
    learn, again = load_job(LEARN).spec, load_job(Path(step.command()[2])).spec
    assert (again.training.seed, again.model.tiny and again.model.tiny.seed) == (2, 2)
    assert differences(learn.model_dump(), again.model_dump()) == {"training.seed", "model.tiny"}


def as_data(job: Job) -> dict[str, Any]:
    return job.spec.model_dump(by_alias=True)


def differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name in one.keys() | other.keys():
        there, here = one.get(name), other.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            found |= differences(there, here, f"{prefix}{name}.")
        elif there != here:
            found.add(f"{prefix}{name}")
    return found


# --- steps


def test_the_commands_are_public_ones_on_the_right_seeds(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.main_run.mkdir()
    played = [{"iteration": n + 1, "version": f"v{n}"} for n in range(ITERATIONS + 1)]
    (places.main_run / "metrics.jsonl").write_text("\n".join(map(json.dumps, played)))
    words = {step.name: step.command() for step in all_steps(places)}
    assert {Path(command[0]).name for command in words.values()} == {"visionrl"}
    assert {command[1] for command in words.values()} == {"run", "eval"}
    assert words["main"][2:] == [str(LEARN_JOB), "--runs", str(tmp_path)]
    reference = " ".join(words["ablation-reference"])
    assert f"--version v{ITERATIONS} " in reference
    assert f"--seeds {SEEDS}" in reference
    assert "--seeds" not in words["grey"], "those of the learn job"
    assert all(not name.startswith("ablation-") or SEEDS in command for name, command in words.items())


def test_the_version_after_some_iterations_is_the_one_that_played_the_next(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "version": "v0"}\n{"iteration": 2, "version": "v7"}\n')
    assert version_after(tmp_path, 1) == "v7"
    with pytest.raises(LookupError, match="has not played iteration 3"):
        version_after(tmp_path, 2)


def test_names_and_groups_choose_steps_in_their_order() -> None:
    steps = all_steps(Places())
    names = [step.name for step in command.chosen(steps, ["ablation-base", "main", "controls"])]
    assert names == ["random", "blind", "scripted", "main", "ablation-base"]
    assert command.chosen(steps, None) == steps, "the trainings with other seeds are part of the evidence"
    assert command.chosen(steps, ["report"]) == []


def script(name: str, code: str, folder: Path) -> Step:
    """A step that writes its result with Python code."""
    out = folder / f"{name}.out"
    body = f"from pathlib import Path\nout = Path({str(out)!r})\n{code}"
    return Step(name, "main", name, lambda: [sys.executable, "-c", body], lambda: json.loads(out.read_text()))


def test_a_step_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    places, said = Places(tmp_path), list[str]()
    once = script("once", "assert not out.exists(); out.write_text('{\"score\": 1}')", tmp_path)
    carry_out([once], places.record, said.append)
    carry_out([once], places.record, said.append)
    record = read_record(places.record("once"))
    assert record is not None
    assert record["result"] == {"score": 1}
    assert len(record["attempts"]) == 1
    assert said[-1].endswith("(done)")


def test_a_failed_step_stops_the_evidence_and_is_tried_again(tmp_path: Path) -> None:
    places = Places(tmp_path)
    code = "import sys\nif not out.exists(): out.write_text('{}'); sys.exit(3)"
    steps = [script("flaky", code, tmp_path), script("after", "out.write_text('{}')", tmp_path)]
    with pytest.raises(StepFailed, match="flaky ended with exit code 3"):
        carry_out(steps, places.record, lambda line: None)
    assert not is_done(places.record("flaky"))
    assert not places.record("after").exists()
    carry_out(steps, places.record, lambda line: None)
    record = read_record(places.record("flaky"))
    assert record is not None
    assert [each["exit_code"] for each in record["attempts"]] == [3, 0]
    assert is_done(places.record("after"))


def test_the_cost_has_the_processor_time_of_a_commands_own_children(tmp_path: Path) -> None:
    busy = "sum(range(3_000_000))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}]); out.write_text('{{}}')"
    carry_out([script("busy", code, tmp_path)], Places(tmp_path).record, lambda line: None)
    record = read_record(Places(tmp_path).record("busy"))
    assert record is not None
    assert record["attempts"][0]["cpu_seconds"] > 0


TERMINATED = """
import sys
from pathlib import Path
from recipes.learn.plan import Step
from recipes.learn.runner import carry_out

folder = Path(sys.argv[1])
body = f"import time; open({str(folder / 'began')!r}, 'w'); time.sleep(60)"
slow = Step("slow", "main", "slow", lambda: [sys.executable, "-c", body], dict)
carry_out([slow], lambda name: folder / f"{name}.json", lambda line: None)
"""


def test_a_terminated_run_ends_its_command_and_keeps_what_it_cost(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", TERMINATED, str(tmp_path)], stderr=subprocess.DEVNULL) as runner:
        while not (tmp_path / "began").exists() and runner.poll() is None:
            time.sleep(0.02)
        runner.terminate()
        assert runner.wait() == 1
    record = read_record(tmp_path / "slow.json")
    assert record is not None
    assert record["result"] is None
    assert record["attempts"][0]["exit_code"] == -signal.SIGTERM


# --- report


def scores(mean: float, seeds: range, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [float(min(22, max(0, round(generator.gauss(mean, 2))))) for _ in seeds]


def evaluated(mean: float, seeds: range, seed: int = 0) -> dict[str, Any]:
    rates = {"collect_wood": min(1.0, mean / 10), "place_table": mean / 20}
    returns = scores(mean, seeds, seed)
    shared = {"rates": rates, "crafter_score": mean, "invalid_rate": 0.01}
    return {"seeds": list(seeds), "returns": returns, "episodes": [{}], **shared}


def sample(main_done: bool = True) -> dict[str, Any]:
    """Records as the steps leave them."""
    held_out, apart = range(500000, 500300), range(600000, 600200)
    results: dict[str, Any] = {
        "random": evaluated(1.4, held_out, 1),
        "blind": evaluated(3.6, held_out, 2),
        "scripted": evaluated(10.5, held_out, 3),
    }
    if main_done:
        both = {
            which: {**evaluated(mean, held_out, 4), "iteration": iteration}
            | {"mean": mean, "low": mean - 0.2, "high": mean + 0.2, "episodes": 300}
            for which, mean, iteration in (("before", 6.0, 0), ("after", 7.5, 2))
        }
        metrics = [{"iteration": n, "reward": 6.0 + n, "reward_std": 2.0, "episodes": 64} for n in (1, 2)]
        results["main"] = results["seed-1"] = {"summary": {"evaluation": both}, "metrics": metrics}
        results["grey"] = evaluated(1.5, held_out, 6)
        for name, mean in (("base", 6.0), ("reference", 6.8), ("gspo", 6.7)):
            results[f"ablation-{name}"] = evaluated(mean, apart, 7)
    attempts = [{"began": "2000-01-01T00:00:00+00:00", "seconds": 60.0, "cpu_seconds": 90.0, "exit_code": 0}]
    return {
        name: {"step": name, "command": ["visionrl"], "attempts": attempts, "result": result}
        for name, result in results.items()
    }


def test_gains_are_paired_by_seed() -> None:
    evidence = gather(sample())
    gain = evidence.players["rl"].gain_over(evidence.players["sft"])
    assert gain.episodes == 300
    assert gain.mean == pytest.approx(1.5, abs=0.1)
    assert gain.high - gain.low < 0.3, "the same luck on each seed: far narrower than between strangers"


def test_the_tables_say_what_was_measured() -> None:
    page = tables.page(gather(sample()))
    assert "| random actions | 1." in page
    assert "- The interval of *SFT + RL* is clear of that of *supervised (SFT)*." in page
    assert "| SFT + RL, grey images | best blind policy | -1." in page
    assert "| GSPO | one ratio an answer instead of one a token | 6." in page
    assert "one version behind" not in page, "what has not been measured is not in the table"
    assert "| 1 | 6." in page, "the repetition with training seed 1"
    assert "| main | 1.0 | 1.5 | 1 |" in page


def test_the_main_table_is_over_trainings_and_names_each() -> None:
    records = sample()
    other = json.loads(json.dumps(records["main"]["result"]))
    for which in ("before", "after"):
        found = other["summary"]["evaluation"][which]
        found["returns"] = [value + 1 for value in found["returns"]]
    records["seed-1"]["result"] = other
    rows = {line.split(" | ")[0]: line for line in tables.trainings(gather(records))}
    first, second = (gather(records).seeds[seed][1].score.mean for seed in (0, 1))
    assert f"| {(first + second) / 2:.2f} [" in rows["| SFT + RL"]
    assert rows["| SFT + RL"].endswith(f"| {first:.2f}, {second:.2f} |")
    assert rows["| gain of RL, paired by training and world"].count("+1.") >= 3
    assert "| random actions" in rows
    del records["seed-1"]
    assert tables.trainings(gather(records)) == []


def test_overlapping_intervals_are_not_called_clear() -> None:
    records = sample()
    records["blind"]["result"] = evaluated(1.45, range(500000, 500300), 9)
    assert "- The interval of *best blind policy* is not clear of that of *random actions*." in tables.page(
        gather(records)
    )


@pytest.mark.parametrize(
    ("records", "pictures"),
    [
        (sample(), {"players.png", "trainings.png", "training.png", "achievements.png", "ablations.png"}),
        (sample(main_done=False), {"players.png"}),
        ({}, set()),
    ],
)
def test_the_report_draws_what_there_is(records: dict[str, Any], pictures: set[str], tmp_path: Path) -> None:
    files = write_report(records, tmp_path / "report")
    assert {file.name for file in files} == pictures | {"results.md", "records.json"}
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width == 1200
                assert len(image.convert("L").getcolors() or []) > 10, "something is drawn"


def test_a_report_can_be_made_again_from_its_own_records(tmp_path: Path) -> None:
    write_report(sample(), tmp_path / "first")
    code = command.main(["--records", str(tmp_path / "first" / "records.json"), "--report", str(tmp_path / "again")])
    assert code == 0
    for name in ("results.md", "records.json"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "first" / name).read_text()


def test_details_of_episodes_stay_out_of_the_report(tmp_path: Path) -> None:
    places = Places(tmp_path)
    for name, record in sample().items():
        places.record(name).parent.mkdir(exist_ok=True)
        places.record(name).write_text(json.dumps(record))
    records = read_records(places, all_steps(places))
    assert "episodes" not in records["blind"]["result"]
    write_report(records, tmp_path / "report")
    assert load_records(tmp_path / "report" / "records.json") == records


def test_help_names_every_step() -> None:
    done = subprocess.run([sys.executable, "-m", "recipes.learn", "--help"], capture_output=True, text=True, check=True)
    text = "".join(done.stdout.split())
    assert all(step.name in text for step in all_steps(Places()))
