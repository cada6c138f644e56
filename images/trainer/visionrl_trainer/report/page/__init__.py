"""``report.html``: the run as one page that loads nothing else, made from the files of the run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader, StrictUndefined

from visionrl.durable import write_atomically
from visionrl.status import TrainerReport
from visionrl_trainer.report import charts
from visionrl_trainer.report.films import Film, first_and_last, last_training
from visionrl_trainer.state.runfolder import RunFolder

Record = dict[str, Any]

TEMPLATES = Environment(
    loader=PackageLoader("visionrl_trainer.report.page", "."),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


@dataclass(frozen=True)
class Panel:
    """A chart and what it says."""

    title: str
    words: str
    chart: charts.Chart
    wide: bool = False
    div: str = ""
    """Where the chart is drawn."""


@dataclass(frozen=True)
class FilmPair:
    """Films from one start state, next to each other."""

    title: str
    words: str
    films: Sequence[tuple[str, Film]]
    """Titles and films."""


def write_page(folder: RunFolder, report: TrainerReport, ended: bool) -> None:
    """Write the page of the run folder. ``ended`` says that the trainer has ended, whatever the report's phase."""
    write_atomically(folder.report_file, render(folder, report, ended))


def render(folder: RunFolder, report: TrainerReport, ended: bool) -> str:
    """The page's HTML. Everything comes from the run folder; a file that is missing or damaged leaves a gap."""
    metrics, evaluations = folder.metrics.records(), folder.evaluations.records()
    supervised = folder.warm_start.metrics.records()
    job = _json(folder.config_file)
    state, state_class = _state(report, ended)
    rewards = _reward_panels(metrics, evaluations, supervised)
    training, time = _training_panels(metrics, job), _time_panels(metrics)
    panels = [*rewards, *training, *time]
    script, divs = components([panel.chart for panel in panels]) if panels else ("", ())
    placed = iter(divs)
    pairs = _film_pairs(folder)
    return TEMPLATES.get_template("page.html").render(
        job=(job.get("metadata") or {}).get("name", folder.root.name),
        state=state,
        state_class=state_class,
        live=not ended,
        message=report.message if state_class in ("failed", "running") else "",
        progress=report.progress if report.progress.total else None,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        facts=_facts(report, metrics, evaluations, _json(folder.facts_file), ended),
        rewards=_with_divs(rewards, placed),
        training=_with_divs(training, placed),
        time=_with_divs(time, placed),
        seconds=_seconds(metrics),
        rates=_rates(evaluations),
        films=[
            {"title": pair.title, "words": pair.words, "films": [{"title": title} for title, _ in pair.films]}
            for pair in pairs
        ],
        film_data=[[[turn.model_dump() for turn in film.turns] for _, film in pair.films] for pair in pairs],
        configuration=json.dumps(job.get("spec", {}), indent=2, ensure_ascii=False),
        bokeh=Resources(mode="inline", components=["bokeh"]).render_js() if panels else "",
        charts=script,
    )


def _with_divs(panels: Sequence[Panel], divs: Iterable[str]) -> list[Panel]:
    return [Panel(panel.title, panel.words, None, panel.wide, div) for panel, div in zip(panels, divs, strict=False)]


def _json(path: Path) -> Record:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- head


def _state(report: TrainerReport, ended: bool) -> tuple[str, str]:
    """What the run does or has done, in words, and as a class of the style sheet."""
    progress = report.progress
    done = f"after iteration {progress.iteration} of {progress.total}" if progress.total else ""
    if report.phase == "Complete":
        return f"complete {done}", "complete"
    if report.phase == "Failed":
        return f"failed {done}", "failed"
    if ended:
        return f"stopped {done}; started again, it goes on from its last checkpoint", "stopped"
    words = {"WarmStart": "warm start", "WaitingForInference": "waiting for the inference server"}
    return (
        f"{words.get(report.phase, report.phase.lower())}, iteration {progress.iteration} of {progress.total}",
        "running",
    )


def _facts(
    report: TrainerReport,
    metrics: Sequence[Record],
    evaluations: Sequence[Record],
    machine: Mapping[str, str],
    ended: bool,
) -> list[tuple[str, str]]:
    facts = []
    for name, record in (("before", evaluations[:1]), ("after", evaluations[1:][-1:])):
        facts += [(f"held-out seeds, {name}", _interval(found)) for found in record]
    if metrics:
        last = metrics[-1]
        facts += [
            ("reward of the last iteration", f"{last['reward']:.2f}"),
            ("training episodes", f"{sum(record['episodes'] for record in metrics):,}"),
            ("turns, completion tokens", f"{_total(metrics, 'turns'):,}, {_total(metrics, 'tokens'):,}"),
            ("episodes per minute", f"{report.progress.episodes_per_minute or math.nan:.1f}"),
            ("policy", last.get("version", "")),
        ]
    if report.progress.eta and not ended:
        facts.append(("expected end", report.progress.eta))
    return [*((name, value) for name, value in facts if value not in ("", "nan")), *machine.items()]


def _interval(record: Record) -> str:
    return f"{record['mean']:.2f} [{record['low']:.2f}, {record['high']:.2f}] on {record['episodes']} seeds"


def _total(metrics: Sequence[Record], name: str) -> int:
    return sum(int(record.get(name) or 0) for record in metrics)


# --- charts


