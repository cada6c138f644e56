"""The reference of the job file, generated from its model: ``python -m recipes.job_reference > docs/job.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from visionrl.job import JobSpec

HEAD = """# The job file, field by field

Generated from the model (`make docs-reference`): names, types, defaults and meanings are those that the reader, the
CustomResourceDefinition and the operator use. Paths are below `spec`.
"""


def reference() -> str:
    """The page, Markdown."""
    schema = JobSpec.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    sections = [HEAD]
    top, nested = [], []
    for name, field in schema["properties"].items():
        if (model := _model(field, definitions)) is not None:
            nested.append((name, model))
        else:
            top.append(_row(name, field, name in schema.get("required", ()), definitions))
    for name, model in nested:
        rows = list(_rows(name, model, definitions))
        sections.append(f"## {name}\n\n{model.get('description', '')}\n\n{_table(rows)}")
    return "\n".join([*sections, f"## Further fields\n\n{_table(top)}"])


def _rows(path: str, model: dict[str, Any], definitions: dict[str, Any]) -> Iterator[str]:
    for name, field in model.get("properties", {}).items():
        yield _row(f"{path}.{name}", field, name in model.get("required", ()), definitions)
        if (inner := _model(field, definitions)) is not None:
            yield from _rows(f"{path}.{name}", inner, definitions)


def _model(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The object that a field holds, or that the items of a list are; None for a plain value."""
    for option in (field, *field.get("anyOf", ()), field.get("items", {})):
        if "$ref" in option:
            found = definitions[option["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


def _row(path: str, field: dict[str, Any], required: bool, definitions: dict[str, Any]) -> str:
    default = "required" if required else _default(field)
    words = " ".join(field.get("description", "").split()).replace("|", "\\|")
    return f"| `{path}` | {_type(field)} | {default} | {words} |"


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    return "" if default in (None, {}, []) or isinstance(default, dict) else f"`{json.dumps(default)}`"


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(option) for option in field["anyOf"] if option.get("type") != "null"))
    if "$ref" in field:
        return "object"
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {_type(field.get('items', {}))}"
    limits = [f"{sign} {field[key]:g}" for key, sign in LIMITS.items() if key in field]
    return f"{kind}{' ' if limits else ''}{', '.join(limits)}"


LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _table(rows: list[str]) -> str:
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    print(reference(), end="")
