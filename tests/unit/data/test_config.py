"""Settings of visionrl filter, from files and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionrl.data.config import SECTIONS, FilterError, make_config, read_toml
from visionrl_cli import main

SHIPPED = Path(__file__).parents[3] / "configs" / "filter_vision_sft.toml"
REFERENCE = {
    "filter": "input_db output_dir min_steps max_steps min_achievements detect_loops max_repeated_actions "
    "min_unique_states filter_errors filter_timeouts export_format include_images include_metadata",
    "sft": "max_sequence_length deduplicate shuffle require_valid_tool_calls filter_empty_responses",
    "split": "val seed stratify_by train_file val_file",
    "output": "save_stats stats_file save_filtered_episode_ids",
}
"""Keys of the reference system's file."""


def test_the_shipped_file_has_every_key_of_the_reference_and_is_valid() -> None:
    data, _ = read_toml(SHIPPED)
    for section, keys in REFERENCE.items():
        assert set(keys.split()) <= set(data[section])
    assert make_config(data, str(SHIPPED)).split.seed == 42


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented(section: str) -> None:
    for name, field in SECTIONS[section].model_fields.items():
        assert field.description, name


def config(**changes: object) -> dict[str, dict[str, object]]:
    data: dict[str, dict[str, object]] = {"filter": {"input_db": "a.db", "output_dir": "out"}}
    for path, value in changes.items():
        section, name = path.split("__")
        data.setdefault(section, {})[name] = value
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filter__min_achievement": 3}, "filter.min_achievement: unknown key; did you mean min_achievements?"),
        ({"sfd__shuffle": True}, "sfd: unknown key; did you mean sft?"),
        ({"filter__min_steps": "5"}, "filter.min_steps: must be a whole number"),
        ({"filter__min_steps": 6, "filter__max_steps": 5}, "filter.max_steps: must not be below min_steps"),
        ({"filter__export_format": "parquet"}, "filter.export_format"),
        ({"filter__min_unique_states": 3}, "filter.min_unique_states: has no effect without detect_loops"),
        ({"filter__input_db": []}, "filter.input_db"),
        ({"split__val": 1.0}, "split.val"),
        ({"split__train_file": "../train.jsonl"}, "split.train_file"),
        ({"split__val_file": "train.jsonl"}, "train.jsonl is the name of two files"),
        ({"filter__include_images": False, "output__images": "files"}, "output.images: has no effect"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FilterError) as refused:
        make_config(config(**changes), "filter.toml")
    assert message in str(refused.value)
    assert str(refused.value).startswith("filter.toml: ")


def test_the_command_tells_a_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "filter.toml"
    file.write_text('[filter]\ninput_db = "a.db"\noutput_dir = "out"\ninclude_image = true\n')
    assert main(["filter", "--config", str(file)]) == 1
    assert f"{file}:4: filter.include_image: unknown key; did you mean include_images?" in capsys.readouterr().err
    file.write_text("[filter\n")
    assert main(["filter", "--config", str(file)]) == 1
    assert "not TOML" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["filter"])
    assert ended.value.code == 2
    assert "give --config FILE, or TRACES.DB and --output-dir DIR" in capsys.readouterr().err


def test_flags_go_before_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "--config", str(SHIPPED), "--min-steps", "60", str(tmp_path / "none.db")]) == 1
    assert "filter.max_steps: must not be below min_steps (60)" in capsys.readouterr().err
    assert main(["filter", "--config", str(SHIPPED), str(tmp_path / "none.db")]) == 1
    assert "none.db: no such file" in capsys.readouterr().err
