"""The status as it is written and read back, the events between two of them, and the command line."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.fake_api import merged
from visionrl.status import Attempt, Condition, JobStatus, Progress
from visionrl_core.events import event_manifest, events_between
from visionrl_core.manifests.common import Owner
from visionrl_operator.metrics import Metrics
from visionrl_operator.options import parse
from visionrl_operator.status_writer import merge_patch, plain, read_status

OWNER = Owner("demo", "default", "uid-1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)

JSON = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


@given(DOCUMENTS, DOCUMENTS)
def test_a_patch_turns_one_document_into_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = merge_patch(old, new)
    assert merged(old, patch) == new
    assert (patch == {}) == (old == new)


def condition(name: str, value: str, message: str = "") -> Condition:
    when = "2026-01-01T00:00:00Z"
    return Condition(type=name, status=value, reason="R", message=message, last_transition_time=when)  # type: ignore[arg-type]


def status(**conditions: str) -> JobStatus:
    return JobStatus(conditions=[condition(name, value) for name, value in conditions.items()])


def test_a_status_reads_back_as_it_was_written() -> None:
    written = status(Accepted="True").model_copy(update={"progress": Progress(iteration=3, reward=1.0), "reason": ""})
    raw = plain(written)
    assert "reason" not in raw, "an empty text is nothing"
    assert read_status(raw) == written
    assert read_status({}) == JobStatus()


def test_a_number_that_came_back_whole_is_the_same_number() -> None:
    assert read_status({"progress": {"reward": 1}}).progress.reward == 1.0


def test_fields_of_a_newer_operator_are_no_obstacle() -> None:
    raw = {
        "attempt": 2,
        "invented": 1,
        "progress": {"iteration": 3, "new": True},
        "attempts": [{"number": 0, "started": "t", "x": 1}],
    }
    read = read_status(raw)
    assert (read.attempt, read.progress.iteration, read.attempts[0].number) == (2, 3, 0)


def test_a_status_that_cannot_be_read_is_not_guessed() -> None:
    with pytest.raises(ValidationError):
        read_status({"attempt": "two", "invented": 1})


def reasons(previous: JobStatus, now: JobStatus) -> list[str]:
    return [event.reason for event in events_between(previous, now)]


def test_what_people_are_told() -> None:
    first = JobStatus()
    assert reasons(first, status(Accepted="True")) == []
    assert reasons(status(TrainerRunning="False"), status(TrainerRunning="True")) == ["Ready"]
    assert reasons(status(TrainerRunning="True"), status(TrainerRunning="True")) == []
    assert reasons(first, status(Suspended="True")) == ["Suspended"]
    assert reasons(status(Suspended="True"), status(Suspended="False")) == ["Resumed"]
    assert reasons(first, status(Complete="True")) == ["Completed"]
    assert reasons(first, status(Failed="True")) == ["Failed"]
    refused, ignored = condition("Accepted", "False", "refused"), condition("Accepted", "True", "fields are ignored")
    assert reasons(first, JobStatus(conditions=[refused])) == ["R"]
    assert reasons(first, JobStatus(conditions=[ignored])) == ["R"]
    assert reasons(JobStatus(conditions=[ignored]), JobStatus(conditions=[ignored])) == []
    restarted = JobStatus(attempt=1, attempts=[Attempt(number=0, started="t", ended="u", cause="trainer: OOMKilled")])
    assert [event.message for event in events_between(first, restarted)] == ["attempt 1 follows trainer: OOMKilled"]
    suspended = JobStatus(attempt=1, attempts=[Attempt(number=0, started="t", ended="u", cause="suspended")])
    assert reasons(first, suspended) == []


def test_the_same_event_posted_twice_is_one_object() -> None:
    [event] = events_between(JobStatus(), status(Failed="True"))
    first, later = (
        event_manifest(OWNER, event, NOW),
        event_manifest(OWNER, event, datetime(2027, 1, 1, tzinfo=UTC)),
    )
    assert first["metadata"]["name"] == later["metadata"]["name"]
    [other] = events_between(status(Suspended="True"), status(Suspended="False"))
    assert event_manifest(OWNER, other, NOW)["metadata"]["name"] != first["metadata"]["name"]


# --- command line


def test_options_from_the_environment_and_the_command_line() -> None:
    environment = {
        "VISIONRL_OPERATOR_NAMESPACE": "a, b",
        "VISIONRL_OPERATOR_WORKERS": "4",
        "VISIONRL_OPERATOR_LEADER_ELECTION": "false",
        "POD_NAMESPACE": "system",
        "POD_NAME": "operator-0",
        # Of a Service that is called visionrl-operator.
        "VISIONRL_OPERATOR_PORT": "tcp://10.0.0.1:8080",
        "VISIONRL_OPERATOR_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "VISIONRL_OPERATOR_SERVICE_HOST": "10.0.0.1",
        "VISIONRL_OPERATOR_SERVICE_PORT_HTTP": "8080",
    }
    options = parse(["run"], environment)
    assert (options.namespaces, options.workers, options.leader_election) == (("a", "b"), 4, False)
    assert options.lease_namespace == "system"
    assert options.identity.startswith("operator-0_")
    options = parse(["run", "--namespace", "c", "--workers", "2", "--leader-election"], environment)
    assert (options.namespaces, options.workers, options.leader_election) == (("c",), 2, True)
    assert parse(["run"], {}).namespaces == ()


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ([], {}, "COMMAND"),
        (["run", "--workers", "0"], {}, "'0' is not a whole number above 0"),
        (["run", "--health-port", "99999"], {}, "'99999' is not a port"),
        (["run"], {"VISIONRL_OPERATOR_WORKERS": "many"}, "'many' is not a whole number"),
        (["run"], {"VISIONRL_OPERATOR_LEADER_ELECTION": "yes"}, "neither true nor false"),
        (["run"], {"VISIONRL_OPERATOR_LOG_FORMAT": "xml"}, "'xml' is not one of text, json"),
        (["run"], {"VISIONRL_OPERATOR_WORKRES": "4"}, "VISIONRL_OPERATOR_WORKRES is no option"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str], environment: dict[str, str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments, environment)
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["run", "--help"], {})
    shown = capsys.readouterr().out
    for word in ("VISIONRL_OPERATOR_LOG_FORMAT", "/readyz", "one leads", "--no-leader-election", "POD_NAMESPACE"):
        assert word in shown


def test_metrics_count_writes_apart_from_the_lease() -> None:
    metrics = Metrics()
    metrics.watch_phases(lambda: ["Running", "Running", "Failed"])
    for verb, kind in (("patch", "Service"), ("get", "Service"), ("put", "Lease")):
        metrics.count_request(verb, kind, 200)
    text = metrics.text().decode()
    assert 'visionrl_operator_api_writes_total{kind="Service"} 1.0' in text
    assert 'api_writes_total{kind="Lease"}' not in text
    assert 'visionrl_operator_jobs{phase="Running"} 2.0' in text
