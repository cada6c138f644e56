"""Which policy a run folder holds: the adapter of its newest whole checkpoint. Needs no torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from visionrl.adapters import Manifest, ManifestError, Version, verified_manifest

ADAPTERS, CHECKPOINTS = "adapters", "checkpoints"

logger = logging.getLogger(__name__)


class NothingTrained(Exception):
    """A run folder without a whole checkpoint whose adapter is there; the message is for the user."""


@dataclass(frozen=True)
class Trained:
    """A policy version that lies in a run folder, byte for byte as its manifest says."""

    version: Version
    folder: Path
    manifest: Manifest


def newest(run_folder: Path, job: str) -> Trained:
    """The policy that the run would continue from. Damaged ones are passed over, with a warning.

    Raises :class:`NothingTrained`.
    """
    for version in sorted(_checkpointed(run_folder / CHECKPOINTS, job), reverse=True):
        folder = run_folder / ADAPTERS / version.name
        try:
            manifest = verified_manifest(folder)
        except (ManifestError, OSError) as error:
            logger.warning("%s is passed over: %s", version.name, error)
            continue
        if version.matches(manifest):
            return Trained(version, folder, manifest)
        logger.warning("%s is passed over: its content's digest is %s", version.name, manifest.digest)
    raise NothingTrained(f"{run_folder} holds no whole checkpoint of job {job}: nothing was trained yet")


def _checkpointed(checkpoints: Path, job: str) -> list[Version]:
    found = []
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        try:
            version = Version.parse(path.name)
        except ValueError:
            continue
        if version.job == job:
            found.append(version)
    return found
