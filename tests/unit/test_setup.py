"""`make setup`: what it asks of the machine, and what it installs in which order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()

# Stands for `python3`: logs what it is asked for, and "makes" environments whose programs log as well.
PROGRAM = """#!/bin/sh
echo "${0##*/} $*" >> "$SETUP_LOG"
case "${0##*/} $*" in
"pip index versions torch") echo "Available versions: $TORCH_VERSIONS" ;;
"uv "*) exit "$UV_STATUS" ;;
"python -m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
esac
"""


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PIP_", "UV_"))}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT, env=variables | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def set_up(folder: Path, torch_versions: str, uv_status: int = 0) -> tuple[str, list[str]]:
    """What `make setup` says with stand-ins for python, pip and uv, and what it asked them for."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("python", "uv"):
        (programs / name).write_text(PROGRAM)
        (programs / name).chmod(0o755)
    done = make(
        "setup", f"PYTHON={programs / 'python'}", f"VENV={folder / 'venv'}",
        PATH=f"{programs}:{os.environ['PATH']}",
        SETUP_LOG=str(folder / "log"), TORCH_VERSIONS=torch_versions, UV_STATUS=str(uv_status),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "log").read_text().splitlines()


def pinned(name: str) -> str:
    [version] = re.findall(rf"^{name}==(.*)$", (ROOT / "requirements" / "cpu.lock").read_text(), re.MULTILINE)
    return f"{name}=={version}"


def test_torch_comes_first_and_from_pip_which_knows_where_its_cpu_build_lies(tmp_path: Path) -> None:
    _, asked = set_up(tmp_path, "2.13.0")
    installs = [line for line in asked if "install" in line]
    assert installs[0].startswith("pip install")
    assert {pinned("torch"), pinned("torchvision")} <= set(installs[0].split())
    assert "--no-deps" not in installs[0]
    assert installs[1].startswith("uv pip install")
    assert "--no-deps -r requirements/cpu.lock" in installs[1]
    assert not any("-r requirements/cpu.lock" in line for line in installs[2:])


def test_pip_installs_the_lock_where_uv_cannot(tmp_path: Path) -> None:
    _, asked = set_up(tmp_path, "2.13.0", uv_status=1)
    assert any(line.startswith("pip install") and "-r requirements/cpu.lock" in line for line in asked)


@pytest.mark.parametrize(
    ("suffix", "size"), [("+cpu", "0.7 GB to download, 3 GB on disk"), ("", "3.2 GB to download, 7 GB on disk")]
)
def test_the_download_is_announced_with_the_size_it_will_have(tmp_path: Path, suffix: str, size: str) -> None:
    version = pinned("torch").removeprefix("torch==")
    said, _ = set_up(tmp_path, f"99.0, {version}{suffix}, {version}, 1.0+cpu")
    assert size in said


def test_a_missing_prerequisite_ends_setup_before_anything_is_made(tmp_path: Path) -> None:
    lacking = tmp_path / "lacking.py"
    lacking.write_text(
        "import ctypes, platform, runpy, sys\n"
        "def refuse(name): raise OSError(name)\n"
        "ctypes.CDLL = refuse\n"
        "platform.machine = lambda: 'aarch64'\n"
        "sys.version_info = (3, 10, 2)\n"
        "sys.modules['ensurepip'] = None\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')\n"
    )
    done = make("setup", f"PYTHON={sys.executable} {lacking}", f"VENV={tmp_path / 'venv'}")
    assert done.returncode
    for fix in ("Linux on x86-64", "set PYTHON=", "apt-get install python3-venv", "apt-get install libnuma1"):
        assert fix in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("target", re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())
def test_every_target_that_make_names_has_something_to_do(target: str, tmp_path: Path) -> None:
    done = make("--dry-run", target, f"VENV={tmp_path / 'venv'}")
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" not in done.stdout
