"""docs/from-synth.md: every key that is read, and only commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from visionrl.data.config import SECTIONS
from visionrl.documents import parse_toml
from visionrl.reference.conversion import Conversion
from visionrl.reference.evaluation import convert_eval
from visionrl.reference.filter import NAMES
from visionrl.reference.job import convert_job
from visionrl_cli import main
from visionrl_cli.program import COMMANDS

FILES = Path(__file__).parent / "testdata"
PAGE = (Path(__file__).parents[3] / "docs" / "from-synth.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("|")]
FREE = ("tags.", "vllm.block_size", "vllm.enable_prefix_caching", "collect_wood", "reward_blend.")
"""Of tables whose keys are anybody's."""
ONLY_OURS = {"images", "val", "seed", "min_steps", "max_steps", "min_achievements"}


def conversions() -> list[Conversion]:
    """Of all kinds of files, and of the least of each kind."""
    texts = [file.read_text() for file in sorted(FILES.glob("*.toml"))]
    texts += [f'[algorithm]\ntype = "{kind}"\n' for kind in ("online", "offline")]
    found = []
    for data, lines in map(parse_toml, texts):
        if "algorithm" in data:
            found.append(convert_job(data, lines, "demo", lambda path: (path, 10)))
        elif "eval" in data:
            found.append(convert_eval(data, lines)[1])
    return found


READ = sorted({key for each in conversions() for key in each.known if not any(free in key for free in FREE)})
FILTERS = sorted(
    {f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields if name not in ONLY_OURS}
    | {f"{section}.{name}" for section, names in NAMES.items() for name in names}
    | {"split.enabled", "filter.output", "filter.min_official_score"}
)


def is_in_the_page(key: str) -> bool:
    """Whether a row has the key: whole, or its name beside another key of its table."""
    table, _, name = key.removeprefix("compute.").rpartition(".")
    whole = f"`{table}.{name}`" if table else f"`{name}`"
    return any(
        whole in row or f"`{key}`" in row or (f"`{name}`" in row and f"`{table.split('.')[0]}." in row) for row in ROWS
    )


def test_every_key_that_is_read_is_in_the_page() -> None:
    assert len(READ) > 150
    assert [key for key in (*READ, *FILTERS) if not is_in_the_page(key)] == []


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("status jobs list", "visionrl jobs list"),
        ("jobs history demo", "jobs timeline NAME"),
        ("jobs status demo", "visionrl jobs list, jobs get NAME"),
        ("jobs config demo", "jobs get NAME --json"),
        ("task-app list", "visionrl jobs list"),
        ("train --type rl --config rl.toml --backend https://x", "--context NAME names a cluster"),
        ("train --type rl --config rl.toml --env-file .env", "set -a; . FILE"),
    ],
)
def test_words_of_the_reference_that_are_none_here_say_what_to_write(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


def test_the_page_names_no_command_that_is_not_there() -> None:
    named = set(re.findall(r"`(?:kubectl )?visionrl ([a-z-]+)", PAGE))
    assert named >= {"train", "eval", "compare", "filter", "convert"}
    assert named <= set(COMMANDS)
