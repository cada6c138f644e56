"""Jobs that are made of the learn job: fields changed by their dotted paths, everything else as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

Document = dict[str, Any]


def derive(learn: Document, name: str, changes: Mapping[str, Any]) -> Document:
    """The job under another name with fields of its ``spec`` changed."""
    job = changed(copy.deepcopy(learn), changes)
    job["metadata"]["name"] = name
    return job


def changed(job: Document, changes: Mapping[str, Any]) -> Document:
    """The job itself, with values set at dotted paths below ``spec``."""
    for path, value in changes.items():
        *sections, field = path.split(".")
        place = job["spec"]
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return job


def write_derived(learn_file: Path, name: str, changes: Mapping[str, Any], job_file: Path) -> None:
    """Read the learn job, write the derived one."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    job_file.parent.mkdir(parents=True, exist_ok=True)
    with job_file.open("w", encoding="utf-8") as stream:
        stream.write(f"# {learn_file.name} with other {', '.join(changes)}. Written by python -m recipes.learn.\n")
        yaml.dump(derive(yaml.load(learn_file), name, changes), stream)
