"""The policy that is evaluated on this machine: which adapter, on which base. No folder is written to."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visionrl.adapters import ADAPTER_FILES, MANIFEST, Manifest, Version, write_manifest
from visionrl.base_model import locate_base
from visionrl.checks import exports_base
from visionrl.checks.bases import architecture_fault
from visionrl.documents import DocumentError, parse_json, read_text
from visionrl.durable import sha256
from visionrl.job import API_VERSION, KIND, Gpu, Job, Lora
from visionrl.jobfile import JobFileError, read_resolved_job
from visionrl_cli.evaluation.text import EvalError
from visionrl_cli.supervised.output import Output
from visionrl_local.gpus import visible_gpus
from visionrl_trainer.rollout.batch import VISION_TOKENS

SERVED_BASE = "base"
"""The base model's name at the inference server (docs/architecture.md)."""

TRAINED_JOB = "sft.json"
"""In the output of ``visionrl train``."""
RUN_CONFIG = "config.json"
"""Of a run folder: its job. Models have a file of this name, too."""

DEFAULT_JOB: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "evaluation"},
    "spec": {"model": {"base": "tiny"}, "training": {"iterations": 1}},
}
"""Where no file gives settings: a job file's defaults. Its model is replaced."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

MAX_TOKENIZER_BYTES = 64 << 20
"""Of a tokenizer.json: Qwen3-VL's has 7 MB."""


@dataclass(frozen=True)
class LocalPolicy:
    """A policy that is served on this machine while it is evaluated: an adapter on its base, or a base alone."""

    job: Job
    """Its base model, and the settings that it was trained with where they are known."""
    model: str
    """Name at the inference server: the adapter's, or ``base``."""
    title: str
    """Name in the results."""
    adapter: Path | None = None
    """Folder with the adapter's files; None for the base."""
    adapter_sha256: str | None = None
    folder: Path | None = None
    """Folder of its training, which is locked meanwhile and only read."""

    @property
    def base(self) -> Path | None:
        """The run's own base model, where its warm start made one."""
        return self.folder / "base" if self.folder and exports_base(self.job.spec) else None

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


# --- what --run names


def open_run(root: Path, version: str | None = None, base: bool = False) -> LocalPolicy:
    """The run's newest checkpoint, a version by name, or its base. Raises :class:`EvalError`."""
    job = read_config(root)
    if exports_base(job.spec) and not (root / "base" / MANIFEST).is_file():
        raise EvalError(f"{root}: its warm start has not been completed, so there is no policy to play yet")
    if base:
        return LocalPolicy(job, SERVED_BASE, SERVED_BASE, folder=root)
    known = versions(root, job.name)
    if not known:
        raise EvalError(f"{root}: no checkpoint yet; --base plays the base model")
    checkpointed = known.keys() & {path.name for path in _entries(root / "checkpoints")}
    wanted = version or max(checkpointed, default=max(known))
    name = next((each for each in known if wanted in (each, str(Version.parse(each).number))), None)
    if name is None:
        raise EvalError(f"{root}: no version {wanted}; there are {', '.join(sorted(known))}")
    return _with_adapter(job, name, known[name], root)


# --- what --model names, without a server's address


def default_job() -> Job:
    """The settings where no file gives any."""
    return Job.model_validate(DEFAULT_JOB)


def open_model(text: str, settings: Job | None = None) -> LocalPolicy:
    """A folder by what is in it: a run, one of its checkpoints or adapters, the output of ``visionrl train`` or its
    model, an adapter, a model; else a model of the hub. ``settings`` has what the folder does not say: how the server
    runs, the base of an adapter. Raises :class:`EvalError`.
    """
    path = Path(text).expanduser().resolve()
    if not path.exists():
        if not _HUB_ID.fullmatch(text):
            raise EvalError(
                f"--model {text} needs --inference-url, the base URL of its server: it is neither a folder on this "
                "machine nor a model of the hub (OWNER/NAME)"
            )
        return _base(text, settings)
    training = _training_of(path)
    if training is not None:
        return _trained(training)
    if _is_job(path / RUN_CONFIG):
        return open_run(path)
    if path.parent.name in ("checkpoints", "adapters") and _is_job(path.parent.parent / RUN_CONFIG):
        return open_run(path.parent.parent, path.name)
    if all((path / name).is_file() for name in ADAPTER_FILES):
        return _bare_adapter(path, settings)
    if (path / RUN_CONFIG).is_file():
        if fault := architecture_fault(path):
            raise EvalError(f"--model {text}: {fault}")
        return _base(str(path), settings)
    raise EvalError(
        f"--model {text}: neither a run, a checkpoint, the output of visionrl train, an adapter "
        f"({', '.join(sorted(ADAPTER_FILES))}) nor a model ({RUN_CONFIG})"
    )


