"""Damage to a run folder between two attempts: ``python -m tests.faults.trainer_damage FOLDER``.

A trainer is killed in its third iteration. For each damage, a copy of what it left is damaged and resumed. Prints a
JSON object per damage: how the attempt ended, what it said, and whether it learned what it would have.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tests.faults.trainer_kills import Outcome, Trainer, open_ledger

KILLED_AT = 130
"""A write in the third iteration."""


def with_line(file: str, line: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        (run / file).write_bytes((run / file).read_bytes() + line + b"\n")

    return damage


def with_content(pattern: str, content: bytes) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        for path in run.glob(pattern):
            path.write_bytes(content)

    return damage


def with_one_bad_byte(run: Path) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"reward"', b'"rew\xffrd"', 1))


def with_strays(run: Path) -> None:
    for folder in (".", "adapters", "checkpoints", "films"):
        for stray in (".DS_Store", "Thumbs.db", ".nfs0001"):
            (run / folder / stray).write_bytes(b"x")
        (run / folder / "lost+found").mkdir()


def with_a_file_for_a_folder(run: Path) -> None:
    shutil.rmtree(run / "films")
    (run / "films").touch()


def with_a_folder_for_a_file(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "one bad byte in the metrics": with_one_bad_byte,
    "a line of the metrics that lacks its values": with_line("metrics.jsonl", b'{"iteration": 1}'),
    "a cut off line of the metrics": with_line("metrics.jsonl", b'{"iteration": 3, "rew'),
    "empty metrics": with_content("metrics.jsonl", b""),
    "a line of the evaluations that is none": with_line("evaluations.jsonl", b"\xff\xfe"),
    "an empty replay": with_content("films/*.json", b""),
    "a damaged config": with_content("config.json", b'{"apiVersion"'),
    "nonsense in the lock": with_content("trainer.lock", b"\xff" * 64),
    "stray files everywhere": with_strays,
    "a replay folder that is a file": with_a_file_for_a_folder,
    "damaged facts": with_content("facts.json", b"\xff"),
    "facts that are a folder": lambda run: with_a_folder_for_a_file(run / "facts.json"),
}


def main(folder: Path) -> int:
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    trainer = Trainer("checkpoint-every-1", folder)
    run, ledger = open_ledger(folder, "undisturbed")
    assert trainer.attempt(run, 0, ledger) == 0, ledger.values("failed")
    expected = Outcome.of(run)
    killed, ledger = open_ledger(folder, "killed")
    trainer.attempt(killed, KILLED_AT, ledger)
    assert ledger.values("checkpoint")[-1] == 2, ledger.entries()
    for number, (name, damage) in enumerate(DAMAGES.items()):
        run, ledger = open_ledger(folder, f"damaged-{number}")
        shutil.copytree(killed, run)
        damage(run)
        code = trainer.attempt(run, 0, ledger)
        found = Outcome.of(run) if code == 0 else None
        same = found is not None and (found.weights, found.steps) == (expected.weights, expected.steps)
        result = {"damage": name, "code": code, "error": ledger.values("failed"), "same": same}
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
