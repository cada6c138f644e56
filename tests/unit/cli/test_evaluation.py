"""What visionrl eval makes of its words, its journal and other results."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.jobs import job
from tests.support.trainer import named_by_content
from visionrl.checks import exports_base
from visionrl.jobfile import JobFileError
from visionrl_cli import main
from visionrl_cli.evaluation.components import Components
from visionrl_cli.evaluation.local_policy import open_model, open_run
from visionrl_cli.evaluation.plan import EvalOptions, make_plan
from visionrl_cli.evaluation.results import Journal, check_same_seeds, compared, make_results, read_results
from visionrl_cli.evaluation.text import EvalError, duration
from visionrl_cli.evaluation.view import PlainView, comparison_lines, rows
from visionrl_local.folder import LocalFolder
from visionrl_trainer.rollout.evaluate import EpisodeScore

TINY = Path(__file__).parents[3] / "configs" / "crafter-tiny.yaml"
MODEL: dict[str, Any] = {"model": "gpt-4o-mini", "inference_url": "http://provider"}


def score(seed: int, achievements: int = 3, **more: Any) -> EpisodeScore:
    names = ("collect_wood", "place_table", "collect_stone")[:achievements]
    values = {"turns": 10, "steps": 40, "invalid": 1, "env_return": 2.5, **more}
    return EpisodeScore(seed=seed, score=achievements, unlocked=names, **values)


# --- the plan


def test_flags_go_before_policy_config_before_the_file() -> None:
    options = EvalOptions(**MODEL, config=TINY, turns=7, policy_config={"max_tokens": 99, "max_llm_calls": 8})
    config = make_plan(options).policy.config
    assert (config.max_llm_calls, config.max_tokens, config.max_actions) == (7, 99, 4)
    assert (config.model, config.inference_url) == ("gpt-4o-mini", "http://provider")


def test_seeds_are_the_files_held_out_ones_unless_named() -> None:
    options = EvalOptions(policy="crafter-blind", config=TINY)
    assert make_plan(options).seeds == tuple(range(96))
    assert make_plan(EvalOptions(policy="crafter-blind", seeds=(5, 3))).seeds == (5, 3)


def test_the_standard_protocol_plays_whole_episodes_on_thirty_seeds() -> None:
    plan = make_plan(EvalOptions(policy="crafter-blind", config=TINY, protocol="standard"))
    rollout, config = plan.job.spec.rollout, plan.policy.config
    assert plan.seeds == tuple(range(30))
    assert (rollout.env_config.length, rollout.env_config.difficulty) == (10_000, "normal")
    assert (config.max_llm_calls, rollout.max_ops) == (10_000, 20_000)
    assert (rollout.env_config.image_size, config.max_actions) == (144, 4)  # how it plays is the config's
    more = EvalOptions(policy="crafter-blind", protocol="standard", seeds=tuple(range(50)))
    assert len(make_plan(more).seeds) == 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"policy": "crafter-blind", "protocol": "standard", "seeds": (0, 1)}, "2 seeds; the standard protocol asks"),
        ({"policy": "crafter-blind", "protocol": "standard", "turns": 5}, "--turns contradicts --protocol standard"),
        ({"model": "m"}, "--model m needs --inference-url"),
        ({"model": "m", "task_app": "http://x"}, "--model m needs --inference-url"),
        ({"model": "m", "env": "Doom!", "inference_url": "http://x"}, "--env: "),
        ({"model": "m", "env": "doom", "inference_url": "http://x"}, "no environment 'doom' is installed here"),
        ({"policy": "crafter-blind", "inference_url": "http://x"}, "--inference-url goes with --model"),
        ({"policy": "crafter-blind", "version": "v"}, "go with --run"),
        ({"policy": "crafter-blind", "temperature": 0.5}, "no effect on crafter-blind"),
        ({"policy": "crafter-scripted", "control": "grey"}, "crafter-scripted has no model"),
        ({"run": Path("r"), "task_app": "http://x"}, "leave out --task-app"),
        ({"model": "org/name", "task_app": "http://x"}, "leave out --task-app"),
        ({**MODEL, "task_app": "http://x", "trace_db": Path("t")}, "--trace-db is for the task app"),
        ({**MODEL, "policy_config": {"temperatur": 1}}, "--policy-config: temperatur: unknown key; did you mean temp"),
        ({**MODEL, "policy_config": {"model": "x"}}, "say it with --model"),
        ({**MODEL, "policy_config": {"max_actions": 9}}, "--policy-config: max_actions: must be less than"),
        ({**MODEL, "temperature": 3.0}, "temperature: must be less than or equal to 2"),
        ({"run": Path("nowhere")}, "nowhere is not a run folder: it has no config.json"),
    ],
)
def test_words_that_contradict_each_other_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(EvalError, match=message):
        make_plan(EvalOptions(**words))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--policy", "crafter-blind", "--model", "m"],
        ["--policy", "crafter-react"],
        ["--policy", "crafter-blind", "--seeds", "3-1"],
        ["--policy", "crafter-blind", "--turns", "0"],
        ["--policy", "crafter-blind", "--policy-config", "[]"],
    ],
)
def test_words_that_cannot_be_read_end_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *words])
    assert ended.value.code == 2


def test_errors_name_the_fix_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", "m"]) == 1
    assert capsys.readouterr().err == (
        "visionrl: --model m needs --inference-url, the base URL of its server: it is neither a folder on this machine "
        "nor a model of the hub (OWNER/NAME)\n"
    )


# --- a local run


def run_folder(root: Path, versions: tuple[int, ...] = (4,), published: tuple[int, ...] = ()) -> Path:
    root.mkdir()
    (root / "config.json").write_text(job().model_dump_json(by_alias=True))
    for number in versions:
        (root / "checkpoints" / name(number)).mkdir(parents=True)
    for number in {*versions, *published}:
        write_adapter(root / "adapters" / "draft", number)
        named_by_content(root / "adapters" / "draft", "demo", number)
    return root


def write_adapter(folder: Path, number: int) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(str(number))


def name(number: int) -> str:
    """Name of the version with this number, by its content."""
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder) / "draft", number)
        return named_by_content(Path(folder) / "draft", "demo", number)


def test_a_run_plays_its_newest_checkpoint_another_version_or_its_base(tmp_path: Path) -> None:
    root = run_folder(tmp_path / "run", versions=(3, 5), published=(5, 6))
    assert open_run(root).model == name(5)
    assert open_run(root, version=name(6)).adapter == root / "adapters" / name(6)
    assert open_run(root, version="6").adapter == root / "adapters" / name(6)
    assert open_run(root, base=True).model == "base"
    with pytest.raises(EvalError, match=f"no version demo-v000009; there are {name(3)}, {name(5)}, {name(6)}"):
        open_run(root, version="demo-v000009")


def test_a_damaged_version_is_told_before_it_plays(tmp_path: Path) -> None:
    run = open_run(run_folder(tmp_path / "run"))
    assert run.adapter is not None
    (run.adapter / "adapter_model.safetensors").write_text("5")
    (tmp_path / "adapters").mkdir()
    with pytest.raises(EvalError, match=f"its content is not that of {name(4)}"):
        run.publish_to(tmp_path / "adapters")


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    root = run_folder(tmp_path / "run", versions=())
    with pytest.raises(EvalError, match="no checkpoint yet; --base plays the base model"):
        open_run(root)


def test_a_version_is_served_as_the_trainer_would(tmp_path: Path) -> None:
    run = open_run(run_folder(tmp_path / "run"))
    (tmp_path / "adapters").mkdir()
    run.publish_to(tmp_path / "adapters")
    manifest = json.loads((tmp_path / "adapters" / name(4) / "manifest.json").read_text())
    assert manifest["files"]["adapter_model.safetensors"]["sha256"] == run.adapter_sha256


# --- models in folders


def trained(root: Path, trains: str = "adapter", complete: bool = True) -> Path:
    """What visionrl train leaves."""
    warm_start = {"trains": trains, "steps": 1, "data": {"train": "/t.jsonl"}}
    found = job({"training.warmStart": warm_start, "rollout.envConfig.imageSize": 80})
    root.mkdir()
    (root / "sft.json").write_text(found.model_dump_json(by_alias=True))
    if complete:
        (root / "summary.json").write_text("{}")
    if trains == "adapter":
        write_adapter(root / "adapters" / "draft", 0)
        named_by_content(root / "adapters" / "draft", "demo", 0)
    else:
        (root / "model").mkdir()
        (root / "model" / "config.json").write_text('{"model_type": "qwen3_vl"}')
    return root


def test_what_was_trained_on_files_plays_with_the_settings_it_was_trained_with(tmp_path: Path) -> None:
    root = trained(tmp_path / "adapter")
    (adapter,) = (root / "adapters").iterdir()
    for folder in (root, adapter):
        found = open_model(str(folder))
        assert (found.adapter, found.model, found.base, found.folder) == (adapter, adapter.name, None, root)
        assert found.job.spec.rollout.env_config.image_size == 80
    whole = trained(tmp_path / "whole", "all")
    for folder in (whole, whole / "model"):
        found = open_model(str(folder))
        assert (found.adapter, found.model, found.title) == (None, "base", str(whole / "model"))
        assert found.job.spec.model.base == str(whole / "model")
        assert not exports_base(found.job.spec)
    with pytest.raises(EvalError, match="its training is not complete"):
        open_model(str(trained(tmp_path / "half", complete=False)))


def test_a_run_and_its_versions_are_folders_too(tmp_path: Path) -> None:
    root = run_folder(tmp_path / "run", versions=(3, 5))
    assert open_model(str(root)).model == name(5)
    for part in ("checkpoints", "adapters"):
        found = open_model(str(root / part / name(3)))
        assert (found.model, found.folder) == (name(3), root)


def test_an_adapter_alone_needs_a_base(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_adapter(folder, 7)
    (folder / "adapter_config.json").write_text('{"r": 8, "base_model_name_or_path": "base"}')
    with pytest.raises(EvalError, match=r"its base is not known here \(the adapter says 'base'\); give it with --conf"):
        open_model(str(folder))
    known = job({"model.base": "org/qwen3-vl", "training.warmStart": {"episodes": 1, "steps": 1}})
    found = open_model(str(folder), known)
    assert (found.job.spec.model.base, found.job.spec.model.lora.r) == ("org/qwen3-vl", 8)
    assert not exports_base(found.job.spec), "the server would wait for a trainer's base"
    (tmp_path / "adapters").mkdir()
    found.publish_to(tmp_path / "adapters")  # its name is that of its content
    (folder / "adapter_config.json").write_text('{"r": 8, "base_model_name_or_path": "org/other"}')
    assert open_model(str(folder)).job.spec.model.base == "org/other"
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(EvalError, match="is not an adapter's configuration"):
        open_model(str(folder))


def test_a_model_of_the_hub_or_in_a_folder_plays_without_an_adapter(tmp_path: Path) -> None:
    found = open_model("Qwen/Qwen3-VL-4B-Instruct")
    assert (found.job.spec.model.base, found.model, found.adapter) == ("Qwen/Qwen3-VL-4B-Instruct", "base", None)
    plan = make_plan(EvalOptions(model="Qwen/Qwen3-VL-4B-Instruct", seeds=(0,), config=TINY))
    assert (plan.player, plan.policy.config.model) == ("Qwen/Qwen3-VL-4B-Instruct", "base")
    assert plan.job.spec.rollout.env_config.image_size == 144
    assert not exports_base(plan.job.spec), "the server would wait for a trainer's base"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["Llama"]}')
    with pytest.raises(EvalError, match="says Llama"):
        open_model(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvalError, match="neither a run, a checkpoint, the output of visionrl train, an adapter"):
        open_model(str(tmp_path / "empty"))


# --- components


def test_a_component_that_takes_long_is_told_with_the_last_line_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionrl_cli.evaluation.components.NEWS_S", 0.01)
    folder, state = LocalFolder(tmp_path), SimpleNamespace(ready=False)
    log = folder.log("inference")
    log.parent.mkdir()
    log.write_text("loading\nwaiting for the base\n")
    told: list[str] = []

    def note(text: str) -> None:
        told.append(text)
        state.ready = len(told) > 2

    plan = make_plan(EvalOptions(policy="crafter-random", seeds=(0,), config=TINY))
    components = Components(plan, None, note)
    pods: Any = {"inference": SimpleNamespace(state=state)}
    components._pods = pods
    asyncio.run(asyncio.wait_for(components._ready(folder), 60))
    assert told[:2] == ["starting inference", f"inference is not ready yet ({log}): waiting for the base"]


# --- results


def test_a_long_evaluation_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(100_000)
    for done in range(1, 200):
        view.played(done, 3.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("21/100000 episodes, a mean return of 3.00 so far, about ")
    assert line.endswith(" left")
    assert [duration(seconds) for seconds in (40, 600, 9000)] == ["40 s", "10 min", "2.5 h"]


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    results = make_results("m", {"env": {"length": 100}}, (score(0), score(1, 1, aborted="max_ops")), 30.0)
    file = tmp_path / "out.json"
    Journal(file, {}, (0, 1), "eval/x").finish(results)
    assert read_results(file) == results
    assert not (tmp_path / "out.json.partial").exists()
    assert (results.score.mean, results.invalid_rate, results.aborted) == (2.0, 0.1, {"max_ops": 1})
    assert results.rates == {"collect_wood": 1.0, "collect_stone": 0.5, "place_table": 0.5}
    assert ("aborted, counted with what they reached", "1 max_ops") in rows(results)


def test_a_comparison_is_by_seed_whatever_the_order() -> None:
    before = make_results("a", {"policy": {"temperature": 1.0}}, (score(1, 1), score(0, 3)), None)
    after = make_results("b", {"policy": {"temperature": 0.5}}, (score(0, 3), score(1, 2)), None)
    check_same_seeds(Path("a.json"), before, (0, 1))
    found = compared(after, Path("a.json"), before).comparison
    assert found is not None
    assert found.gain.mean == 0.5
    assert comparison_lines(found)[-1] == "settings that differ: policy.temperature 1.0 → 0.5"


def test_other_seeds_are_never_compared() -> None:
    results = make_results("a", {}, (score(0), score(1)), None)
    with pytest.raises(EvalError, match=r"played on the seeds 0-1, this evaluation is on 0-2"):
        check_same_seeds(Path("a.json"), results, (0, 1, 2))


def written(file: Path, *scores: EpisodeScore, **settings: Any) -> str:
    Journal(file, {}, tuple(each.seed for each in scores), "eval/x").finish(
        make_results(file.stem, settings, scores, None)
    )
    return str(file)


def test_two_evaluations_are_paired_by_the_seeds_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = written(tmp_path / "a.json", score(3, 1), score(1, 1), score(2, 2), score(9, 3), turns=10)
    b = written(tmp_path / "b.json", score(1, 3), score(2, 3), score(3, 3, invalid=5), turns=20)
    assert main(["compare", a, b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"] == [1, 2, 3]
    gain = found["differences"]["return"]
    assert (gain["a"], gain["b"]) == (pytest.approx(4 / 3), 3.0)
    assert gain["gain"]["mean"] == pytest.approx(5 / 3)
    assert 1 <= gain["gain"]["low"] <= gain["gain"]["high"] <= 2
    assert found["rates"] == {
        "collect_wood": [1.0, 1.0], "collect_stone": [0.0, 1.0], "place_table": [pytest.approx(1 / 3), 1.0]
    }  # fmt: skip
    assert found["settings"] == {"turns": [10, 20]}
    assert main(["compare", a, b]) == 0
    told = capsys.readouterr().out
    assert "return: B is better" in told
    assert "+1.67 [" in told
    assert "settings that differ: turns: 10 in A, 20 in B" in told


def test_what_cannot_be_compared_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = written(tmp_path / "a.json", score(0), score(1)), written(tmp_path / "b.json", score(1), score(2))
    assert main(["compare", a, b]) == 1
    assert "was played on the seeds 0-1" in capsys.readouterr().err
    assert main(["compare", a, str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'none.json'}: No such file or directory\n"


def test_a_file_that_is_no_result_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError):
        read_results(file)
    file.write_text('{"policy": "m"}')
    with pytest.raises(JobFileError, match="is not what visionrl eval --out writes"):
        read_results(file)


def test_the_journal_goes_on_after_a_crash_and_knows_its_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    settings = {"policy": {"temperature": 1.0}}
    journal = Journal(file, settings, (0, 1, 2), "eval/first")
    journal.add(score(0))
    journal.add(score(2))
    partial = tmp_path / "out.json.partial"
    partial.write_text(partial.read_text()[:-5])  # the last line was on its way
    again = Journal(file, settings, (0, 1, 2), "eval/second")
    assert (set(again.done), again.run) == ({0}, "eval/first")
    again.add(score(1))
    assert set(Journal(file, settings, (0, 1, 2), "eval/third").done) == {0, 1}
    with pytest.raises(EvalError, match=r"from an evaluation with another policy.temperature \(1.0, here 0.5\)"):
        Journal(file, {"policy": {"temperature": 0.5}}, (0, 1, 2), "x")
    with pytest.raises(EvalError, match=r"another seeds \(0-2, here 0-3\)"):
        Journal(file, settings, (0, 1, 2, 3), "x")
    partial.write_text("[]\n")
    with pytest.raises(JobFileError, match="is not the journal of an evaluation"):
        Journal(file, settings, (0, 1, 2), "x")
