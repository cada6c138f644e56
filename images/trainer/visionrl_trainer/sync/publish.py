"""Published adapter versions: folders that others fetch by name, immutable, each with a manifest."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from visionrl import folders
from visionrl.adapters import ADAPTER_FILES, MANIFEST, Version, write_manifest

if TYPE_CHECKING:  # it brings torch: serving files needs none of it
    from visionrl_trainer.model.policy import Policy


class AdapterStore:
    """Published versions under ``root``: complete and immutable."""

    def __init__(self, root: Path, job: str) -> None:
        self.root, self.job = root, job
        root.mkdir(parents=True, exist_ok=True)
        folders.sweep(root)

    def versions(self) -> list[Version]:
        """Published versions of this job, ascending."""
        return sorted(version for path in self.root.iterdir() if (version := self.version(path.name)) is not None)

    def publish(self, policy: Policy, number: int) -> Version:
        """Write the policy's adapter as a version, unless the same version exists."""
        draft = folders.new_draft(self.root, str(number))
        policy.save_adapter(draft)
        for path in draft.iterdir():
            if path.name not in ADAPTER_FILES:
                path.unlink()  # peft's model card
        manifest = write_manifest(draft)
        version = Version.of(self.job, number, manifest)
        folders.place(draft, self.folder(version), manifest)
        return version

    def version(self, name: str) -> Version | None:
        """The version of this job with a name, whether it exists or not; ``None`` for any other name."""
        try:
            version = Version.parse(name)
        except ValueError:
            return None
        return version if version.job == self.job else None

    def folder(self, version: Version) -> Path:
        """The folder of a version, whether it exists or not."""
        return self.root / version.name

    def path(self, name: str, file: str) -> Path | None:
        """A published file, or ``None`` if there is no such version or file."""
        version = self.version(name)
        if version is None or (file not in ADAPTER_FILES and file != MANIFEST):
            return None
        path = self.folder(version) / file
        return path if path.is_file() else None

    def prune(self, keep: Collection[str]) -> None:
        """Delete all versions but the newest and those of these names."""
        for version in self.versions()[:-1]:
            if version.name not in keep:
                folders.retire(self.folder(version))
