"""Reading job files: every problem of a file at once, with its line, field and fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visionrl.checks import contradictions, contradictions_without, warnings
from visionrl.checks.bases import architecture_fault, is_path
from visionrl.documents import DocumentError, Lines, parse_json, parse_toml, parse_yaml, read_text
from visionrl.job import Job, JobSpec, SupervisedData, WarmStart
from visionrl.problems import Location, Problem, dotted, fields_at, located, nearest, problems
from visionrl.reference.conversion import Conversion
from visionrl.reference.job import convert_job, data_finder
from visionrl.reference.shared import job_name
from visionrl.versions import validate_known, without

SET_BY_THE_SERVER = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")
"""Metadata of an object as ``kubectl get -o yaml`` prints it. Like ``status``, no job file needs it."""


class JobFileError(ValueError):
    """A job file that cannot be used; ``problems`` lists everything that is wrong with it."""

    def __init__(self, source: str, problems: list[Problem], lines: Mapping[str, int] | None = None) -> None:
        self.source, self.problems, self.lines = source, problems, dict(lines or {})
        super().__init__("\n".join(located(problem, source, self.lines) for problem in problems))


@dataclass(frozen=True)
class JobFile:
    """A job, where each of its fields is written, and what it was converted from."""

    job: Job
    source: str
    lines: Lines = field(default_factory=dict)
    conversion: Conversion | None = None
    """Of a file of the reference system."""

    @property
    def warnings(self) -> list[Problem]:
        """What is accepted and probably not meant."""
        return [_told(self.conversion, problem) for problem in warnings(self.job.spec)]


def load_job(path: Path) -> Job:
    """Read and check a job file. Raises :class:`JobFileError`, or ``OSError`` where it cannot be read."""
    return read_job_file(path).job


def read_job_file(path: Path, train_data: Path | None = None, changes: Mapping[str, Any] | None = None) -> JobFile:
    """Read and check a job file: ours (YAML), or one of the reference system (``.toml``); ``-`` is standard input.

    ``train_data`` takes the place of the data that a TOML file names: its steps are counted from it. ``changes`` are
    values by their dotted paths below ``spec``, or from ``metadata``, that take precedence over the file's. Raises
    :class:`JobFileError`, or ``OSError``.
    """
    try:
        text = read_text(path)
    except DocumentError as error:
        raise JobFileError(str(path), [Problem("", str(error))]) from None
    if path.suffix == ".toml":
        return _converted(text, path, train_data, changes or {})
    return parse_job_file(text, str(path), path.parent, changes)


def parse_job(text: str, source: str = "job", folder: Path = Path()) -> Job:
    """Parse and check one YAML document; ``folder`` is where relative paths begin."""
    return parse_job_file(text, source, folder).job


def parse_job_file(text: str, source: str, folder: Path, changes: Mapping[str, Any] | None = None) -> JobFile:
    """The same with where its fields are written; ``changes`` as for :func:`read_job_file`."""
    try:
        data, lines = parse_yaml(text)
    except DocumentError as error:
        raise _unreadable(error, source) from None
    if not isinstance(data, dict):
        raise JobFileError(source, [Problem("", f"must be a mapping (key: value), found {_kind(data)}")])
    if isinstance(items := data.get("items"), list):  # as kubectl get -o yaml prints several objects
        raise JobFileError(source, [Problem("items", f"a list of {len(items)} objects; give one of them")], lines)
    job, wrong = _job(with_values(_as_written(data), changes or {}), folder)
    if job is None or wrong:
        raise JobFileError(source, [_with_origin(problem, changes or {}) for problem in wrong], lines)
    return JobFile(job, source, lines)


def _converted(text: str, path: Path, train_data: Path | None, changes: Mapping[str, Any]) -> JobFile:
    try:
        data, lines = parse_toml(text)
    except DocumentError as error:
        raise _unreadable(error, str(path)) from None
    if train_data is not None and isinstance(data.get("job"), dict):
        data["job"]["data"] = str(train_data.absolute())
        data["job"].pop("data_path", None)
    conversion = convert_job(data, lines, job_name(path.stem), data_finder(path.parent))
    job, wrong = _job(with_values(conversion.document(), changes), path.parent)
    wrong = [_with_origin(problem, changes) for problem in wrong]
    told = [conversion.translated(problem) for problem in wrong]
    if conversion.problems:  # what has no key is missing because of them
        told = [*conversion.problems, *(found for problem, found in zip(wrong, told, strict=True) if found != problem)]
    if job is None or told:
        raise JobFileError(str(path), list(dict.fromkeys(told)), lines)
    return JobFile(job, str(path), lines, conversion)


def with_values(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the document with values at dotted paths, those below ``spec`` without that word; what is no mapping on
    the way is replaced."""
    changed = dict(document)
    for path, value in changes.items():
        place = changed
        *sections, field_name = _whole_path(path).split(".")
        for section in sections:
            inner = place.get(section)
            place[section] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[section]
        place[field_name] = value
    return changed


