"""Documents that another version of this code wrote, with fields that this one does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Location = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


def validate_known(model: type[M], document: Any) -> tuple[M, list[Location]]:
    """The document without the fields that this version does not know, and where those are. By the names of files
    (camelCase). Raises pydantic's ``ValidationError`` where anything else is wrong."""
    try:
        return model.model_validate(document, by_alias=True, by_name=False), []
    except ValidationError as error:
        unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        if not unknown:
            raise
    return model.model_validate(_without(document, unknown), by_alias=True, by_name=False), unknown


def _without(document: Any, locations: list[Location]) -> Any:
    def copy(value: Any, at: Location) -> Any:
        if isinstance(value, Mapping):
            return {k: copy(v, (*at, k)) for k, v in value.items() if (*at, k) not in locations}
        return [copy(item, (*at, i)) for i, item in enumerate(value)] if isinstance(value, list) else value

    return copy(document, ())
