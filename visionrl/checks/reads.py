"""A specification that notes which of its fields are read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Reads:
    """Stands for a section of the job; the dotted paths of the values that were asked for are in ``noted``."""

    def __init__(self, section: BaseModel, path: str, noted: set[str]) -> None:
        self._section, self._path, self._noted = section, path, noted

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._section, name)
        field = type(self._section).model_fields.get(name)
        if field is None:
            return value
        path = f"{self._path}.{field.alias}"
        if isinstance(value, BaseModel):
            return Reads(value, path, self._noted)
        self._noted.add(path)
        return value
