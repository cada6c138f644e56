"""``visionrl run`` with :mod:`tests.support.exact_inference` in vLLM's place: ``FILE --runs DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visionrl_core.manifests.common import Manifest
from visionrl_local.container import container_argv
from visionrl_local.run import RunOptions, run


def argv(container: Manifest) -> list[str]:
    if container["name"] == "inference":
        return [sys.executable, "-m", "tests.support.exact_inference"]
    return container_argv(container)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    options = parser.parse_args()
    return run(RunOptions(options.file, options.runs, argv=argv))


if __name__ == "__main__":
    sys.exit(main())
