"""What a run ran on: the code's version and commit, the packages and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("visionrl", "torch", "transformers", "peft")
COMMIT_VARIABLE = "VISIONRL_COMMIT"
"""Set in container images, which have no repository."""


def facts() -> dict[str, str]:
    """Names and values, for people."""
    return {
        "commit": commit(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "Python": platform.python_version(),
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB of memory",
        "GPU": _gpus(),
    }


def commit() -> str:
    """The commit of the code: from the container image, else from the repository that it lies in, else unknown."""
    if named := os.environ.get(COMMIT_VARIABLE):
        return named
    here = Path(__file__).parent
    try:
        found = _git(here, "rev-parse", "--short=12", "HEAD")
        return f"{found}, with changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else found
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; CUDA {torch.version.cuda}"
