"""Failure rules, delays, deadlines, and which changes of a job are taken."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.jobs import document, job
from visionrl.job import FailurePolicy, Job
from visionrl.status import Attempt, JobStatus
from visionrl_core.clock import moment, stamp
from visionrl_core.conditions import Finding, with_times
from visionrl_core.container_images import RELEASED, images_of, named, with_images
from visionrl_core.mutability import changed_immutable_fields
from visionrl_core.observed import ClusterRules
from visionrl_core.policies.failure import INTERRUPTED, SUSPENDED, Failure, action, backoff
from visionrl_core.policies.lifecycle import active_seconds, keep_time
from visionrl_core.policies.validation import validate

NOW = datetime(2026, 1, 1, tzinfo=UTC)

# --- failure rules


def policy(*rules: dict[str, Any]) -> FailurePolicy:
    return FailurePolicy.model_validate({"rules": list(rules)})


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (Failure("trainer", 1, "Error"), "Restart"),
        (Failure("trainer", 137, "OOMKilled"), "Restart"),
        (Failure("trainer", 137, "Evicted"), "RestartIgnoreLimit"),
        (Failure("trainer", None, "Deleted"), "RestartIgnoreLimit"),
        (Failure("inference", 2, "Error"), "Fail"),
    ],
)
def test_without_rules(failure: Failure, expected: str) -> None:
    assert action(policy(), failure) == expected


def test_the_first_rule_that_matches_decides() -> None:
    rules = policy(
        {"action": "Fail", "component": "inference"},
        {"action": "RestartIgnoreLimit", "exitCodes": [7, 8], "reasons": ["Error"]},
        {"action": "Fail", "reasons": ["OOMKilled", "Error"]},
    )
    assert action(rules, Failure("inference", 7, "Error")) == "Fail"
    assert action(rules, Failure("trainer", 8, "Error")) == "RestartIgnoreLimit"
    assert action(rules, Failure("trainer", 8, "OOMKilled")) == "Fail"
    assert action(rules, Failure("trainer", 8, "Other")) == "Restart"


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (Failure("trainer", 137, "OOMKilled"), "trainer: exit code 137 (OOMKilled)"),
        (Failure("trainer", 1, "Error", "a\nb: no\n\n"), "trainer: exit code 1: b: no"),
        (Failure("trainer", None, "Evicted"), "trainer: Evicted"),
    ],
)
def test_causes_are_one_line(failure: Failure, cause: str) -> None:
    assert failure.cause == cause


def attempts(*seconds: float, cause: str = "trainer: exit code 1") -> list[Attempt]:
    return [
        Attempt(number=n, started=stamp(NOW), ended=stamp(NOW + timedelta(seconds=s)), cause=cause)
        for n, s in enumerate(seconds)
    ]


@pytest.mark.parametrize(
    ("past", "delay"),
    [
        ([], 0),
        (attempts(1), 10),
        (attempts(1, 1), 20),
        (attempts(1, 1, 1), 40),
        (attempts(*[1] * 9), 300),
        (attempts(1, 1, 900), 10),
        (attempts(1, 1, 900, 1), 20),
        (attempts(1, cause=SUSPENDED), 0),
        (attempts(1, cause=INTERRUPTED), 0),
    ],
)
def test_the_delay_doubles_until_an_attempt_was_healthy(past: list[Attempt], delay: int) -> None:
    assert backoff(FailurePolicy(), past) == timedelta(seconds=delay)


def test_an_attempt_that_brought_the_job_forward_ends_the_row() -> None:
    done = [0, 3, 3, 3, 4]
    past = [each.model_copy(update={"iteration": n}) for each, n in zip(attempts(*[1] * 5), done, strict=True)]
    delays = [backoff(FailurePolicy(), past[:number]).total_seconds() for number in range(1, 6)]
    assert delays == [10, 10, 20, 40, 10]


# --- time


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10_000)), max_size=20))
def test_the_clock_counts_unsuspended_time(stretches: list[tuple[bool, int]]) -> None:
    status, now, expected = JobStatus(), NOW, 0
    for suspended, seconds in stretches:
        status = keep_time(status, suspended, now)
        now += timedelta(seconds=seconds)
        expected += 0 if suspended else seconds
    assert active_seconds(status, now) == expected


@given(st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_stamps_are_read_back(time: datetime) -> None:
    assert moment(stamp(time)) == time.replace(microsecond=0)


# --- changes


def taken(changes: dict[str, Any] | None = None) -> Job:
    """A job as it is accepted."""
    return with_images(job(changes), RELEASED)


@pytest.mark.parametrize(
    "change",
    [
        {"training.iterations": 50},
        {"evaluation": {"episodes": 3, "everyIterations": 1}},
        {"lifecycle": {"ttlSecondsAfterFinished": 1}},
        {"failurePolicy": {"rules": [{"action": "Fail", "component": "inference"}]}},
        {"suspend": True},
        {"taskApp.resources": {"cpu": "2", "memory": "3Gi"}},
    ],
)
def test_what_may_change_is_accepted_beside_what_may_not(change: dict[str, Any]) -> None:
    verdict = validate(document(change), accepted=taken())
    assert verdict.accepted
    assert verdict.job == taken(change)
    with_another = validate(document({**change, "training.groupSize": 3}), accepted=taken())
    assert not with_another.accepted
    assert with_another.job == taken(change)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model.base": "Qwen/Qwen3-VL-4B-Instruct"}, "spec.model.base"),
        ({"model.lora": {"r": 8}}, "spec.model.lora.r"),
        ({"taskApp.image": "other"}, "spec.taskApp.image"),
        ({"training.groupSize": 4}, "spec.training.groupSize"),
        ({"queueName": "q"}, "spec.queueName"),
        ({"overrides.trainer": {"labels": {"a": "b"}}}, "spec.overrides.trainer.labels.a"),
    ],
)
def test_what_is_fixed_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    verdict = validate(document(change), accepted=taken())
    assert not verdict.accepted
    assert verdict.reason == "Immutable"
    assert verdict.message.startswith(f"{field} cannot change")
    assert verdict.job == taken()
    assert changed_immutable_fields(job().spec, job(change).spec) == [field]


def test_a_broken_object_keeps_the_accepted_job() -> None:
    verdict = validate({**document(), "spec": {"training": {}}}, accepted=taken())
    assert (verdict.accepted, verdict.reason) == (False, "Invalid")
    assert "spec.model: required" in verdict.message
    assert verdict.job == taken()


def test_an_operator_older_than_the_definition_goes_on_and_says_what_it_ignores() -> None:
    newer = document({"training.fromTheFuture": 1, "lifecycle.later": {"a": [1]}, "evaluation.episodes": 3})
    for accepted in (None, taken()):
        verdict = validate(newer, accepted)
        assert verdict.job == taken({"evaluation.episodes": 3})
        assert (verdict.accepted, verdict.reason) == (True, "FieldsIgnored")
        assert "spec.training.fromTheFuture" in verdict.message
        assert "spec.lifecycle.later" in verdict.message
    wrong = validate(document({"training.fromTheFuture": 1, "training.groupSize": 1}), None)
    assert (wrong.job, wrong.reason) == (None, "Invalid")
    assert "spec.training.groupSize" in wrong.message


def test_a_new_job_may_name_allowed_images_only() -> None:
    allowed, mine = ("registry.example/team/", "visionrl/"), "registry.example/team/game:1"
    assert validate(document({"taskApp.image": mine}), None, ClusterRules(allowed_images=allowed)).accepted
    foreign = validate(document({"taskApp.image": "evil.example/miner:1"}), None, ClusterRules(allowed_images=allowed))
    assert (foreign.job, foreign.accepted, foreign.reason) == (None, False, "ImageNotAllowed")
    assert "spec.taskApp.image: evil.example/miner:1 is not allowed" in foreign.message
    assert "registry.example/team/ or visionrl/" in foreign.message


def sidecar(image: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "proxy", "image": image}]}}


def test_a_sidecars_image_must_be_allowed_too() -> None:
    rules = ClusterRules(allowed_images=("visionrl/",))
    changes = {"overrides.trainer.podTemplate": sidecar("evil.example/miner:1")}
    foreign = validate(document(changes), None, rules)
    assert foreign.reason == "OverrideNotAllowed"
    path = "spec.overrides.trainer.podTemplate.spec.containers[0].image"
    assert foreign.message.startswith(f"{path}: evil.example/miner:1 is not allowed")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"automountServiceAccountToken": True}, "automountServiceAccountToken"),
        ({"securityContext": {"runAsUser": 0}}, "securityContext.runAsUser"),
        ({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, "volumes[0].hostPath"),
        (
            {"containers": [{"name": "trainer", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
            "containers[0].securityContext.capabilities",
        ),
    ],
)
def test_what_is_beyond_the_restricted_standard_needs_the_clusters_consent(spec: dict[str, Any], field: str) -> None:
    wanted = document({"overrides.trainer.podTemplate": {"spec": spec}})
    refused = validate(wanted, None)
    assert (refused.job, refused.reason) == (None, "OverrideNotAllowed")
    assert f"spec.overrides.trainer.podTemplate.spec.{field}" in refused.message
    accepted = validate(wanted, None, ClusterRules(allow_privileged=True))
    assert accepted.accepted
    assert validate(wanted, accepted.job).accepted, "what was accepted stays so"


def test_a_job_that_was_accepted_keeps_running_when_its_images_are_no_longer_allowed() -> None:
    former = validate(document(), None).job
    assert former is not None
    assert validate(document(), former, ClusterRules(allowed_images=("elsewhere/",))).accepted


def test_an_accepted_job_keeps_its_images_when_the_operator_has_others() -> None:
    older, newer = named("registry.example/", "1"), named("registry.example/", "2")
    first = validate(document({"trainer.image": "mine"}), None, ClusterRules(older)).job
    assert first is not None
    assert images_of(first) == {**older, "trainer": "mine"}
    again = validate(document({"trainer.image": "mine"}), first, ClusterRules(newer))
    assert again.accepted
    assert again.job == first
    assert "spec.trainer.image" in validate(document({"trainer.image": "other"}), first, ClusterRules(newer)).message


@pytest.mark.parametrize("broken", [None, [], "text", {}, {"spec": None}])
def test_nonsense_is_invalid_not_an_error(broken: Any) -> None:
    assert not validate(broken, accepted=None).accepted


def test_what_is_probably_not_meant_is_told_by_the_condition_and_an_event() -> None:
    doubtful = document({"training.checkpointEvery": 5})
    verdict = validate(doubtful, accepted=None)
    assert verdict.accepted
    assert verdict.reason == "ValidWithWarnings"
    assert verdict.message.startswith("spec.training.checkpointEvery: exceeds iterations (3)")
    assert validate(doubtful, accepted=verdict.job).message == verdict.message
    assert validate(document(), accepted=None).message == ""


# --- conditions


@given(st.text(max_size=2000) | st.sampled_from(["OutOfnvidia.com/gpu", "Unschedulable", "_", "1", ""]))
def test_a_reason_is_one_that_kubernetes_allows(reason: str) -> None:
    [condition] = with_times([], [Finding("TaskAppReady", False, reason)], 1, NOW)
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", condition.reason)
    assert len(condition.reason) <= 1024


def test_a_reason_stays_readable() -> None:
    [condition] = with_times([], [Finding("InferenceReady", False, "OutOfnvidia.com/gpu")], 1, NOW)
    assert condition.reason == "OutOfnvidia_com_gpu"


def test_an_empty_queue_is_refused() -> None:
    verdict = validate(document({"queueName": ""}), None)
    assert (verdict.job, verdict.reason) == (None, "Invalid")
    assert "spec.queueName" in verdict.message
