"""``visionrl run`` with stand-ins for the components.

``python -m tests.support.local_run FILE RUNS NAME=BEHAVIOUR...``
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support import standin
from visionrl_core.manifests.common import Manifest
from visionrl_local.run import RunOptions, run


def main() -> int:
    file, runs, *rest = sys.argv[1:]
    behaviours = dict(word.split("=", 1) for word in rest if not word.startswith("--"))

    def argv(container: Manifest) -> list[str]:
        return [sys.executable, "-S", standin.__file__, *behaviours.get(container["name"], "serve").split(":")]

    port = next((int(word.removeprefix("--port=")) for word in rest if word.startswith("--port=")), None)
    return run(
        RunOptions(Path(file), Path(runs), port=port, fresh="--fresh" in rest, as_json="--plain" not in rest, argv=argv)
    )


if __name__ == "__main__":
    sys.exit(main())
