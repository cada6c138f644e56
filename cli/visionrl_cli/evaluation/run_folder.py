"""The policy of a local run: which adapter, on which base. The run folder is never written to."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from visionrl.adapters import ADAPTER_FILES, MANIFEST, Version, write_manifest
from visionrl.base_model import locate_base
from visionrl.checks import exports_base
from visionrl.documents import parse_json, read_text
from visionrl.durable import sha256
from visionrl.job import Job
from visionrl.jobfile import JobFileError, read_resolved_job
from visionrl_cli.evaluation.text import EvalError
from visionrl_trainer.rollout.batch import VISION_TOKENS

SERVED_BASE = "base"
"""The base model's name at the inference server (docs/architecture.md)."""

MAX_TOKENIZER_BYTES = 64 << 20
"""Of a tokenizer.json: Qwen3-VL's has 7 MB."""


@dataclass(frozen=True)
class LocalRun:
    """A finished or stopped run and its version that is evaluated."""

    root: Path
    job: Job
    model: str
    """Name at the inference server: the adapter's, or ``base``."""
    adapter: Path | None
    """Folder with the adapter's files; None for the base."""
    adapter_sha256: str | None

    @property
    def base(self) -> Path | None:
        """The run's own base model, where its warm start made one."""
        return self.root / "base" if exports_base(self.job.spec) else None

    def banned_ids(self, cache: Path) -> list[int]:
        """Tokens that the policy must never sample: placeholders of images. Needs the base on disk."""
        directory = self.base or locate_base(self.job, cache)
        tokens = parse_json(read_text(directory / "tokenizer.json", MAX_TOKENIZER_BYTES))["added_tokens"]
        return sorted(token["id"] for token in tokens if token["content"] in VISION_TOKENS)

    def publish_to(self, folder: Path) -> None:
        """Copy the adapter, with its manifest, to where an ``AdapterStore`` of visionrl_trainer serves it. Raises
        :class:`EvalError` where it is damaged."""
        if self.adapter is None:
            return
        target = folder / self.model
        target.mkdir()
        for name in ADAPTER_FILES:
            shutil.copy2(self.adapter / name, target)
        if not Version.parse(self.model).matches(write_manifest(target)):
            raise EvalError(f"{self.adapter} is damaged: its content is not that of {self.model}")


def open_run(root: Path, version: str | None = None, base: bool = False) -> LocalRun:
    """The run's newest checkpoint, a version by name, or its base. Raises :class:`EvalError`."""
    job = read_config(root)
    if exports_base(job.spec) and not (root / "base" / MANIFEST).is_file():
        raise EvalError(f"{root}: its warm start has not been completed, so there is no policy to play yet")
    if base:
        return LocalRun(root, job, SERVED_BASE, None, None)
    known = versions(root, job.name)
    if not known:
        raise EvalError(f"{root}: no checkpoint yet; --base plays the base model")
    checkpointed = known.keys() & {path.name for path in _entries(root / "checkpoints")}
    name = version or max(checkpointed, default=max(known))
    if name not in known:
        raise EvalError(f"{root}: no version {name}; there are {', '.join(sorted(known))}")
    return LocalRun(root, job, name, known[name], sha256(known[name] / "adapter_model.safetensors"))


def read_config(root: Path) -> Job:
    """The job of a run folder. Raises :class:`EvalError`."""
    file = root / "config.json"
    try:
        return read_resolved_job(file)[0]
    except FileNotFoundError:
        raise EvalError(
            f"{root} is not a run folder: it has no config.json (runs/<job> of visionrl run has one)"
        ) from None
    except OSError as error:
        raise EvalError(f"{file}: {error.strerror}") from None
    except JobFileError as error:
        raise EvalError(str(error)) from None


def versions(root: Path, job_name: str) -> dict[str, Path]:
    """Folders of the published adapters that are left, by the names of their versions."""
    return {path.name: path for path in _entries(root / "adapters") if _is_version(path, job_name)}


def _is_version(folder: Path, job_name: str) -> bool:
    try:
        version = Version.parse(folder.name)
    except ValueError:
        return False
    return version.job == job_name and all((folder / file).is_file() for file in ADAPTER_FILES)


def _entries(folder: Path) -> list[Path]:
    """Complete entries; the names of drafts begin with a dot."""
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
