"""Interactive charts of a run, for the report. Curves have :data:`COLOURS`, on a light and on a dark screen; axes and
text get theirs from the page's script."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, Legend, LegendItem, NumeralTickFormatter, Whisker
from bokeh.plotting import figure

Record = dict[str, Any]
Chart = Any
"""A Bokeh figure."""

COLOURS = ("#3b82c4", "#d2603f", "#3f9d5c", "#9467bd", "#b8860b", "#2aa6a6", "#c2558d", "#7f7f7f", "#8c6d4f", "#5b6fd6")
"""Each has a contrast of 3 : 1 or more against white and against the dark page."""
TRAINING, EVALUATION, ALARM = COLOURS[0], COLOURS[1], "#d03030"
POINTS = 400
"""Points of a curve at most; of more iterations, neighbours are averaged."""
EVENTS = 8
"""Events with a curve; the table has all."""
HEIGHT = 240
"""Pixels, without the legend."""
LEGEND_ROW = 24
LONG_LABEL = 21
"""Characters; two columns of longer ones do not fit on a phone."""


def reward(metrics: Sequence[Record], evaluations: Sequence[Record]) -> Chart:
    """Mean return by the iterations that the policy had learned when it played: training episodes, ± 95 % of the mean,
    and evaluations with their intervals. One version of the policy is one place on the axis."""
    chart = _chart("mean return", "iterations that the policy had learned")
    curve = thinned(
        {
            "x": [played_after(record) for record in metrics],
            "y": [record["reward"] for record in metrics],
            "error": [1.96 * record["reward_std"] / math.sqrt(record["episodes"]) for record in metrics],
            "episodes": [record["episodes"] for record in metrics],
        }
    )
    curve |= {"low": curve["y"] - curve["error"], "high": curve["y"] + curve["error"]}
    items = []
    if metrics:
        source = ColumnDataSource(curve)
        band = chart.varea("x", "low", "high", source=source, color=TRAINING, alpha=0.18)
        line = chart.line("x", "y", source=source, color=TRAINING, width=2)
        dots = chart.scatter("x", "y", source=source, color=TRAINING, size=5)
        _hover(
            chart,
            dots,
            [
                ("learned iterations", "@x"),
                ("training", "@y{0.00} [@low{0.00}, @high{0.00}]"),
                ("episodes", "@episodes"),
            ],
        )
        items.append(("training episodes, ± 95 % of the mean", [line, dots, band]))
    if evaluations:
        source = ColumnDataSource(
            {
                "x": [record["iteration"] for record in evaluations],
                "y": [record["mean"] for record in evaluations],
                "low": [record["low"] for record in evaluations],
                "high": [record["high"] for record in evaluations],
                "episodes": [record["episodes"] for record in evaluations],
            }
        )
        bars = Whisker(
            base="x", lower="low", upper="high", source=source, line_color=EVALUATION, line_width=2, level="annotation"
        )
        bars.upper_head.line_color = bars.lower_head.line_color = EVALUATION
        chart.add_layout(bars)
        marks = chart.scatter("x", "y", source=source, color=EVALUATION, size=9, marker="square")
        _hover(
            chart,
            marks,
            [("learned iterations", "@x"), ("held out", "@y{0.00} [@low{0.00}, @high{0.00}]"), ("seeds", "@episodes")],
        )
        items.append(("held-out seeds, 95 % interval", [marks]))
    _legend(chart, items)
    return chart


def events(metrics: Sequence[Record], evaluations: Sequence[Record]) -> Chart | None:
    """Share of episodes with each of the most frequent events: lines for training episodes, squares for evaluations."""
    last = evaluations[-1]["rates"] if evaluations else {}
    totals: dict[str, float] = {}
    for record in metrics:
        for name, rate in (record.get("events") or {}).items():
            totals[name] = totals.get(name, 0.0) + rate
    names = sorted(totals.keys() | last.keys(), key=lambda name: (-last.get(name, 0), -totals.get(name, 0), name))
    if not names:
        return None
    chart = _chart("share of episodes", "iterations that the policy had learned", y_range=(-0.03, 1.03))
    chart.yaxis.formatter = NumeralTickFormatter(format="0%")
    items = []
    for name, colour in zip(names[:EVENTS], COLOURS, strict=False):
        renderers = []
        with_events = [record for record in metrics if "events" in record]
        if with_events:
            curve = thinned(
                {
                    "x": [played_after(record) for record in with_events],
                    "y": [record["events"].get(name, 0.0) for record in with_events],
                }
            )
            source = ColumnDataSource(curve | {"name": [name] * len(curve["x"])})
            renderers.append(chart.line("x", "y", source=source, color=colour, width=2))
            renderers.append(chart.scatter("x", "y", source=source, color=colour, size=4))
        if evaluations:
            source = ColumnDataSource(
                {
                    "x": [record["iteration"] for record in evaluations],
                    "y": [record["rates"].get(name, 0.0) for record in evaluations],
                    "name": [f"{name}, held out"] * len(evaluations),
                }
            )
            renderers.append(chart.scatter("x", "y", source=source, color=colour, size=8, marker="square"))
        _hover(chart, renderers[-1], [("", "@name"), ("share", "@y{0.0%}"), ("learned iterations", "@x")])
        items.append((name, renderers))
    _legend(chart, items)
    return chart


def curve(
    metrics: Sequence[Record], names: dict[str, str], label: str, log: bool = False, alarm: float | None = None
) -> Chart | None:
    """Metrics by iteration; ``names`` are the metrics and what they are called. None without any value."""
    chart = _chart(label, "iteration", y_axis_type="log" if log else "linear")
    items = []
    for (name, called), colour in zip(names.items(), COLOURS, strict=False):
        known = [record for record in metrics if _drawable(record.get(name), log)]
        if not known:
            continue
        source = ColumnDataSource(
            thinned({"x": [record["iteration"] for record in known], "y": [record[name] for record in known]})
        )
        line = chart.line("x", "y", source=source, color=colour, width=2)
        dots = chart.scatter("x", "y", source=source, color=colour, size=4)
        _hover(chart, dots, [("iteration", "@x"), (called, "@y{0.[0000]}" if not log else "@y{0.00e+0}")])
        items.append((called, [line, dots]))
    if not items:
        return None
    if alarm is not None:
        first, last = metrics[0]["iteration"], metrics[-1]["iteration"]
        items.append(
            ("the run stops", [chart.line([first, last], [alarm, alarm], color=ALARM, dash="dashed", width=2)])
        )
    if label in ("share", "count"):
        chart.y_range.start = 0
    _legend(chart, items if len(items) > 1 else [])
    return chart


def phases(metrics: Sequence[Record]) -> Chart | None:
    """Seconds per phase of each iteration, stacked."""
    known = [record for record in metrics if record.get("phase_seconds")]
    totals: dict[str, float] = {}
    for record in known:
        for name, seconds in record["phase_seconds"].items():
            totals[name] = totals.get(name, 0.0) + seconds
    names = sorted((name for name in totals if totals[name] > 0), key=lambda name: -totals[name])[: len(COLOURS)]
    if not names:
        return None
    chart = _chart("seconds", "iteration")
    data = {"x": [record["iteration"] for record in known]}
    data |= {name: [record["phase_seconds"].get(name, 0.0) for record in known] for name in names}
    source = ColumnDataSource(thinned(data))
    places = np.asarray(source.data["x"])
    width = 0.8 * float(np.diff(places).min()) if len(places) > 1 else 0.8
    stacks = chart.vbar_stack(names, x="x", width=width, source=source, color=COLOURS[: len(names)])
    tooltips = [("iteration", "@x"), *((name, f"@{{{name}}}{{0.0}} s") for name in names)]
    for stack in stacks:
        _hover(chart, stack, tooltips)
    _legend(chart, [(name, [stack]) for name, stack in zip(names, stacks, strict=True)])
    return chart


def histogram(found: Record | None, label: str, transform: Callable[[float], float] = float) -> Chart | None:
    """Counts of a :class:`visionrl_trainer.report.histogram.Histogram`; ``transform`` is applied to the edges."""
    if not found or not sum(found["counts"]):
        return None
    edges = [transform(edge) for edge in np.linspace(found["low"], found["high"], len(found["counts"]) + 1)]
    source = ColumnDataSource({"left": edges[:-1], "right": edges[1:], "count": found["counts"]})
    chart = _chart("count", label, height=220)
    bars = chart.quad(
        left="left", right="right", bottom=0, top="count", source=source, color=TRAINING, alpha=0.8, line_alpha=0
    )
    _hover(chart, bars, [(label, "@left{0.000} to @right{0.000}"), ("count", "@count")])
    return chart


def supervised(records: Sequence[Record]) -> Chart | None:
    """Losses of the warm start by step."""
    steps = [{**record, "iteration": record["step"]} for record in records]
    chart = curve(steps, {"loss": "training", "validation_loss": "held out"}, "nats per decision")
    if chart is not None:
        chart.xaxis.axis_label = "optimizer step"
    return chart


# --- parts


def played_after(record: Record) -> int:
    """Iterations that the policy had learned which played an iteration's episodes."""
    return int(record["iteration"]) - 1 - int(record.get("staleness") or 0)


