"""The report is one page that needs nothing beside itself, made from whatever the run folder holds."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support.report_run import film, make_run, played_batch, record, report
from visionrl.status import Progress, TrainerReport
from visionrl_trainer.report import charts, films, live
from visionrl_trainer.report.histogram import Histogram
from visionrl_trainer.report.last import leave_report
from visionrl_trainer.report.page import render
from visionrl_trainer.state.runfolder import RunFolder
from visionrl_trainer.sync.service import StatusPublisher, application


def film_data(page: str) -> list[list[list[dict[str, object]]]]:
    """The films of a page: sections, films, turns."""
    found = re.search(r'<script type="application/json" id="films">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


def text(page: str) -> str:
    """What a reader sees, roughly: the page without scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


# --- the page


def test_it_shows_state_scores_films_events_and_the_configuration(tmp_path: Path) -> None:
    page = render(make_run(tmp_path), report(message="iteration 43: playing"), ended=False)
    words = text(page)
    assert "training, iteration 42 of 100" in words
    assert "iteration 43: playing" in words
    assert "2.00 [1.50, 2.50] on 50 seeds" in words
    assert "after 0 iterations: score 2" in words
    assert "after 40 iterations: score 5.46" in words
    assert "worst: score 0" in words
    assert "best: score 2" in words
    assert re.search(r"<td>find key</td>.*?0 %.*?100 %", words)
    assert "&#34;iterations&#34;: 100" in words
    for title in (
        "Return",
        "Events",
        "Warm start",
        "Mismatch KL",
        "Advantages",
        "Ratios",
        "Staleness",
        "Seconds per phase",
    ):
        assert f"<b>{title}</b>" in words


def test_a_film_has_texts_actions_rewards_and_advantages(tmp_path: Path) -> None:
    held_out, trained = film_data(render(make_run(tmp_path), report(), ended=False))
    assert [len(turns) for turns in held_out] == [12, 12]
    assert held_out[0][3]["events"] == ["find key"]
    assert held_out[0][0]["error"] == "no tool call in the answer"
    assert held_out[0][1]["advantage"] is None
    worst, best = trained
    assert (worst[0]["advantage"], best[0]["advantage"]) == (-1.0, 1.0)
    assert (worst[0]["text"], best[0]["text"]) == ("turn 0 of 0.0", "turn 0 of 2.0")
    assert best[0]["reward"] == 2.0


@pytest.mark.parametrize(
    ("phase", "ended", "words"),
    [
        ("Starting", False, "starting, iteration 0 of 0"),
        ("Training", True, "stopped after iteration 7 of 100; started again, it goes on from its last checkpoint"),
        ("Failed", True, "failed after iteration 7 of 100"),
        ("Complete", True, "complete after iteration 7 of 100"),
        ("WaitingForInference", False, "waiting for the inference server, iteration 7 of 100"),
    ],
)
def test_it_says_what_became_of_the_run(tmp_path: Path, phase: str, ended: bool, words: str) -> None:
    said = TrainerReport(phase="Starting") if phase == "Starting" else report(phase, "the cause", iteration=7)
    page = render(RunFolder(tmp_path), said, ended)
    assert words in text(page)
    assert ("expected end" in page) == (not ended and phase != "Starting")
    assert ("the cause" in page) == (phase in ("Failed", "WaitingForInference"))


def test_nothing_is_loaded_from_elsewhere_and_nothing_that_a_model_says_is_markup(tmp_path: Path) -> None:
    page = render(make_run(tmp_path), report(message="<b>message</b>"), ended=False)
    assert not re.search(r'(src|href)="(?!data:|#)', text(page))
    assert "default-src 'none'" in page
    assert "<b>message</b>" not in page
    assert "<td><b>bold</b>" not in page
    assert "<script>0</script>" not in page


def test_it_is_small_enough_for_a_phone_and_for_thousands_of_iterations(tmp_path: Path) -> None:
    """64 episodes of 50 turns: what is kept of an iteration does not depend on their number."""
    long = render(make_run(tmp_path / "long", iterations=3000, turns=50), report(), ended=False)
    assert len(long.encode()) < 4_000_000
    rng = np.random.default_rng(0)
    assert len(json.dumps(record(1, rng))) < 3_000


