"""Files that no command can use, given to every command: an answer that names the file, and never a traceback."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.test_documents import BOMB
from visionrl_cli import main
from visionrl_cli.program import COMMANDS

GOOD = (Path(__file__).parents[3] / "configs" / "crafter-tiny.yaml").read_text()

FILES: dict[str, bytes] = {
    "empty": b"",
    "binary": b"\xff\xfe\x00",
    "null bytes": b"\x00" * 100,
    "a word": b"hello",
    "a list": b"- a\n- b\n",
    "YAML bomb": GOOD.encode() + BOMB.encode(),
    "deep": b"[" * 50_000,
    "large": b"# x\n" * 100_000,
    "two documents": GOOD.encode() + b"---\n" + GOOD.encode(),
    "control characters": GOOD.replace("Play Crafter.", "\x1b[31m").encode(),
    "date": GOOD.replace("Play Crafter.", "2001-99-99").encode(),
    "NaN": GOOD.replace("2.0e-3", ".nan").encode(),
    "infinity": GOOD.replace("2.0e-3", ".inf").encode(),
    "beyond 64 bits": GOOD.replace("iterations: 10", f"iterations: {10**30}").encode(),
    "thousands of digits": GOOD.replace("iterations: 10", f"iterations: {'9' * 5000}").encode(),
    "a key that is a list": GOOD.encode() + b"? [a, b]\n: c\n",
    "a tag": GOOD.replace("iterations: 10", "iterations: !!python/object:os.system x").encode(),
    "several objects": b"apiVersion: v1\nkind: List\nitems: [{a: 1}, {b: 2}]\n",
    "a label": GOOD.replace("name: crafter-tiny", 'name: crafter-tiny\n  labels: {"a b": "x"}').encode(),
    "a claim": GOOD.encode() + b"  storage: {runClaim: ../../etc}\n",
}
VERBS: dict[str, Callable[[str], list[str]]] = {
    "validate": lambda file: ["validate", file],
    "run": lambda file: ["run", file],
    "render": lambda file: ["render", file],
    "convert": lambda file: ["convert", file],
    "eval": lambda file: ["eval", "--policy", "crafter-random", "--config", file],
    "train": lambda file: ["train", "--config", file, "--data", "train.jsonl"],
    "train rl": lambda file: ["train", "--type", "rl", "--config", file, "--no-poll"],
    "task-app deploy": lambda file: ["task-app", "deploy", file],
    "filter": lambda file: ["filter", "--config", file],
}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_file_that_cannot_be_used_is_named(
    verb: str, name: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(f"job.{suffix}")
    file.write_bytes(FILES[name])
    assert main(VERBS[verb](str(file))) == 1
    told = capsys.readouterr()
    assert str(file) in told.err
    assert "Traceback" not in told.err
    assert len(told.err) < 20_000
    assert sorted(path.name for path in Path().iterdir()) == [file.name]  # nothing was begun


@pytest.mark.parametrize("verb", VERBS)
def test_so_are_a_folder_and_a_file_that_is_not_there(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    for file, told in (("folder", "Is a directory"), ("none.yaml", "No such file or directory")):
        assert main(VERBS[verb](file)) == 1
        assert f"{file}: {told}" in capsys.readouterr().err


RESULTS: dict[str, bytes] = {
    **{name: FILES[name] for name in ("empty", "binary", "a word", "deep", "large")},
    "another document": b"{}",
    "NaN": b'{"seeds": [NaN]}',
    "more seeds than returns": json.dumps(
        {
            "policy": "p",
            "settings": {},
            **{
                name: {"mean": 0.0, "low": 0.0, "high": 0.0, "episodes": 1}
                for name in ("score", "length", "env_return")
            },
            "crafter_score": 0.0,
            "invalid_rate": 0.0,
            "aborted": {},
            "rates": {},
            "seeds": [0, 1],
            "returns": [0.0],
            "episodes": [],
        }
    ).encode(),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_that_are_damaged_are_told_before_anything_plays(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.json").write_bytes(RESULTS[name])
    assert main(["eval", "--policy", "crafter-random", "--seeds", "0-1", "--against", "other.json"]) == 1
    assert "other.json: is not what visionrl eval --out writes: " in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "folder"])
def test_a_folder_gets_no_results(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    assert main(["eval", "--policy", "crafter-random", "--seeds", "0-1", "--out", out]) == 1
    assert f"--out {out} is a folder; name a file in it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["empty", "binary", "a word", "deep"])
def test_a_journal_that_is_damaged_is_told(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.json.partial").write_bytes(FILES[name])
    assert main(["eval", "--policy", "crafter-random", "--seeds", "0-1", "--out", "out.json"]) == 1
    assert "out.json.partial: is not the journal of an evaluation" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[" * 5000, '{"a": NaN}', "{", "[]", "1"])
def test_settings_on_the_command_line_are_json(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--policy", "crafter-random", "--policy-config", text])
    assert ended.value.code == 2
    assert "argument --policy-config: " in capsys.readouterr().err


@pytest.mark.parametrize("port", ["999999", "-1", "0", "x"])
def test_a_port_is_a_port(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--port", port, "job.yaml"])
    assert ended.value.code == 2
    assert "argument --port: " in capsys.readouterr().err


def test_a_database_is_no_folder_for_traces(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.db").write_bytes(b"")
    assert main(["eval", "--policy", "crafter-random", "--seeds", "0-1", "--trace-db", "x.db"]) == 1
    assert "--trace-db x.db is a file; name the folder" in capsys.readouterr().err


SERVERS = """
  uid: 1-2
  resourceVersion: '7'
  generation: 2
  creationTimestamp: 2026-01-01T00:00:00Z
  managedFields: [{manager: kubectl}]"""
LIVE = f"{GOOD}status:\n  phase: Running\n".replace("  name: crafter-tiny", f"  name: crafter-tiny{SERVERS}")
"""As kubectl get -o yaml prints an object."""


def given_on_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize("verb", ["validate", "render"])
def test_what_kubectl_prints_is_taken_also_from_standard_input(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("live.yaml").write_text(LIVE)
    assert main(VERBS[verb]("live.yaml")) == 0
    given_on_stdin(monkeypatch, LIVE.encode())
    assert main(VERBS[verb]("-")) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("filter", "convert")])
def test_standard_input_that_cannot_be_used_is_told(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_on_stdin(monkeypatch, FILES["two documents"])
    assert main(VERBS[verb]("-")) == 1
    assert "-: must have one document, found 2; give each a file of its own" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["NaN", "infinity", "beyond 64 bits"])
def test_a_number_that_is_none_is_told_by_its_field(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("job.yaml").write_bytes(FILES[name])
    for verb in ("validate", "run", "train", "train rl", "render", "eval"):
        assert main(VERBS[verb]("job.yaml")) == 1
        told = capsys.readouterr().err
        assert re.search(r"job.yaml:\d+: spec\.[\w.]+: (must be|is beyond 64 bits)", told), told
        assert "--fresh" not in told


INTERRUPTED = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what starts in a shell's background
sys.meta_path.insert(0, Interrupts())
from visionrl_cli import main
sys.exit(main(sys.argv[2:]))
"""
"""Ctrl-C in the middle of the start: when a module is imported."""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("visionrl_cli.program", ["--help"]),
        ("visionrl_cli.commands.validate", VERBS["validate"]("job.yaml")),
        ("pydantic", VERBS["render"]("job.yaml")),
        ("visionrl_local.run", VERBS["run"]("job.yaml")),
        ("numpy", VERBS["train"]("job.yaml")),
        ("visionrl_cli.places.watch", VERBS["train rl"]("job.yaml")),
        ("visionrl_cli.places.actions", ["jobs", "list"]),
        ("visionrl_core.crd", ["doctor"]),
        ("visionrl_cli.evaluation.session", VERBS["eval"]("job.yaml")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_ctrl_c_while_it_starts_is_one_line(module: str, words: list[str]) -> None:
    Path("job.yaml").write_text(GOOD)
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED, module, *words], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip()) == (130, "visionrl: stopped")


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "eval"])  # whose --version is the policy's
def test_every_command_knows_the_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("visionrl ")


