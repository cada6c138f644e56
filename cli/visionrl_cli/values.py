"""What flags accept: a text of the command line as a value, or the error that argparse shows."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from visionrl.documents import DocumentError, parse_json


def seconds(accepted: Callable[[float], bool]) -> Callable[[str], float]:
    """The type of a flag that takes seconds, those of which ``accepted`` is true; it is false for NaN."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not accepted(value):
            raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
        return value

    return parse


def positive(text: str) -> int:
    """An integer of at least 1, of at most 18 digits: it fits into 64 bits."""
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def json_object(text: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except DocumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, found {type(value).__name__}")
    return value
