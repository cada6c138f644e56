"""The run as one HTML page: results, curves, and replays before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from visionrl.durable import write_atomically
from visionrl_trainer.report import curves
from visionrl_trainer.report.replay import Replay, ReplayFrame

PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$job</title>
<style>
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { font-weight: 600; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; } td, th { padding: .25rem 1rem .25rem 0; text-align: left; }
tr + tr { border-top: 1px solid #8884; }
svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
.replay { display: flex; gap: 6px; overflow-x: auto; padding-bottom: .5rem; }
.replay figure { margin: 0; flex: 0 0 112px; font-size: 11px; line-height: 1.25; }
.replay img { width: 112px; image-rendering: pixelated; border-radius: 4px; }
.replay b { color: #2a8f4a; } .replay i { color: #c0392b; }
</style>
<h1>$job</h1>
<table>$facts</table>
$supervised
<h2>Reward</h2>$reward
<h2>Training</h2>$health
<h2>Events on the held-out seeds</h2><table>$rates</table>
<h2>Held-out seed, before and after</h2>$replays
</html>
""")


def write_report(
    job: str,
    summary: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    supervised: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
    replays: Sequence[Replay],
    path: Path,
) -> None:
    """Write the page, which loads nothing else. ``supervised`` are the warm start's metrics."""
    shown = [replays[0], replays[-1]] if len(replays) > 1 else replays
    page = PAGE.substitute(
        job=escape(job),
        facts="".join(_row(name, value) for name, value in _facts(summary)),
        supervised=_supervised(supervised),
        reward=curves.as_svg(curves.reward_curve(metrics, evaluations, job)),
        health=curves.as_svg(curves.health_curves(metrics)) if metrics else "<p>no iterations</p>",
        rates=_rates(evaluations),
        replays="".join(_replay(replay) for replay in shown) or "<p>no evaluation, no replay</p>",
    )
    write_atomically(path, page)


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("iterations", f"{summary['iterations']}"),
        ("training episodes", f"{summary['episodes']:,}"),
        ("turns", f"{summary['turns']:,}"),
        ("policy", summary["adapter"]),
        ("largest serving-training difference", f"{summary['mismatch']['max_abs']:.1e} nats"),
        ("seconds", ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["seconds"].items())),
    ]
    for name, score in summary.get("evaluation", {}).items():
        interval = f"{score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}] on {score['episodes']} seeds"
        facts.append((f"evaluation, {name}", interval))
    return facts


def _supervised(records: Sequence[dict[str, Any]]) -> str:
    if not records:
        return ""
    last = records[-1]
    held_out = "" if last["validation_loss"] is None else f", on held-out data {last['validation_loss']:.3f}"
    curve = curves.as_svg(curves.loss_curve(records, "negative log-likelihood of an answer"))
    facts = f"<p>{last['steps']:,} steps, loss {last['loss']:.3f}{held_out} nats per decision</p>"
    return f"<h2>Supervised training</h2>{facts}{curve}"


def _rates(evaluations: Sequence[dict[str, Any]]) -> str:
    """Share of the episodes in which each event happened, in the first and the last evaluation."""
    if not evaluations:
        return ""
    first, last = evaluations[0]["rates"], evaluations[-1]["rates"]
    names = sorted(first.keys() | last.keys(), key=lambda name: -last.get(name, 0))
    head = "<tr><th>event<th>before<th>after</tr>"
    rows = [f"<tr><td>{escape(name)}<td>{first.get(name, 0):.0%}<td>{last.get(name, 0):.0%}</tr>" for name in names]
    return head + "".join(rows)


def _replay(replay: Replay) -> str:
    title = f"<h3>iteration {replay.iteration}, {escape(replay.policy)}, seed {replay.seed}</h3>"
    return title + '<div class="replay">' + "".join(_frame(frame) for frame in replay.frames) + "</div>"


def _frame(frame: ReplayFrame) -> str:
    image = f'<img loading="lazy" alt="" src="data:image/png;base64,{frame.png}">' if frame.png else ""
    actions = escape(", ".join(frame.actions)) if frame.valid else "<i>no usable answer</i>"
    unlocked = "".join(f"<br><b>{escape(name)}</b>" for name in frame.unlocked)
    return f"<figure>{image}<figcaption>{actions}{unlocked}</figcaption></figure>"


def _row(name: str, value: str) -> str:
    return f"<tr><th>{escape(name)}<td>{escape(value)}</tr>"
