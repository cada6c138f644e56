"""Which traces are kept, and where they are written: the settings of ``visionrl filter``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visionrl.documents import DocumentError, Lines, parse_toml, read_text
from visionrl.problems import Problem, located, problems
from visionrl.reference.filter import with_our_names

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]


class FilterError(Exception):
    """The data cannot be made; the message is for the user."""


class Section(BaseModel):
    """Strict: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class Selection(Section):
    """Which episodes are kept."""

    input_db: str | Annotated[list[str], Field(min_length=1)]
    """Traces to read: a traces.db or several."""
    output_dir: str
    """Folder that the data is written to."""
    min_steps: Annotated[int, Field(ge=0)] = 0
    """Fewest decisions of an episode."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Most decisions of an episode."""
    min_achievements: Annotated[int, Field(ge=0)] = 0
    """Fewest unique achievements of an episode."""
    detect_loops: bool = False
    """Drop episodes that repeat themselves, by the two limits that follow."""
    max_repeated_actions: Annotated[int, Field(ge=1)] = 10
    """Most times that one action is played in a row, over all turns."""
    min_unique_states: Annotated[int, Field(ge=1)] = 1
    """Fewest different observations (frames, or texts where none was sent) of an episode."""
    filter_errors: bool = True
    """Drop episodes that an error cut short."""
    filter_timeouts: bool = True
    """Drop episodes that ran out of time."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Most decisions that are kept, in the order of the traces."""
    export_format: Literal["sft_jsonl", "trl"] = "sft_jsonl"
    """`sft_jsonl`: one JSON object per line (messages, tools, metadata); `trl`: Parquet with a column of images, for
    TRL's trainer."""
    include_images: bool = True
    """Write the frames; otherwise a message names them by their hash, and the data cannot be used for training."""
    include_metadata: bool = True
    """Write where each line comes from."""


class Examples(Section):
    """Which decisions of the kept episodes are kept."""

    max_sequence_length: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of prompt and answer: as the server counted them, estimated where it did not."""
    deduplicate: bool = True
    """Drop a decision whose prompt and answer were seen before."""
    shuffle: bool = True
    """Mix the lines, by the split's seed; otherwise they keep the order of the traces."""
    require_valid_tool_calls: bool = True
    """Drop answers that are not a valid tool call."""
    filter_empty_responses: bool = True
    """Drop answers without text."""


class Split(Section):
    """Training and validation. All episodes of an environment seed are in the same one."""

    val: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the environment seeds that are for validation."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split and of the order of lines."""
    stratify_by: Literal["achievements", "none"] = "achievements"
    """Distribute good and bad seeds evenly over training and validation."""
    train_file: FileName = "train.jsonl"
    """File name of the training data; in the format trl it ends with .parquet."""
    val_file: FileName = "val.jsonl"
    """File name of the validation data; in the format trl it ends with .parquet."""


class Output(Section):
    """What else is written."""

    images: Literal["inline", "files"] = "inline"
    """`inline` writes frames as data URLs, `files` as images/<hash>.png beside the data, each frame once."""
    save_stats: bool = True
    """Write the counts of what was kept and dropped, with the reasons."""
    stats_file: FileName = "stats.json"
    """File name of these statistics."""
    save_filtered_episode_ids: bool = False
    """Write episode_ids.json: by file, the episodes that were kept, and why each of the others was dropped."""


class FilterConfig(Section):
    """The whole file."""

    filter: Selection
    sft: Examples = Examples()
    split: Split = Split()
    output: Output = Output()

    @property
    def inputs(self) -> list[Path]:
        given = self.filter.input_db
        return [Path(path) for path in ([given] if isinstance(given, str) else given)]

    @property
    def folder(self) -> Path:
        return Path(self.filter.output_dir)

    @property
    def train_file(self) -> str:
        """File name of the training data in its format."""
        return self._named(self.split.train_file)

    @property
    def val_file(self) -> str:
        """File name of the validation data in its format."""
        return self._named(self.split.val_file)

    def _named(self, name: str) -> str:
        return str(Path(name).with_suffix(".parquet")) if self.filter.export_format == "trl" else name


SECTIONS: dict[str, type[Section]] = {"filter": Selection, "sft": Examples, "split": Split, "output": Output}
EPISODE_IDS = "episode_ids.json"


def read_toml(file: Path) -> tuple[dict[str, Any], Lines]:
    """The tables of a file, unchecked, and the lines of their keys. Raises :class:`FilterError`."""
    try:
        return parse_toml(read_text(file))
    except OSError as error:
        raise FilterError(f"{file}: {error.strerror}") from None
    except DocumentError as error:
        where = f"{file}:{error.line}" if error.line else str(file)
        raise FilterError(f"{where}: {error}") from None


def make_config(
    data: Mapping[str, Any],
    source: str,
    lines: Mapping[str, int] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> FilterConfig:
    """Check the settings, with our names or the reference system's; `flags` by ``section.name`` take precedence.

    Raises :class:`FilterError` that names every field that is wrong.
    """
    config, wrong = check_config(data, flags or {})
    if config is None or wrong:
        raise FilterError("\n".join(located(problem, source, lines or {}) for problem in wrong))
    return config


def check_config(data: Mapping[str, Any], flags: Mapping[str, Any]) -> tuple[FilterConfig | None, list[Problem]]:
    """The settings, and everything that is wrong with them."""
    tables, _, wrong = with_our_names({"filter": {}, **data})
    for path, value in flags.items():
        section, name = path.split(".")
        table = tables.setdefault(section, {})
        if isinstance(table, dict):  # anything else is refused below
            table[name] = value
    config = None
    try:
        config = FilterConfig.model_validate(tables)
    except ValidationError as error:
        wrong += problems(error, FilterConfig, by_alias=False)
    if config is not None:
        wrong += _contradictions(config)
    return config, wrong


def _contradictions(config: FilterConfig) -> list[Problem]:
    selection, found = config.filter, []
    if selection.max_steps is not None and selection.max_steps < selection.min_steps:
        found.append(Problem("filter.max_steps", f"must not be below min_steps ({selection.min_steps})"))
    bounds = selection.model_fields_set & {"max_repeated_actions", "min_unique_states"}
    if bounds and not selection.detect_loops:
        found.append(Problem(f"filter.{min(bounds)}", "has no effect without detect_loops = true"))
    names = [config.train_file, config.val_file]
    names += [config.output.stats_file] if config.output.save_stats else []
    names += [EPISODE_IDS] if config.output.save_filtered_episode_ids else []
    if twice := {name for name in names if names.count(name) > 1}:
        found.append(Problem("split", f"{min(twice)} is the name of two files"))
    if selection.export_format == "trl" and not selection.include_images:
        found.append(
            Problem("filter.include_images", "must be true with export_format trl, which has the images inside")
        )
    if selection.export_format == "trl" and config.output.images == "files":
        found.append(Problem("output.images", "has no effect with export_format trl, which has the images inside"))
    if not selection.include_images and "images" in config.output.model_fields_set:
        found.append(Problem("output.images", "has no effect with filter.include_images = false"))
    return found
