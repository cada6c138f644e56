"""Reading job files: YAML 1.2 with duplicate keys refused, every error with its line, path and fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from visionrl.checks import Problem, contradictions
from visionrl.job import Job, SupervisedData, WarmStart

Location = tuple[str | int, ...]


class JobFileError(ValueError):
    """A job file that cannot be used; ``problems`` lists everything that is wrong with it."""

    def __init__(self, source: str, problems: list[Problem], lines: Mapping[str, int] | None = None) -> None:
        self.source, self.problems, self.lines = source, problems, dict(lines or {})
        super().__init__("\n".join(self._line(problem) for problem in problems))

    def _line(self, problem: Problem) -> str:
        return located(problem, self.source, self.lines)


def located(problem: Problem, source: str, lines: Mapping[str, int]) -> str:
    """ "job.yaml:12: spec.training.groupSize: …": with the line of the field, or of the nearest one around it."""
    line = nearest_line(problem.path, lines)
    where = f"{source}:{line}" if line else source
    return f"{where}: {problem}" if problem.path else f"{where}: {problem.message}"


def nearest_line(path: str, lines: Mapping[str, int]) -> int | None:
    """Line of a field, or of the nearest field around it that the file has."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path)


def line_numbers(text: str) -> dict[str, int]:
    """Line (from 1) of every key and list item of a valid document, by its dotted path."""
    return _line_numbers(YAML(typ="safe", pure=True).compose(text))


def load_job(path: Path) -> Job:
    """Read and check a job file. Raises :class:`JobFileError`, or ``OSError`` where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise JobFileError(str(path), [Problem("", "is not UTF-8 text")]) from None
    return parse_job(text, str(path), path.parent)


def parse_job(text: str, source: str = "job", folder: Path = Path()) -> Job:
    """Parse and check one YAML document; ``folder`` is where relative paths begin."""
    data, lines = _parse_yaml(text, source)
    if not isinstance(data, dict):
        raise JobFileError(source, [Problem("", f"expected a mapping, found {_kind(data)}")])
    try:
        job = Job.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        raise JobFileError(source, list(problems(error, Job)), lines) from None
    job = _with_absolute_paths(job, folder)
    if wrong := contradictions(job.spec):
        raise JobFileError(source, wrong, lines)
    return job


def _with_absolute_paths(job: Job, folder: Path) -> Job:
    """The paths of supervised data, from the job file's folder."""
    warm_start = job.spec.training.warm_start
    if warm_start is None or warm_start.data is None:
        return job
    files = {name: file and str((folder / Path(file).expanduser()).absolute()) for name, file in warm_start.data}
    return with_warm_start(job, warm_start.model_copy(update={"data": SupervisedData(**files)}))


def with_warm_start(job: Job, warm_start: WarmStart) -> Job:
    """The job with another ``training.warmStart``."""
    training = job.spec.training.model_copy(update={"warm_start": warm_start})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"training": training})})


def problems(
    error: ValidationError, model: type[BaseModel], prefix: str = "", by_alias: bool = True
) -> Iterable[Problem]:
    """pydantic's errors as problems, with the nearest known name for an unknown key.

    `by_alias` suggests the names of files (camelCase), otherwise those of Python and of the HTTP messages.
    """
    for item in error.errors():
        location: Location = item["loc"]
        path = ".".join(filter(None, (prefix, dotted(location))))
        if item["type"] == "extra_forbidden":
            yield Problem(path, _unknown_key(str(location[-1]), _fields_at(model, location[:-1], by_alias)))
        elif item["type"] == "missing":
            yield Problem(path, "required")
        else:
            found = item["input"]
            shown = "" if isinstance(found, dict | list) else f", found {found!r}"
            yield Problem(path, item["msg"][0].lower() + item["msg"][1:] + shown)


def dotted(location: Location) -> str:
    """("spec", "rules", 0, "action") → "spec.rules[0].action"."""
    text = ""
    for key in location:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _unknown_key(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key; {hint}"


def _fields_at(model: type[BaseModel], location: Location, by_alias: bool) -> list[str]:
    """Keys that the model at this place of the document knows."""
    for key in location:
        if isinstance(key, int):
            continue
        for name, field in model.model_fields.items():
            if key in (field.alias, name):
                nested = _nested_model(field.annotation)
                if nested is None:
                    return []
                model = nested
    return [(by_alias and field.alias) or name for name, field in model.model_fields.items()]


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if found := _nested_model(argument):
            return found
    return None


def _parse_yaml(text: str, source: str) -> tuple[Any, dict[str, int]]:
    try:
        documents = [node for node in YAML(typ="safe", pure=True).compose_all(text) if node is not None]
        if len(documents) == 1:
            return YAML(typ="safe", pure=True).load(text), _line_numbers(documents[0])
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise JobFileError(source, [Problem("", f"{line}{(error.problem or str(error)).strip()}")]) from None
    except (YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        # Characters that YAML forbids, dates that do not exist, mappings as keys, nesting without end.
        raise JobFileError(source, [Problem("", f"no valid YAML: {str(error).splitlines()[0]}")]) from None
    raise JobFileError(source, [Problem("", f"expected one document, found {len(documents)}")])


def _line_numbers(node: Node, path: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, MappingNode):
        for key, value in node.value:
            child = f"{path}.{key.value}" if path else str(key.value)
            lines[child] = key.start_mark.line + 1
            lines |= _line_numbers(value, child)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            child = f"{path}[{index}]"
            lines[child] = value.start_mark.line + 1
            lines |= _line_numbers(value, child)
    return lines


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