# --- one style, whoever complains


@pytest.mark.parametrize(
    "words",
    [
        "eval --run none",
        "eval --model nix",
        "eval --config eval.toml",
        "eval --policy crafter-random --env nix",
        'eval --policy crafter-random --policy-config {"a":1,"b":2}',
        "eval --policy crafter-random --seeds 0-1 --against broken",
        "eval --policy crafter-random --task-app-key-file none --task-app http://127.0.0.1:1",
        "compare none broken",
        "compare broken broken",
        "filter none --output-dir data",
        "filter --config filter.toml",
        "fetch none",
        "replay none",
        "explain none",
        "jobs get none",
        "jobs logs none",
        "convert broken",
        "init --name A_B",
        "task-app check http://127.0.0.1:1 --key-file none",
        "task-app info http://127.0.0.1:1",
        "train --type sft --model tiny --data none",
        "train --type rl --model tiny --set training.iterations=x",
        "run none",
    ],
)
def test_an_error_names_the_program_or_the_file(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ENVIRONMENT_API_KEY", raising=False)
    Path("broken").write_text("{")
    Path("eval.toml").write_text('[eval]\nmodell = "x"\nseedz = 3\n')
    Path("filter.toml").write_text("[filter]\nnope = 1\n")
    assert main(words.split(" ")) == 1
    told = capsys.readouterr().err.splitlines()
    assert told
    for line in told:
        assert re.match(r"visionrl: |(none|broken|eval\.toml|filter\.toml)(:[0-9]+)?: ", line), line
