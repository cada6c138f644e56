"""The contracts, installed without any extra: `visionrl validate`, `render` and `--help` work and stay light."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "kopf", "kubernetes", "starlette", "vllm")

SAYS_WHAT_IT_IMPORTED = f"""
import sys
from visionrl_cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
print("imported:", *loaded, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the project and what it requires, no extra."""
    folder = tmp_path_factory.mktemp("contracts")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-qq", str(ROOT)], check=True)
    return python


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["validate", "configs/crafter-tiny.yaml", "configs/crafter-qwen3vl-4b.yaml"],
        ["render", "configs/crafter-qwen3vl-4b.yaml"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_of_the_contracts_needs_no_extra(python: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [python, "-c", SAYS_WHAT_IT_IMPORTED, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (0, ["imported:"]), done.stderr
    assert done.stdout


@pytest.mark.slow
def test_the_environment_really_lacks_them(python: Path) -> None:
    found = f"import importlib.util as u; print([n for n in {HEAVY!r} if u.find_spec(n)])"
    assert subprocess.run([python, "-c", found], capture_output=True, text=True, check=True).stdout.strip() == "[]"
