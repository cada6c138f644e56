"""Evaluation and filter files of the reference system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from visionrl.data.config import FilterError, make_config, read_toml
from visionrl.documents import parse_toml
from visionrl.jobfile import JobFileError
from visionrl.reference.evaluation import convert_eval
from visionrl.reference.filter import with_our_names
from visionrl_cli import main
from visionrl_cli.evaluation.plan import EvalOptions, make_plan
from visionrl_cli.evaluation.text import EvalError

FILES = Path(__file__).parent / "testdata"
OLDER = FILES / "eval_older.toml"
EVAL, RL = FILES / "eval_vision.toml", FILES / "rl_vision.toml"


def edited(folder: Path, file: Path, *changes: tuple[str, str]) -> Path:
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    copy = folder / file.name
    copy.write_text(text)
    return copy


# --- evaluations


def test_an_eval_file_names_all_that_an_evaluation_needs() -> None:
    plan = make_plan(EvalOptions(config=EVAL))
    policy, rollout = plan.policy.config, plan.job.spec.rollout
    assert (policy.model, policy.inference_url) == ("gpt-4o-mini-2024-07-18", "https://api.example")
    assert (policy.top_p, policy.max_tokens, policy.use_vision, policy.image_only_mode) == (0.95, 512, True, False)
    assert (policy.max_llm_calls, rollout.max_concurrent, rollout.env_config.length) == (5, 2, 50)
    assert plan.seeds == (0, 1)


def test_an_older_eval_file_has_the_policy_in_its_first_table() -> None:
    found, conversion = convert_eval(*parse_toml(OLDER.read_text()))
    assert conversion.problems == []
    assert (found.model, found.seeds, found.task_app_url) == (
        "gpt-4o-mini-2024-07-18",
        (0, 1, 2, 3),
        "https://task-app.example",
    )
    assert found.inference_url == "https://api.openai.com"  # its provider's
    rollout, policy = found.rollout, found.rollout.policy_config
    assert (rollout.env_config.length, rollout.env_config.image_size, rollout.max_concurrent) == (50, 64, 5)
    assert (policy.use_vision, policy.image_only_mode, policy.temperature, policy.max_tokens) == (True, False, 0.7, 512)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("num_episodes = 4", "num_episodes = 5"), "eval.num_episodes: is 5, but there are 4 seeds"),
        (("[64, 64]", "[64, 48]"), "task.config.render_size: is [64, 48]: frames are square"),
        (('name = "crafter"', 'name = "doom"'), "task.name: is 'doom'; write eval.env_name"),
        (('seeds = "0-3"\n', ""), ""),
    ],
)
def test_what_contradicts_itself_in_an_older_file_is_told(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    text = OLDER.read_text()
    assert change[0] in text
    found, conversion = convert_eval(*parse_toml(text.replace(*change)))
    assert [str(each) for each in conversion.problems if not str(each).startswith(told)] == []
    assert bool(conversion.problems) == bool(told)
    assert told or found.seeds == (0, 1, 2, 3)


def test_flags_take_precedence_over_it() -> None:
    plan = make_plan(EvalOptions(config=EVAL, policy="crafter-random", seeds=(7,), turns=3))
    assert plan.policy.policy_name == "crafter-random"
    assert (plan.policy.config.model, plan.policy.config.max_llm_calls, plan.seeds) == ("", 3, (7,))
    other = make_plan(EvalOptions(config=EVAL, model="mine", inference_url="http://here"))
    assert (other.policy.config.model, other.policy.config.inference_url) == ("mine", "http://here")


@pytest.mark.parametrize(("seeds", "found"), [('"100-103"', (100, 101, 102, 103)), ("[4, 2]", (4, 2))])
def test_seeds_are_a_list_or_a_range(tmp_path: Path, seeds: str, found: tuple[int, ...]) -> None:
    file = edited(tmp_path, EVAL, ("seeds = [0, 1]", f"seeds = {seeds}"))
    assert make_plan(EvalOptions(config=file)).seeds == found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("seeds = [0, 1]", "seeds = [1, 1]"), "4: eval.seeds: seed 1 is named twice"),
        (("max_turns", "max_turn"), "5: eval.max_turn: unknown key; did you mean max_turns?"),
        (("use_tools = true", "use_tools = false"), "eval.policy_config.use_tools: is False"),
        (("top_p = 0.95", "top_p = 2.0"), "eval.policy_config.top_p: must be less than or equal to 1"),
        (("concurrency = 2", "concurrency = 0"), "eval.concurrency: must be greater"),
        (
            ("max_steps_per_episode", "max_steps"),
            "env_params.max_steps: unknown key; did you mean max_steps_per_episode",
        ),
    ],
)
def test_what_is_wrong_in_it_is_told_with_its_line(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    with pytest.raises(JobFileError) as refused:
        make_plan(EvalOptions(config=edited(tmp_path, EVAL, change)))
    assert told in str(refused.value)


def test_a_training_file_gives_an_evaluation_its_settings() -> None:
    plan = make_plan(EvalOptions(config=RL, policy="crafter-random"))
    assert plan.seeds == tuple(range(8))
    assert plan.job.spec.rollout.max_concurrent == 4


def test_someone_must_play() -> None:
    with pytest.raises(EvalError, match="name what plays"):
        make_plan(EvalOptions())


def test_its_notes_name_what_is_not_used() -> None:
    _, conversion = convert_eval(*parse_toml(EVAL.read_text()))
    assert {note.key for note in conversion.notes} >= {"eval.app_id", "eval.trace_format", "eval.return_trace"}


# --- filter


def settings(**filter_keys: Any) -> dict[str, dict[str, Any]]:
    return {"filter": {"input_db": "a.db", "output_dir": "out", **filter_keys}}


def test_the_published_filter_file_means_what_it_says() -> None:
    data, lines = read_toml(FILES / "filter_vision_sft.toml")
    config = make_config(data, "f", lines)
    selection = config.filter
    assert (selection.min_steps, selection.max_steps, selection.min_achievements) == (2, 50, 0)
    assert (config.split.val, config.split.seed) == (0.1, 42)


def test_a_scored_filter_file_writes_one_file() -> None:
    config = make_config(read_toml(FILES / "filter_scored.toml")[0], "f")
    assert (config.inputs, config.folder) == ([Path("DB")], Path("OUT"))
    assert (config.split.train_file, config.split.val) == ("sft.jsonl", 0.0)
    assert (config.filter.min_achievements, config.filter.limit) == (1, 100)


def test_a_split_that_is_off_holds_nothing_out() -> None:
    assert make_config({**settings(), "split": {"enabled": False, "val_fraction": 0.5}}, "f").split.val == 0
    assert make_config({**settings(), "split": {"enabled": True, "val_fraction": 0.5}}, "f").split.val == 0.5


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (settings(min_steps=1, min_steps_per_episode=2), "filter.min_steps_per_episode: is the same as min_steps"),
        (settings(min_official_score=2), "filter.min_official_score: must be a number from 0 to 1"),
        (settings(min_official_score=0.5, min_achievements=2), "filter.min_official_score: is the same as"),
        (settings(output="a.jsonl"), "filter.output: names one file"),
        (settings(limit=0), "filter.limit: must be greater"),
        ({**settings(), "split": {"enabled": "no"}}, "split.enabled: must be true or false"),
        ({"filter": [], "split": 3}, "filter: must be a mapping"),
    ],
)
def test_what_contradicts_itself_is_refused(data: dict[str, Any], told: str) -> None:
    with pytest.raises(FilterError) as refused:
        make_config(data, "f")
    assert told in str(refused.value)


def test_flags_take_precedence_over_either_name() -> None:
    config = make_config(settings(min_steps_per_episode=2), "f", flags={"filter.min_steps": 5})
    assert config.filter.min_steps == 5


def test_the_tables_stay_as_they_are() -> None:
    data = settings(min_steps_per_episode=2)
    with_our_names(data)
    assert data == settings(min_steps_per_episode=2)


# --- commands


@pytest.mark.parametrize("file", sorted(FILES.glob("*.toml")), ids=lambda file: file.name)
def test_validate_knows_every_kind(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = edited(tmp_path, file)
    (tmp_path / "train.jsonl").write_text("{}\n")
    assert main(["validate", str(copy)]) == 0
    assert f"{copy}: ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (RL, ("gpu_count = 2", "gpu_count = 3"), ":9: compute.gpu_count: is 3"),
        (EVAL, ("max_turns", "max_turn"), ":5: eval.max_turn: unknown key"),
        (
            FILES / "filter_vision_sft.toml",
            ("shuffle = true", "shufle = true"),
            "sft.shufle: unknown key; did you mean",
        ),
        (FILES / "filter_scored.toml", ("[filter]", "[filter"), ":1: not TOML"),
    ],
)
def test_validate_tells_what_is_wrong(
    file: Path, change: tuple[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(edited(tmp_path, file, change))]) == 1
    assert told in capsys.readouterr().err


def test_convert_prints_a_job_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(RL)]) == 0
    job = tmp_path / "job.yaml"
    job.write_text(capsys.readouterr().out)
    assert main(["validate", str(job)]) == 0
    assert main(["convert", str(job)]) == 1
    assert "must end with .toml" in capsys.readouterr().err
    assert main(["convert", str(EVAL)]) == 1
    assert "visionrl eval --config" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.toml")]) == 1


def test_render_takes_a_training_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "--json", str(RL)]) == 0
    assert '"case-trainer' in capsys.readouterr().out
