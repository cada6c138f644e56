"""The trainer's report as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterator

from visionrl.status import Progress, TrainerReport

CONTENT_TYPE = "text/plain; version=0.0.4"
PREFIX = "visionrl_trainer_"


def metrics_text(report: TrainerReport) -> str:
    """Every number of the report, one gauge each; those that are not known yet are left out."""
    lines = [line for name, value in _numbers(report.progress) for line in (f"# TYPE {name} gauge", f"{name} {value}")]
    return "\n".join([*lines, f'{PREFIX}phase{{phase="{report.phase}"}} 1', ""])


def _numbers(progress: Progress) -> Iterator[tuple[str, float]]:
    found = {name: getattr(progress, name) for name in Progress.model_fields}
    if progress.evaluation.latest is not None:
        found["evaluation"] = progress.evaluation.latest.mean
    for name, value in found.items():
        if isinstance(value, int | float):
            yield f"{PREFIX}{name}", value
