"""What starting costs before any work: processor time of imports and of the command line.

python -m tests.bench.startup [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.common import interleaved, median, spread, write

COMMANDS = {
    "visionrl --help": ["-c", "import sys; from visionrl_cli import main; sys.argv[1:] = ['--help']; main()"],
    "the contracts (visionrl.job)": ["-c", "import visionrl.job"],
    "the operator": ["-c", "import visionrl_operator.main"],
    "the task app": ["-c", "import visionrl_taskapp.__main__"],
    "inference, before vLLM": ["-c", "import visionrl_inference.__main__"],
    "the trainer, before torch": ["-c", "import visionrl_trainer.__main__"],
    "the trainer": ["-c", "import visionrl_trainer.train"],
}


def children_seconds() -> float:
    """User and system time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start(arguments: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)


def measure(rounds: int) -> list[dict[str, Any]]:
    sides = {name: (lambda arguments=arguments: start(arguments)) for name, arguments in COMMANDS.items()}
    seconds = interleaved(sides, rounds, clock=children_seconds)
    return [
        {"what": name, "cpu_s": round(median(values), 3), "spread": round(spread(values), 3)}
        for name, values in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    rows = measure(arguments.rounds)
    for row in rows:
        print(f"{row['what']:32}{row['cpu_s']:8.2f} CPU s  ± {row['spread']:.0%}")
    write(arguments.json, "startup", {"rows": rows})


if __name__ == "__main__":
    main()
