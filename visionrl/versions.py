"""Documents that another version of this code wrote, with fields and values that this one does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from visionrl.problems import Location

M = TypeVar("M", bound=BaseModel)


def validate_known(model: type[M], document: Any, optional: Sequence[Location] = ()) -> tuple[M, list[Location]]:
    """The document without what this version does not know, and where that is. By the names of files (camelCase).

    Left out are unknown fields, and the sections at ``optional`` where they have values that this version refuses.
    Raises pydantic's ``ValidationError`` where anything else is wrong.
    """
    try:
        return model.model_validate(document, by_alias=True, by_name=False), []
    except ValidationError as error:
        left_out = list(dict.fromkeys(_unknown(error, optional)))
        if not left_out:
            raise
    return model.model_validate(without(document, left_out), by_alias=True, by_name=False), left_out


def _unknown(error: ValidationError, optional: Sequence[Location]) -> Iterator[Location]:
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            yield item["loc"]
        else:
            yield from (section for section in optional if item["loc"][: len(section)] == section)


def without(document: Any, locations: Sequence[Location]) -> Any:
    """A copy of the document without the values at these places."""
    gone = frozenset(locations)

    def rest(value: Any, at: Location) -> Any:
        if isinstance(value, Mapping):
            return {k: rest(v, (*at, k)) for k, v in value.items() if (*at, k) not in gone}
        if isinstance(value, list):
            return [rest(item, (*at, i)) for i, item in enumerate(value) if (*at, i) not in gone]
        return value

    return rest(document, ())
