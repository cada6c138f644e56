"""``visionrl filter``: traces to supervised data."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from visionrl.data.config import SECTIONS, FilterConfig, FilterError, make_config, read_toml
from visionrl.data.filter import filter_traces
from visionrl.data.stats import Stats, as_json, table_rows
from visionrl.reference.filter import with_our_names
from visionrl_cli.flags import add_fields, given

DESCRIPTION = """Make supervised data from traces: choose episodes and decisions, split them by environment seed, and
write one line per decision with messages, tools and metadata.

The task app writes traces: runs/<job>/traces.db, or DIR/traces.db of visionrl eval --trace-db DIR. A line's
answer is the teacher's label where the trace has one, else the model's answer. Settings come from --config (see
configs/filter_vision_sft.toml) and from flags, which take precedence. The same traces and settings give the same files;
they are moved into place when all of them are complete.
"""
EXAMPLES = """examples:
  visionrl filter --config configs/filter_vision_sft.toml
  visionrl filter traces/traces.db --output-dir data --min-achievements 5
  visionrl filter traces/traces.db --output-dir data --format trl          Parquet for TRL's SFTTrainer
  visionrl filter a.db b.db --output-dir data --images files --val 0.2 --json | jq .episodes
"""
LISTED_APART = ("input_db", "output_dir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "traces", metavar="TRACES.DB", nargs="*", help="traces to read; take precedence over the config's input_db"
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="settings (TOML)")
    parser.add_argument("--output-dir", metavar="DIR", help=SECTIONS["filter"].model_fields["output_dir"].description)
    parser.add_argument(
        "--format", dest="filter.export_format", choices=("sft_jsonl", "trl"), help="the same as --export-format"
    )
    parser.add_argument("--json", action="store_true", help="print what was kept and dropped as JSON")
    for section, model in SECTIONS.items():
        names = [name for name in model.model_fields if name not in LISTED_APART]
        add_fields(parser.add_argument_group(f"[{section}]"), model, names, section)


def command(options: argparse.Namespace) -> int:
    if options.config is None and not (options.traces and options.output_dir):
        options.usage_error("give --config FILE, or TRACES.DB and --output-dir DIR")
    try:
        stats = filter_traces(config := _config(options), _progress(options.json))
    except FilterError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvisionrl: stopped; nothing was written", file=sys.stderr)
        return 130
    _show(stats, config, options.json)
    return 0


def _config(options: argparse.Namespace) -> FilterConfig:
    """The file's settings under the flags. Raises :class:`FilterError`."""
    data: dict[str, Any]
    data, lines = read_toml(options.config) if options.config else ({}, {})
    flags = given(options)
    if options.traces:
        flags["filter.input_db"] = options.traces
    if options.output_dir:
        flags["filter.output_dir"] = options.output_dir
    source = str(options.config) if options.config else "visionrl"
    config = make_config(data, source, lines, flags)
    for note in with_our_names(data)[1]:
        _say(f"note: {note.key}: {note.text}")
    return config


def _progress(quiet: bool) -> Any:
    """A function of (done, total): a bar on a terminal, a line every thousand episodes elsewhere."""
    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal or console.is_dumb_terminal:
        return lambda done, total: _say(f"{done}/{total} episodes read") if done % 1000 == 0 else None
    progress = Progress(console=console, transient=True)
    task = progress.add_task("reading episodes")

    def show(done: int, total: int) -> None:
        if done == 1:
            progress.start()
        progress.update(task, completed=done, total=total)
        if done == total:
            progress.stop()

    return show


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(stats: Stats, config: FilterConfig, json_wanted: bool) -> None:
    for warning in stats.warnings:
        _say(f"warning: {warning}")
    if json_wanted:
        print(json.dumps({**as_json(stats), "output_dir": str(config.folder)}, indent=2, ensure_ascii=False))
        return
    console, table = Console(highlight=False), Table(show_header=False)
    for name, value in table_rows(stats):
        table.add_row(name, value)
    console.print(table)
    console.print(f"written to {config.folder}", soft_wrap=True, markup=False)
