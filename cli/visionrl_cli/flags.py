"""Flags from the fields of a settings model, which defines name, type, default and help text."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterable
from typing import Any, Literal, Protocol, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined


class _Adds(Protocol):
    def add_argument(self, *names: str, **settings: Any) -> Any: ...


def add_fields(parser: _Adds, model: type[BaseModel], names: Iterable[str], section: str) -> None:
    """A flag for each of the fields, ``--batch-size`` for ``batch_size``; its value is stored as ``section.name``."""
    for name in names:
        field = model.model_fields[name]
        default = "" if field.default in (None, PydanticUndefined) else f" (default: {field.default})"
        text = " ".join(f"{field.description}{default}".split()).replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=f"{section}.{name}", default=None, help=text, **_form(field.annotation))


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The flags of :func:`add_fields` that were used, by ``section.name``."""
    return {name: value for name, value in vars(options).items() if "." in name and value is not None}


def _form(annotation: Any) -> dict[str, Any]:
    """How a flag of this type is parsed."""
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation)}
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": annotation, "metavar": {int: "N", float: "X", str: "NAME"}[annotation]}
