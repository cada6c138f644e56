"""The one repair that the CPU build of torch needs, in one place.

PyPI's torchvision is linked against CUDA: beside the CPU build of torch its C++ extension does not load, and
``import torchvision`` dies with "operator torchvision::nms does not exist". transformers' Qwen3-VL processor wants
torchvision, so it cannot be left out. Only two operators have to be *declared*; nothing on the Qwen3-VL path calls
them. ``python -m visionrl.cpu_env`` writes a ``.pth`` file into this environment's site-packages that imports this
package at interpreter start, so that every process of the environment (vLLM's workers too) is repaired alike. The
hook does nothing until torchvision is imported, and nothing where the extension loads: beside PyPI's own torch, which
is built for CUDA and runs without a GPU, too.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

PTH_NAME = "visionrl_cpu_env.pth"
MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []  # torch.library registrations live as long as their handle


class _DeclareOperators(importlib.abc.Loader):
    """Runs torchvision.extension, then declares the operators that its shared object would have brought."""

    def __init__(self, inner: importlib.abc.Loader) -> None:
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        if module._has_ops():
            return
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in MISSING_OPERATORS:
            library.define(schema)
        _libraries.append(library)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision.extension":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec and spec.loader:
            spec.loader = _DeclareOperators(spec.loader)
        return spec


def activate() -> None:
    """Install the import hook in this interpreter (once)."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def install(site_packages: Path | None = None) -> Path:
    """Write the ``.pth`` file that activates the hook in every later interpreter; returns its path."""
    target = (site_packages or Path(sysconfig.get_path("purelib"))) / PTH_NAME
    target.write_text("import visionrl.cpu_env; visionrl.cpu_env.activate()\n")
    return target
