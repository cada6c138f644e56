"""The base model as every component finds it: a model of the hub, a path, or the tiny recipe."""

from __future__ import annotations

from pathlib import Path

from visionrl.checks.bases import architecture_fault, is_path
from visionrl.component import ConfigurationError
from visionrl.job import Job, PolicyModel, TinyModel


class ModelError(ConfigurationError):
    """The job's base model cannot be had, and a retry will not change that."""


def locate_base(job: Job, cache: Path) -> Path:
    """The directory of the model that ``spec.model`` names, built or downloaded into ``cache`` where it must be.

    Raises :class:`ModelError`; the hub's network errors (``OSError``) may be retried.
    """
    model = job.spec.model
    if model.base == "tiny":
        from visionrl.tiny.model import build_tiny

        try:
            return build_tiny(model.tiny or TinyModel(), job.spec.rollout.env_config, cache)
        except ValueError as error:
            raise ModelError(str(error)) from None
    directory = _at_path(Path(model.base)) if is_path(model.base) else _from_hub(model, cache)
    if fault := architecture_fault(directory):
        raise ModelError(f"spec.model.base: {fault}")
    return directory


def _at_path(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_dir():
        raise ModelError(f"spec.model.base: no directory {path} on this machine")
    if not (path / "config.json").is_file():
        raise ModelError(f"spec.model.base: {path} has no config.json, so it is not a model directory")
    return path


def _from_hub(model: PolicyModel, cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(model.base, revision=model.revision, cache_dir=cache / "hub"))
    except GatedRepoError:
        raise ModelError(f"spec.model.base: {model.base} is gated; accept its licence and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise ModelError(f"spec.model.base: the hub has no model {model.base} that this token may read") from None
    except RevisionNotFoundError:
        raise ModelError(f"spec.model.revision: {model.base} has no revision {model.revision}") from None
