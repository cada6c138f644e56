"""Published adapter versions: folders that others fetch by name, immutable, each with a manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from visionrl.adapters import ADAPTER_FILES, MANIFEST, Version, write_manifest
from visionrl.durable import fsync

if TYPE_CHECKING:  # it brings torch: serving files needs none of it
    from visionrl_trainer.model.policy import Policy


class AdapterStore:
    """Published versions under ``root``; what is there is whole, and is never changed."""

    def __init__(self, root: Path, job: str) -> None:
        self.root, self.job = root, job
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob(".*"):
            shutil.rmtree(leftover)  # what a killed process left half-written

    def versions(self) -> list[Version]:
        """Published versions, ascending."""
        return sorted(Version.parse(path.name) for path in self.root.iterdir() if not path.name.startswith("."))

    def publish(self, policy: Policy, number: int) -> Version:
        """Write the policy's adapter as a version. A version that was published before a restart is found again by
        its content."""
        draft = self.root / f".{number}"
        policy.save_adapter(draft)
        for path in draft.iterdir():
            if path.name not in ADAPTER_FILES:
                path.unlink()  # peft's model card
        version = Version.of(self.job, number, write_manifest(draft))
        if version in self.versions():
            shutil.rmtree(draft)
            return version
        draft.rename(self.folder(version))
        fsync(self.root)
        return version

    def folder(self, version: Version) -> Path:
        """Where a version lies or would lie."""
        return self.root / version.name

    def path(self, name: str, file: str) -> Path | None:
        """A published file, or ``None`` where there is no such version or file."""
        try:
            version = Version.parse(name)
        except ValueError:
            return None
        path = self.folder(version) / file
        known = version.job == self.job and (file in ADAPTER_FILES or file == MANIFEST)
        return path if known and path.is_file() else None

    def prune(self, keep: int) -> None:
        """Delete all but the newest ``keep`` versions."""
        for version in self.versions()[:-keep]:
            retired = self.root / f".{version.name}"
            self.folder(version).rename(retired)  # out of sight in one step, then deleted
            shutil.rmtree(retired)