def _reward_panels(
    metrics: Sequence[Record], evaluations: Sequence[Record], supervised: Sequence[Record]
) -> list[Panel]:
    found = []
    if metrics or evaluations:
        words = "Training and evaluation of one version of the policy stand above each other."
        found.append(Panel("Return", words, charts.reward(metrics, evaluations), wide=True))
    words = f"The {charts.EVENTS} most frequent. A tap on a name hides it."
    found += _panels([("Events", words, charts.events(metrics, evaluations))])
    found += _panels([("Warm start", "Negative log-likelihood of an answer.", charts.supervised(supervised))])
    return found


def _training_panels(metrics: Sequence[Record], job: Record) -> list[Panel]:
    if not metrics:
        return []
    last, limit = metrics[-1], _mismatch_limit(job)
    when = f"iteration {last['iteration']}"
    candidates = [
        (
            "Mismatch KL",
            "Between the server's and the trainer's logprobs of one version; the run stops at the dashed line.",
            charts.curve(metrics, {"mismatch_kl": "mismatch KL"}, "nats per token", log=True, alarm=limit),
        ),
        (
            "Entropy",
            "Of the policy at its answers' tokens.",
            charts.curve(metrics, {"entropy": "entropy"}, "nats per token"),
        ),
        ("Advantages", f"Of the decisions of {when}.", charts.histogram(last.get("advantages"), "advantage")),
        (
            "Ratios",
            f"New to old probability of the tokens or answers of {when}; the outermost bins hold what lies beyond.",
            charts.histogram(last.get("log_ratios"), "ratio", math.exp),
        ),
        (
            "Clipped",
            "Share of the ratios that the loss clipped.",
            charts.curve(metrics, {"clip_fraction": "clipped"}, "share"),
        ),
        (
            "Gradient",
            "Largest norm of an update, before clipping.",
            charts.curve(metrics, {"grad_norm": "norm"}, "gradient norm"),
        ),
        (
            "Lost answers",
            "Invalid: no usable action. Rejected: could not be trained on. Masked: server and trainer disagree.",
            charts.curve(
                metrics, {"invalid_rate": "invalid", "rejected_rate": "rejected", "masked_rate": "masked"}, "share"
            ),
        ),
        (
            "Staleness",
            "Versions that the episodes lagged behind; groups without variance teach nothing.",
            charts.curve(
                metrics, {"staleness": "staleness", "zero_variance_groups": "groups without variance"}, "count"
            ),
        ),
    ]
    return _panels(candidates)


def _time_panels(metrics: Sequence[Record]) -> list[Panel]:
    words = "Between the ends of two updates; rollouts that run ahead take no time of their own."
    return _panels([("Seconds per phase", words, charts.phases(metrics))], wide=True)


def _panels(candidates: Sequence[tuple[str, str, charts.Chart | None]], wide: bool = False) -> list[Panel]:
    return [Panel(title, words, chart, wide) for title, words, chart in candidates if chart is not None]


def _mismatch_limit(job: Record) -> float | None:
    """The job's guard, in the units of the chart: it is a hundred times stricter in float32."""
    spec = job.get("spec") or {}
    limit = ((spec.get("training") or {}).get("guards") or {}).get("maxMismatchKL")
    if limit is None:
        return None
    return float(limit) / 100 if (spec.get("model") or {}).get("dtype") == "float32" else float(limit)


# --- tables and films


def _seconds(metrics: Sequence[Record]) -> list[Record]:
    totals: dict[str, float] = {}
    for record in metrics:
        for name, seconds in (record.get("phase_seconds") or {}).items():
            totals[name] = totals.get(name, 0.0) + seconds
    total = sum(totals.values())
    ranked = sorted(totals.items(), key=lambda item: -item[1])
    return [
        {"name": name.replace("_", " "), "seconds": _duration(seconds), "share": seconds / total}
        for name, seconds in ranked
        if seconds > 0
    ]


def _duration(seconds: float) -> str:
    minutes = round(seconds) // 60
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {round(seconds) % 60:02d} s" if minutes else f"{seconds:.1f} s"


def _rates(evaluations: Sequence[Record]) -> Record | None:
    """Share of the episodes with each event, in the first and the last evaluation."""
    if not evaluations or not any(record["rates"] for record in evaluations):
        return None
    first, last = evaluations[0], evaluations[-1]
    before, after = first["rates"], last["rates"]
    names = sorted(before.keys() | after.keys(), key=lambda name: (-after.get(name, 0), -before.get(name, 0), name))
    return {
        "before": f"before, on {first['episodes']} seeds",
        "after": f"after iteration {last['iteration']}" if len(evaluations) > 1 else "",
        "rows": [{"name": name, "before": before.get(name, 0.0), "after": after.get(name, 0.0)} for name in names],
    }


def _film_pairs(folder: RunFolder) -> list[FilmPair]:
    pairs = []
    if held_out := first_and_last(folder.films):
        titles = [f"after {_iterations(film.iteration)}: score {film.score:.3g}" for film in held_out]
        words = f"seed {held_out[0].seed}; the policy sees this frame and answers with the text below it"
        title = "A held-out seed, before and after" if len(held_out) > 1 else "A held-out seed, before training"
        pairs.append(FilmPair(title, words, list(zip(titles, held_out, strict=True))))
    if played := last_training(folder.films):
        titles = [f"{name}: score {film.score:.3g}" for name, film in zip(("worst", "best"), played, strict=False)]
        words = (
            f"iteration {played[0].iteration + 1}, seed {played[0].seed}: of the start state whose episodes differ "
            "most, with the advantage of every decision"
        )
        pairs.append(FilmPair("Episodes that were trained on", words, list(zip(titles, played, strict=True))))
    return [pair for pair in pairs if all(film.turns for _, film in pair.films)]


def _iterations(count: int) -> str:
    return f"{count} iteration" if count == 1 else f"{count} iterations"
