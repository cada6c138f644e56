"""``visionrl task-app check``: whether a server speaks the rollout contract (docs/rollout.md)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from visionrl.documents import DocumentError
from visionrl_cli.files import given_key
from visionrl_cli.values import json_object

HELP = "whether a server of your own speaks the rollout contract"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="JSON", type=json_object, default={}, help="env.config of the episodes")
    parser.add_argument(
        "--model-host", metavar="HOST", default="127.0.0.1", help="this machine's address as the server sees it"
    )


def conforms(url: str, key_file: Path | None, config: dict[str, Any], model_host: str) -> int:
    """Ask the server as the trainer does, answer its model calls, print what does not follow the contract; the exit
    code."""
    try:
        key = given_key(key_file)
    except (DocumentError, OSError) as error:
        print(f"{key_file}: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    from visionrl.conformance import check  # httpx takes a moment

    failed = 0
    for outcome in check(url, key, config, model_host):
        failed += bool(outcome.problem)
        print(f"FAIL  {outcome.name}: {outcome.problem}" if outcome.problem else f"ok    {outcome.name}", flush=True)
    return 1 if failed else 0