def _whole_path(path: str) -> str:
    return path if path.startswith("metadata.") else f"spec.{path}"


def _with_origin(problem: Problem, changes: Mapping[str, Any]) -> Problem:
    """The problem of a value that the file does not have says where it is from."""
    given = any(f"{problem.path}.".startswith(f"{_whole_path(path)}.") for path in changes)
    return Problem(problem.path, f"{problem.message}; given on the command line") if given else problem


def _told(conversion: Conversion | None, problem: Problem) -> Problem:
    return conversion.translated(problem) if conversion else problem


def _unreadable(error: DocumentError, source: str) -> JobFileError:
    return JobFileError(source, [Problem("", str(error))], {"": error.line} if error.line else {})


def _job(data: Mapping[str, Any], folder: Path) -> tuple[Job | None, list[Problem]]:
    """The job of a document, and everything that is wrong with it."""
    try:
        job = Job.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        return None, all_problems(error, data)
    job = _with_absolute_paths(job, folder)
    return job, [*contradictions(job.spec), *_architecture(job)]


def all_problems(error: ValidationError, document: Mapping[str, Any]) -> list[Problem]:
    """What the schema refuses, and the contradictions between those fields that it accepts."""
    found = list(problems(error, Job))
    locations = [item["loc"] for item in error.errors()]
    spec = without(document, locations).get("spec")
    if not isinstance(spec, Mapping):
        return found
    training = spec.get("training")
    if isinstance(training, dict):
        training.setdefault("iterations", 1)  # the one value without a default that says nothing about the others
    try:
        rest = JobSpec.model_validate(spec, by_alias=True, by_name=False)
    except ValidationError:
        return found
    return [*found, *contradictions_without(rest, {_meant(location) for location in locations})]


def _meant(location: Location) -> str:
    """The field that is wrong; for a misspelt key the one that it is most like."""
    name = str(location[-1])
    near = nearest(name, fields_at(Job, location[:-1]))
    return dotted((*location[:-1], near)) if near else dotted(location)


def _as_written(data: dict[str, Any]) -> dict[str, Any]:
    """The object without what only an API server adds."""
    kept = {key: value for key, value in data.items() if key != "status"}
    metadata = kept.get("metadata")
    if isinstance(metadata, dict):
        kept["metadata"] = {key: value for key, value in metadata.items() if key not in SET_BY_THE_SERVER}
    return kept


def _architecture(job: Job) -> list[Problem]:
    """What the base model's own configuration says, where it is on this machine."""
    base = job.spec.model.base
    fault = architecture_fault(Path(base).expanduser()) if is_path(base) else None
    return [Problem("spec.model.base", fault)] if fault else []


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


def _kind(value: Any) -> str:
    return "nothing" if value is None else "a list" if isinstance(value, list) else "a single value"


# --- resolved jobs


def read_resolved_job(path: Path) -> tuple[Job, list[str]]:
    """A job as the operator, the supervisor and the trainer write it (JSON), and the paths of what was left out of it.

    Left out are fields that this version does not know, and values that it does not know of sections that only the
    operator reads: whoever wrote the file may be newer. Raises :class:`JobFileError`, or ``OSError``.
    """
    try:
        document = parse_json(read_text(path))
        job, unknown = validate_known(Job, document, optional=OPERATIONS)
    except DocumentError as error:
        raise JobFileError(str(path), [Problem("", str(error))]) from None
    except ValidationError as error:
        raise JobFileError(str(path), list(problems(error, Job))) from None
    return job, [dotted(location) for location in unknown]


OPERATIONS: tuple[Location, ...] = tuple(
    ("spec", name) for name in ("storage", "placement", "failurePolicy", "lifecycle", "overrides")
)
"""Sections that no component reads."""
