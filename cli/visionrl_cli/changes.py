"""``--set KEY=VALUE``: values that take precedence over those of a job file."""

from __future__ import annotations

import argparse
from typing import Any

from visionrl.documents import DocumentError, parse_yaml


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        type=assignment,
        action="append",
        default=[],
        help="a value of the spec, such as training.groupSize=4; takes precedence over the file's; may be repeated",
    )


def assignment(text: str) -> tuple[str, Any]:
    """ "training.groupSize=4" → path below ``spec``, and the value as YAML reads it."""
    key, equals, value = text.partition("=")
    path = key.removeprefix("spec.")
    if not equals or not all(part for part in path.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r}: give KEY=VALUE, such as training.groupSize=4")
    try:
        return path, parse_yaml(f"value: {value}\n")[0]["value"]
    except DocumentError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
