"""Files that others fetch: adapter versions and the warm-started base, immutable, each with a manifest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from visionrl.durable import fsync, sha256

if TYPE_CHECKING:  # it brings torch: serving files needs none of it
    from visionrl_trainer.model.policy import Policy

MANIFEST = "manifest.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def version_name(job: str, number: int) -> str:
    """``crafter-v000012``."""
    return f"{job}-v{number:06d}"


def version_number(name: str) -> int:
    """12 of ``crafter-v000012``. Raises ``ValueError`` for any other name."""
    match = re.fullmatch(r".+-v(\d{6})", name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a version")
    return int(match[1])


class AdapterStore:
    """Published versions under ``root``; what is there is whole, and is never changed."""

    def __init__(self, root: Path, job: str) -> None:
        self.root, self.job = root, job
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*"):
            shutil.rmtree(leftover)  # what a killed process left half-written

    def numbers(self) -> list[int]:
        """Published versions, ascending."""
        return sorted(version_number(path.name) for path in self.root.iterdir() if not path.name.startswith("."))

    def publish(self, policy: Policy, number: int) -> str:
        """Write the policy's adapter as a version, unless it was published before a restart; returns its name."""
        name = version_name(self.job, number)
        if number in self.numbers():
            return name
        draft = self.root / f".{name}"
        policy.save_adapter(draft)
        for path in draft.iterdir():
            if path.name not in ADAPTER_FILES:
                path.unlink()  # peft's model card
        write_manifest(draft, name)
        draft.rename(self.root / name)
        fsync(self.root)
        return name

    def path(self, name: str, file: str) -> Path | None:
        """A published file, or ``None`` where there is no such version or file."""
        path = self.root / name / file
        known = re.fullmatch(rf"{re.escape(self.job)}-v\d{{6}}", name) and file in (*ADAPTER_FILES, MANIFEST)
        return path if known and path.is_file() else None

    def prune(self, keep: int) -> None:
        """Delete all but the newest ``keep`` versions."""
        for number in self.numbers()[:-keep]:
            name = version_name(self.job, number)
            retired = self.root / f".{name}"
            (self.root / name).rename(retired)  # out of sight in one step, then deleted
            shutil.rmtree(retired)


def write_manifest(directory: Path, name: str) -> None:
    """``manifest.json`` with size and SHA-256 of every file of the directory, all of it on disk afterwards."""
    files = {}
    for path in sorted(directory.iterdir()):
        if path.name != MANIFEST:
            files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
            fsync(path)
    (directory / MANIFEST).write_text(json.dumps({"name": name, "files": files}))
    fsync(directory / MANIFEST)
    fsync(directory)
