"""What pip installs into an image: the project's requirements with some of its extras, and their versions.

An image installs them before it gets the project's own code: a change of that code then moves kilobytes.

    python3 images/extra.py operator                         requirements, for ``pip install --requirement``
    python3 images/extra.py --keep requirements/cpu.lock     constraints: what this Python has stays as it is, the rest
                                                             is as locked
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(extras: Sequence[str]) -> list[str]:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    return [*project["dependencies"], *(each for extra in extras for each in project["optional-dependencies"][extra])]


def constraints(lock: Path) -> list[str]:
    locked = [line.split("==") for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    installed = [(found.metadata["Name"], found.version) for found in distributions() if found.metadata["Name"]]
    pins = {_canonical(name): version for name, version in [*locked, *installed]}
    return [f"{name}=={version}" for name, version in sorted(pins.items())]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    print("\n".join(constraints(Path(sys.argv[2])) if sys.argv[1] == "--keep" else requirements(sys.argv[1:])))
