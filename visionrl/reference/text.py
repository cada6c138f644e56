"""A conversion as YAML for people: our document, with a comment at each key that means something else here."""

from __future__ import annotations

from io import StringIO
from textwrap import wrap
from typing import Any

from ruamel.yaml import YAML

from visionrl.documents import parse_yaml
from visionrl.job import Job, JobSpec
from visionrl.reference.conversion import Conversion, Note

WIDTH = 110


def as_yaml(conversion: Conversion, source: str) -> str:
    """The text of a job file."""
    text = _dumped(_in_order(conversion.document()))
    _, lines = parse_yaml(text)
    placed = [note for note in conversion.notes if note.path in lines]
    others = [note for note in conversion.notes if note.path not in lines]
    written = text.splitlines()
    for note in sorted(placed, key=lambda each: -lines[each.path]):
        number = lines[note.path] - 1
        indent = written[number][: len(written[number]) - len(written[number].lstrip())]
        written[number:number] = _comment(note, indent)
    head = [f"# Converted from {source} by visionrl convert."]
    if others:
        head += ["#", "# Keys that have no place here:"]
        head += [line for note in others for line in _comment(note, "")]
    return "\n".join([*head, *written]) + "\n"


def _comment(note: Note, indent: str) -> list[str]:
    first, rest = f"{indent}# {note.key}: ", f"{indent}#   "
    return wrap(note.text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _dumped(document: dict[str, Any]) -> str:
    yaml, stream = YAML(), StringIO()
    yaml.width = 4096
    yaml.representer.ignore_aliases = lambda _: True
    yaml.representer.add_representer(float, _float)
    yaml.dump(document, stream)
    return stream.getvalue()


def _float(representer: Any, value: float) -> Any:
    """With a point: a YAML 1.1 reader takes 5e-05 for a text."""
    text = repr(value)
    return representer.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))


def _in_order(document: dict[str, Any]) -> dict[str, Any]:
    """The sections in the order of the job's model."""
    fields = [field.alias or name for name, field in Job.model_fields.items()]
    sections = [field.alias or name for name, field in JobSpec.model_fields.items()]
    ordered = {name: document[name] for name in fields if name in document}
    if "spec" in ordered:
        ordered["spec"] = {name: ordered["spec"][name] for name in sections if name in ordered["spec"]}
    return ordered