def thinned(columns: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Columns of at most :data:`POINTS` rows: means of as many neighbours as it takes."""
    arrays = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    rows = len(next(iter(arrays.values())))
    if rows <= POINTS:
        return arrays
    starts = np.linspace(0, rows, POINTS, endpoint=False).astype(int)
    sizes = np.diff([*starts, rows])
    return {name: np.add.reduceat(values, starts) / sizes for name, values in arrays.items()}


def _drawable(value: object, log: bool) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and (value > 0 or not log)


def _chart(y: str, x: str, height: int = HEIGHT, **options: Any) -> Chart:
    """Without tools that catch a finger: a page with charts must scroll."""
    chart = figure(
        height=height,
        sizing_mode="stretch_width",
        tools="",
        toolbar_location=None,
        x_axis_label=x,
        y_axis_label=y,
        **options,
    )
    chart.background_fill_color = chart.border_fill_color = None
    chart.outline_line_color = None
    chart.xaxis.ticker.desired_num_ticks = 6
    if "iteration" in x:
        chart.xaxis.ticker.min_interval = 1
    for axis in (*chart.xaxis, *chart.yaxis):
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font = axis.major_label_text_font = "system-ui, sans-serif"
    return chart


def _legend(chart: Chart, items: Sequence[tuple[str, list[Any]]]) -> None:
    """Below the chart; a click on an entry hides it."""
    if not items:
        return
    legend = Legend(items=[LegendItem(label=label, renderers=renderers) for label, renderers in items])
    legend.click_policy = "hide"
    legend.location = "left"
    legend.ncols = 2 if max(len(label) for label, _ in items) <= LONG_LABEL and len(items) > 1 else 1
    chart.height += LEGEND_ROW * math.ceil(len(items) / legend.ncols)
    legend.background_fill_alpha = legend.border_line_alpha = 0
    legend.label_text_font = "system-ui, sans-serif"
    legend.label_text_font_size = "12px"
    legend.padding, legend.margin = 2, 2
    chart.add_layout(legend, "below")


def _hover(chart: Chart, renderer: Any, tooltips: Sequence[tuple[str, str]]) -> None:
    chart.add_tools(HoverTool(renderers=[renderer], tooltips=list(tooltips), mode="mouse"))
