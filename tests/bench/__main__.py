"""Run the benchmarks that this machine can, and write docs/benchmarks.md from what they wrote.

    python -m tests.bench [NAME ...] [--results FOLDER]      without names: all of them, about an hour on two cores
    python -m tests.bench --page                             the page alone, from results that are there

Each is a program of its own with a JSON file (`python -m tests.bench.NAME --json FILE`); one that fails leaves the
others and its earlier result alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.bench.page import page

ROOT = Path(__file__).parents[2]
NAMES = ("env", "taskapp", "inference", "rollouts", "loop", "trainer", "gpu", "sync", "startup")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "bench", help="default: .cache/bench")
    parser.add_argument("--page", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}")
    failed = []
    for name in () if arguments.page else arguments.names or NAMES:
        command = [sys.executable, "-m", f"tests.bench.{name}", "--json", str(arguments.results / f"{name}.json")]
        print(f"--- {name}", flush=True)
        arguments.results.mkdir(parents=True, exist_ok=True)
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
    (ROOT / "docs" / "benchmarks.md").write_text(page(arguments.results))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
