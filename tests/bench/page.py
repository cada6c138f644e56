"""docs/benchmarks.md, from the benchmarks' JSON files: a table each, with the machine and how busy it was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = """# Benchmarks

`make bench` writes this page from the JSON files of `python -m tests.bench.NAME --json FILE`. Sides that are compared
are interleaved in one run; figures are medians, ± is the interquartile range over the median (of fewer than four,
the whole range). Processor time is compared, not the clock, wherever a machine is shared: *load* is the number of
processes that wanted a core. No test depends on a timing.
"""
MISSING = "Not run on this machine yet: "
GOAL = 3
"""Times the speed of TRL that are wanted of the trainer."""
CARD = Path(__file__).parent / "card.json"
"""The last result of ``gpu`` on a card, which stays on the page where the machine has none."""


def page(results: Path) -> str:
    """The page of the results in a folder."""
    found = {name: json.loads(file.read_text()) for name in TABLES if (file := results / f"{name}.json").is_file()}
    if "gpu" in found and all(row["device"] == "CPU" for row in found["gpu"]["rows"]):
        found["gpu"] = json.loads(CARD.read_text())
    sections = [f"## {TITLES[name]}\n\n{TABLES[name](result)}{_machine(result)}" for name, result in found.items()]
    missing = [f"`{name}`" for name in TABLES if name not in found]
    end = [MISSING + ", ".join(missing) + ".\n"] if missing else []
    return "\n".join([HEAD, *sections, *end])


def _machine(result: Mapping[str, Any]) -> str:
    machine = result.get("machine")
    if not isinstance(machine, dict):
        return ""
    load = ", ".join(map(str, machine["load"]))
    return f"\n{machine['processor']}, {machine['cores']} cores, load {load}, {machine['date']}.\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _trainer(result: Mapping[str, Any]) -> str:
    text = "One iteration's update against TRL's GRPOTrainer on the same rows (`python -m tests.bench.trainer -h`).\n"
    if "tiny" in result["shapes"]:
        text += (
            "In the tiny rows most of the time goes to operations that only move memory (norms, rotations,\n"
            "activations at a width of 64); matrix products, which decide at the 4B's width, are a fifth of it.\n"
        )
    text += (
        "Here the training waits for an update, whose frames were encoded when they arrived; there for an iteration.\n"
    )
    text += "\n"
    rows = [
        (
            name,
            side,
            f"{row['iteration_s']:.2f} ± {row['spread']:.0%}",
            f"{row['tokens_per_s']:,}",
            f"{row['mfu']:.0%}",
            f"{row['peak_over_loaded_mib']:,}",
            f"{row['logprobs_differ_by']:.0e}",
        )
        for name, shape in result["shapes"].items()
        for side, row in shape["sides"].items()
    ]
    columns = ("rows", "side", "CPU s an iteration", "tokens/s", "MFU", "peak MiB over loaded", "logprobs differ by")
    ratios = [
        (
            name,
            side,
            f"{by['iteration']}×",
            f"{by['waited']}×",
            f"{by['update_alone']}×",
            f"{by['peak_over_loaded']}×",
            f"{GOAL * shape['sides'][side]['mfu']:.0%}",
        )
        for name, shape in result["shapes"].items()
        for side, by in shape["over_ours"].items()
    ]
    header = (
        *("rows", "side", "time of an iteration over ours", "of what is waited for", "of the update alone"),
        "peak memory",
        f"MFU that {GOAL} times its speed would be",
    )
    return text + _table(columns, rows) + "\n" + _table(header, ratios)


def _gpu(result: Mapping[str, Any]) -> str:
    rows = [
        (
            row["device"],
            row["decisions"],
            row["lever"],
            f"{row['seconds']} ± {row['spread']:.0%}",
            f"{row['tokens_per_s']:,}",
            *("–" if row[key] is None else f"{row[key]:.1%}" for key in ("mfu", "mfu_of_computed")),
            row["over_loaded_gib"],
            row.get("planned_gib") or "–",
            "–" if row["differs_by"] is None else row["differs_by"],
        )
        for row in result["rows"]
    ]
    speed = ("seconds", "tokens/s", "MFU", "of computed")
    columns = ("device", "decisions", "lever", *speed, "GiB over loaded", "planned GiB", "differs by")
    text = "".join(f"{note}\n" for note in result.get("notes", ())) + "\n" + _table(columns, rows)
    if waits := result["waits_for_a_card"]:
        text += "\nNot measured on a card yet:\n\n" + "".join(f"- {line}\n" for line in waits)
    return text


def _sync(result: Mapping[str, Any]) -> str:
    rows = [(r["what"], r["mb"], f"{r['seconds']} ± {r['spread']:.0%}", r["cpu_s"]) for r in result["rows"]]
    return _table(("part", "MB", "seconds", "CPU s"), rows)


def _startup(result: Mapping[str, Any]) -> str:
    return _table(("what", "CPU s"), [(r["what"], f"{r['cpu_s']} ± {r['spread']:.0%}") for r in result["rows"]])


def _env(result: Mapping[str, Any]) -> str:
    exact = result["exact"]
    different = f"{exact['different']} were different" if exact["different"] else "none was different"
    return (
        f"{exact['steps']:,} steps in {exact['seeds']} worlds, {exact['night']} of them by night and {exact['asleep']} "
        f"asleep, were compared with stock Crafter in frame, reward, end and state: {different}.\n\n" + _rows(result)
    )


def _loop(result: Mapping[str, Any]) -> str:
    return (
        f"The trainer's own loop; a rollout, an update and an evaluation wait for {result['phase_seconds']:g} s each "
        f"in place of other machines. Ahead is {result['ratio']}× as fast as in step; 2 is the limit. An evaluation is "
        "played beside the training.\n\n" + _rows(result)
    )


def _rollouts(result: Mapping[str, Any]) -> str:
    return (
        "`true-width` is a model of the 4B's width with two layers, and its vocabulary, prompt and tool, in bfloat16. "
        "The server has half of the cores, which are busy on both sides.\n\n" + _rows(result)
    )


def _inference(result: Mapping[str, Any]) -> str:
    return (
        "Processor time is that of a decision. A second API server takes a part of what the first one does. Here both\n"
        "share the cores with the engine, so that no more is decided; where a GPU computes, the busiest one may be\n"
        "the limit.\n\n"
    ) + _rows(result)


def _rows(result: Mapping[str, Any]) -> str:
    """A table of rows that all have the same simple fields."""
    rows = result["rows"]
    columns = [key for key, value in rows[0].items() if not isinstance(value, list | dict)]
    shown = [[_short(key, row.get(key)) for key in columns] for row in rows]
    return _table([column.replace("_", " ") for column in columns], shown)


def _short(column: str, value: Any) -> Any:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return value
    return f"{value:.0%}" if column == "spread" else f"{value:.4g}×" if column == "ratio" else f"{value:.4g}"


TABLES = {
    "trainer": _trainer,
    "gpu": _gpu,
    "sync": _sync,
    "startup": _startup,
    "loop": _loop,
    "rollouts": _rollouts,
    "inference": _inference,
    "env": _env,
    "taskapp": _rows,
}
TITLES = {
    "trainer": "Trainer, against TRL",
    "gpu": "The 4B on a card",
    "sync": "A new version on its way to a server",
    "startup": "Starting",
    "loop": "The loop: ahead against in step, and evaluations beside",
    "rollouts": "Rollouts, against the same prompts sent directly to the server",
    "inference": "The inference server with the tiny model",
    "env": "Crafter, against the stock environment with Pillow (CPU ms a call)",
    "taskapp": "Task app, with the scripted player",
}