def _base(base: str, settings: Job | None) -> LocalPolicy:
    """A model of the hub or in a folder, without an adapter."""
    return LocalPolicy(_served(settings or default_job(), base=base), SERVED_BASE, base)


def _training_of(path: Path) -> Output | None:
    """The output of ``visionrl train`` that a folder is, or whose model or adapter it is."""
    outputs = {path: path, path.parent: path.parent / "model", path.parent.parent: path.parent.parent / "adapters"}
    for root, part in outputs.items():
        if (root / TRAINED_JOB).is_file() and (path in (root, part) or path.parent == part):
            return Output(root)
    return None


def _trained(output: Output) -> LocalPolicy:
    """What ``visionrl train`` made."""
    try:
        job = read_resolved_job(output.job_file)[0]
    except JobFileError as error:
        raise EvalError(str(error)) from None
    if not output.summary_file.is_file():
        raise EvalError(f"{output.root}: its training is not complete; the same visionrl train command resumes it")
    if (output.model / RUN_CONFIG).is_file():
        base = str(output.model)
        return LocalPolicy(_served(job, base=base), SERVED_BASE, base, folder=output.root)
    name, folder = max(versions(output.root, job.name).items())
    return _with_adapter(_served(job), name, folder, output.root)


def _bare_adapter(folder: Path, settings: Job | None) -> LocalPolicy:
    """An adapter as peft writes it, on the base of the settings, or the one that it names."""
    file = folder / "adapter_config.json"
    try:
        config = parse_json(read_text(file))
        lora, named = Lora.model_validate({"r": config["r"]}), config.get("base_model_name_or_path")
    except (ValidationError, DocumentError, OSError, KeyError, TypeError, AttributeError) as error:
        raise EvalError(f"{file} is not an adapter's configuration: {error}") from None
    if settings is None and not (isinstance(named, str) and (Path(named).is_dir() or _HUB_ID.fullmatch(named))):
        raise EvalError(
            f"--model {folder}: its base is not known here (the adapter says {named!r}); give it with --config JOBFILE"
        )
    job = _served(settings, lora=lora) if settings else _served(default_job(), base=named, lora=lora)
    files = Manifest.of_folder(folder).files
    manifest = Manifest({name: files[name] for name in ADAPTER_FILES})
    return _with_adapter(job, Version.of(job.name, 0, manifest).name, folder, None)


def _with_adapter(job: Job, name: str, folder: Path, training: Path | None) -> LocalPolicy:
    return LocalPolicy(job, name, name, folder, sha256(folder / "adapter_model.safetensors"), training)


def _served(job: Job, base: str | None = None, lora: Lora | None = None) -> Job:
    """The job with another base or adapter shape, on a GPU where this machine has one. Without its warm start: no
    trainer is there, for whose base the server would wait."""
    model, inference = job.spec.model, job.spec.inference
    training = job.spec.training.model_copy(update={"warm_start": None})
    if base is not None:
        vision = {"supports_vision": True, "tiny": None, "revision": None}
        model = model.model_copy(update={"base": base, **vision})
    if lora is not None:
        model = model.model_copy(update={"lora": lora})
    if inference.gpu is None and model.base != "tiny" and visible_gpus():
        inference = inference.model_copy(update={"gpu": Gpu(count=1, products=[])})
    changes = {"model": model, "inference": inference, "training": training}
    return job.model_copy(update={"spec": job.spec.model_copy(update=changes)})


def _is_job(file: Path) -> bool:
    """Whether a ``config.json`` is a run's, and not a model's."""
    try:
        return file.is_file() and parse_json(read_text(file)).get("kind") == KIND
    except (DocumentError, OSError, AttributeError):
        return False


# --- files


def read_config(root: Path) -> Job:
    """The job of a run folder. Raises :class:`EvalError`."""
    file = root / RUN_CONFIG
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
