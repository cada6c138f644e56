"""The report is one page that needs nothing beside itself."""

from __future__ import annotations

import re
from pathlib import Path

from visionrl.status import Progress, TrainerReport
from visionrl_trainer.report import html as report
from visionrl_trainer.report import replay as replay
from visionrl_trainer.report.last import leave_report
from visionrl_trainer.report.replay import Replay, ReplayFrame

SUMMARY = {
    "iterations": 2,
    "episodes": 8,
    "turns": 40,
    "adapter": "crafter-v000002-0123456789ab",
    "mismatch": {"max_abs": 1e-6},
    "seconds": {"rollout": 12.0},
    "evaluation": {"before": {"mean": 1.5, "low": 1.0, "high": 2.0, "episodes": 4}},
}
METRICS = [
    {
        "iteration": n,
        "reward": 1.0 + n,
        "reward_std": 0.5,
        "episodes": 4,
        "entropy": 0.5,
        "clip_fraction": 0.1,
        "grad_norm": 1.0,
        "invalid_rate": 0.0,
        "mismatch_max": 1e-6,
        "seconds": 3.0,
    }
    for n in (1, 2)
]
EVALUATIONS = [
    {"iteration": 0, "mean": 1.5, "low": 1.0, "high": 2.0, "episodes": 4, "rates": {"collect_wood": 0.5}},
    {"iteration": 2, "mean": 2.5, "low": 2.0, "high": 3.0, "episodes": 4, "rates": {"collect_drink": 1.0}},
]


def a_replay(iteration: int) -> Replay:
    frames = [ReplayFrame(png="aGVsbG8=", actions=["do", "noop"], unlocked=["collect_wood"], valid=True)]
    return Replay(iteration=iteration, policy="crafter-v000000-0123456789ab", seed=3, frames=frames)


def test_it_shows_scores_curves_rates_and_films(tmp_path: Path) -> None:
    replays = [a_replay(0), a_replay(1), a_replay(2)]
    report.write_report("crafter", SUMMARY, METRICS, [], EVALUATIONS, replays, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "1.50 [1.00, 2.00] on 4 seeds" in page
    assert page.count("<svg") == 2
    assert "<td>collect_wood<td>50%<td>0%" in page
    assert re.findall(r"<h3>iteration (\d)", page) == ["0", "2"]
    assert "data:image/png;base64,aGVsbG8=" in page


def test_nothing_is_loaded_from_elsewhere_and_names_are_escaped(tmp_path: Path) -> None:
    report.write_report("<b>job</b>", SUMMARY, [], [], [], [], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "<b>job</b>" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)


def test_the_warm_starts_losses_are_a_curve_of_their_own(tmp_path: Path) -> None:
    records = [{"step": n, "steps": 2, "loss": 4.0 - n, "validation_loss": [None, 2.5][n - 1]} for n in (1, 2)]
    report.write_report("crafter", SUMMARY, METRICS, records, EVALUATIONS, [], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 3
    assert "2 steps, loss 2.000, on held-out data 2.500 nats per decision" in page


def test_films_are_kept_by_iteration(tmp_path: Path) -> None:
    for iteration in (12, 0):
        replay.save(a_replay(iteration), tmp_path)
    assert replay.load_all(tmp_path) == [a_replay(0), a_replay(12)]


def test_a_completed_trainer_leaves_its_last_report_where_the_kubelet_reads_it(tmp_path: Path) -> None:
    last = TrainerReport(phase="Complete", progress=Progress(iteration=3, total=3))
    log = tmp_path / "termination-log"
    leave_report(last, log)
    assert not log.exists(), "outside a pod there is no such file"
    log.touch()
    leave_report(last, log)
    assert TrainerReport.model_validate_json(log.read_text()) == last
    assert len(log.read_bytes()) < 4096, "the kubelet keeps no more"
    log.chmod(0o400)
    leave_report(last, log)
