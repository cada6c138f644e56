"""The repair of torchvision beside the CPU build of torch."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The Python of an environment that has this repository and the packages of this one."""
    venv.create(tmp_path / "venv")
    [site_packages] = (tmp_path / "venv").glob("lib/*/site-packages")
    (site_packages / "base.pth").write_text("\n".join([str(ROOT), *sys.path]))
    return tmp_path / "venv" / "bin" / "python"


def run(python: Path, *arguments: str) -> str:
    """What a Python prints to standard output; it must not print to standard error."""
    done = subprocess.run([python, *arguments], capture_output=True, text=True, timeout=600, cwd=python.parent)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_setup_can_be_repeated_without_a_warning(environment: Path) -> None:
    for _ in range(2):
        assert "visionrl_cpu_env.pth" in run(environment, "-m", "visionrl.cpu_env")


@pytest.mark.parametrize("loads", [True, False])
def test_operators_are_declared_where_the_extension_of_torchvision_does_not_load(
    environment: Path, loads: bool
) -> None:
    run(environment, "-m", "visionrl.cpu_env")
    stand_in = environment.parent / "torchvision"
    stand_in.mkdir()
    (stand_in / "__init__.py").write_text("from . import extension\n")
    (stand_in / "extension.py").write_text(f"def _has_ops():\n    return {loads}\n")
    program = "import torch, torchvision; print(hasattr(torch.ops.torchvision, 'nms'))"
    assert run(environment, "-c", program).strip() == str(not loads)


def test_torchvision_can_be_imported_beside_either_build_of_torch(environment: Path) -> None:
    run(environment, "-m", "visionrl.cpu_env")
    program = "import torch, torchvision; print(torch.ops.torchvision.nms.default._schema.name)"
    assert run(environment, "-c", program).strip() == "torchvision::nms"
