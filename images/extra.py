"""Print the project's requirements with one of its extras, for ``pip install --requirement``.

An image installs them before it gets the project's own code: a change of that code then moves kilobytes.

    python3 images/extra.py operator
"""

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(extra: str) -> list[str]:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