def test_what_is_missing_or_damaged_leaves_a_gap(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    folder.facts_file.write_bytes(b"\xff")
    folder.config_file.write_text("[]")
    (folder.films / "000000.json").write_text('{"iteration"')
    (folder.films / films.TRAINING_FILMS).write_text("")
    with folder.metrics.path.open("a") as stream:
        stream.write('{"iteration": 43, "rew')
    [held_out] = film_data(render(folder, report(), ended=False))
    assert len(held_out) == 2, "the oldest film that is whole, and the newest"


def test_records_of_an_earlier_version_have_charts_too(tmp_path: Path) -> None:
    old = {"iteration": 1, "reward": 1.0, "reward_std": 0.5, "episodes": 4, "invalid_rate": 0.0, "entropy": None}
    folder = RunFolder(tmp_path)
    folder.metrics.path.write_text(json.dumps(old) + "\n")
    assert "<b>Return</b>" in render(folder, report(), ended=False)


# --- charts


def test_training_and_evaluation_of_one_version_stand_above_each_other() -> None:
    """What an iteration plays was learned in the iterations before it, less the versions that it lags behind."""
    assert charts.played_after({"iteration": 1, "staleness": 0}) == 0
    assert charts.played_after({"iteration": 11, "staleness": 2}) == 8


def test_long_curves_are_thinned_to_means_of_neighbours() -> None:
    columns = charts.thinned({"x": list(range(4000)), "y": [1.0] * 4000})
    assert len(columns["x"]) == charts.POINTS
    assert columns["x"][0] == 4.5
    assert set(columns["y"]) == {1.0}
    assert columns["x"].mean() == pytest.approx(1999.5)


@pytest.mark.parametrize("values", [[0.0], [1.0] * 8, list(range(100))])
def test_a_histogram_counts_every_value(values: list[float]) -> None:
    found = Histogram.of(values)
    assert sum(found.counts) == len(values)
    assert found.low <= min(values) <= max(values) <= found.high


# --- films


def test_the_films_of_training_are_the_extremes_of_the_start_state_that_differs_most() -> None:
    batch, samples = played_batch(turns=3, returns=(1.0, 5.0, 0.0))
    worst, best = films.training_films(batch, samples, iteration=2)
    assert (worst.seed, worst.score, best.seed, best.score) == (1_000_002, 0.0, 1_000_002, 5.0)
    assert [turn.advantage for turn in best.turns] == [3.0] * 3


def test_without_any_difference_two_episodes_are_filmed() -> None:
    batch, samples = played_batch(turns=1, returns=(1.0, 1.0))
    assert [film.score for film in films.training_films(batch, samples, iteration=2)] == [1.0, 1.0]


def test_plain_frames_are_kept_exactly_and_noise_is_bounded() -> None:
    plain = np.zeros((64, 64, 3), np.uint8)
    plain[10:20, 10:20] = (250, 10, 10)
    assert (np.asarray(Image.open(io.BytesIO(films.webp(plain)))) == plain).all()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)
    pictures = films.Pictures()
    urls = [pictures.of_frame(noise) for _ in range(50)]
    assert urls[-1] == ""
    size = sum(len(base64.b64decode(url.partition(",")[2])) for url in urls)
    assert size < films.FILM_BYTES + 120_000


def test_the_first_and_the_last_evaluations_films_are_shown(tmp_path: Path) -> None:
    for iteration in (12, 0, 5):
        films.save(film(iteration, 2, 1.0), tmp_path)
    assert [found.iteration for found in films.first_and_last(tmp_path)] == [0, 12]
    (tmp_path / "000012.json").write_bytes(b"")
    assert [found.iteration for found in films.first_and_last(tmp_path)] == [0, 5]
    assert films.last_training(tmp_path) == []


async def test_an_iteration_is_filmed_beside_the_training(tmp_path: Path) -> None:
    maker = films.FilmMaker(tmp_path)
    maker.start(*played_batch(turns=2), 4)
    maker.start(*played_batch(turns=2), 5)  # passed over: the first is not done
    await maker.close()
    assert {found.iteration for found in films.last_training(tmp_path)} == {4}


# --- the process that writes it


def says(file: Path, words: str) -> bool:
    return file.exists() and words in file.read_text()


async def until(file: Path, words: str) -> None:
    for _ in range(1200):
        if says(file, words):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{file} never said {words!r}")


async def test_it_is_rewritten_beside_the_training_and_at_its_end(tmp_path: Path) -> None:
    folder, publisher = RunFolder(tmp_path), StatusPublisher(TrainerReport(phase="Starting"))
    async with live.kept_up_to_date(publisher):
        publisher.update(phase="Training", progress=Progress(iteration=0, total=2))
        publisher.report_file = folder.report_file
        await until(folder.report_file, "training, iteration 0 of 2")
        publisher.update(progress=Progress(iteration=1, total=2))
        await until(folder.report_file, "training, iteration 1 of 2")
    assert says(folder.report_file, "stopped after iteration 1 of 2")


async def test_a_page_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    folder, publisher = RunFolder(tmp_path), StatusPublisher(TrainerReport(phase="Failed"))
    folder.report_file.mkdir()
    async with live.kept_up_to_date(publisher):
        publisher.report_file = folder.report_file
    folder.report_file.rmdir()


async def test_a_trainer_that_never_got_its_run_folder_writes_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would replace that of the folder's owner."""
    monkeypatch.setattr(live, "COMMAND", ("false",))
    async with live.kept_up_to_date(StatusPublisher(TrainerReport(phase="Failed"))):
        pass


async def test_a_writer_that_dies_ends_nothing_and_the_last_page_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, publisher = RunFolder(tmp_path), StatusPublisher(TrainerReport(phase="Training"))
    command = live.COMMAND
    monkeypatch.setattr(live, "COMMAND", ("false",))
    async with live.kept_up_to_date(publisher):
        publisher.report_file = folder.report_file
        await asyncio.sleep(2 * live.LOOK_SECONDS)
        monkeypatch.setattr(live, "COMMAND", command)
    assert says(folder.report_file, "stopped")


# --- served


def test_the_page_opens_with_the_key_once_and_then_with_a_cookie(tmp_path: Path) -> None:
    publisher = StatusPublisher(TrainerReport(phase="Training"))
    browser = TestClient(application(publisher, "the-key"))
    assert browser.get("/report").status_code == 401
    assert browser.get("/report?key=wrong").status_code == 401
    answer = browser.get("/report?key=the-key", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/report")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "the-key" not in cookie, "the cookie opens the page alone"
    assert browser.get("/report").status_code == 503
    publisher.report_file = tmp_path / "report.html"
    publisher.report_file.write_text("<p>page")
    assert browser.get("/report").text == "<p>page"
    assert browser.head("/report").headers["etag"]
    assert browser.get("/status").status_code == 401


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
