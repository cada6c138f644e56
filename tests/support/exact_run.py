"""``visionrl run`` with a module in place of one component's own. As a program, with
:mod:`tests.support.exact_inference` in vLLM's place: ``FILE --runs DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from visionrl_core.manifests.common import Manifest
from visionrl_local.container import container_argv
from visionrl_local.run import RunOptions, run


def run_with(container_name: str, *module: str, environment: Mapping[str, str] | None = None) -> int:
    """Run the file of the command line; ``module`` is its name, and its arguments. ``environment`` takes precedence
    over what the component gets otherwise. The exit code."""

    def argv(container: Manifest) -> list[str]:
        if container["name"] == container_name:
            changed = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
            return [*changed, sys.executable, "-m", *module]
        return container_argv(container)

    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    options = parser.parse_args()
    return run(RunOptions(options.file, options.runs, argv=argv))


if __name__ == "__main__":
    sys.exit(run_with("inference", "tests.support.exact_inference"))
