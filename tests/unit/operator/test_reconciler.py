"""Passes over a job against an API server in memory: what is written, what a death in between leaves, which events
are posted."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from tests.support.fake_api import Died, answer, client, failure
from tests.support.reconciling import CLAIM, DEMO, World, running
from visionrl.status import EvaluationProgress, PolicyVersions, Progress, Score, TrainerReport
from visionrl_operator.api import ApiError
from visionrl_operator.apply import NameTaken
from visionrl_operator.metrics import Metrics
from visionrl_operator.reconciler import Reconciler
from visionrl_operator.status_writer import Outdated
from visionrl_operator.store import Store

OTHERS = [
    ("configmaps", "ConfigMap", "demo-config"),
    ("persistentvolumeclaims", "PersistentVolumeClaim", CLAIM.name),
    ("services", "Service", "demo-trainer"),
    ("deployments", "Deployment", "demo-taskapp"),
]


async def test_a_job_gets_its_children_and_then_peace() -> None:
    world = World()
    await world.reconcile()
    made = {f"{body['kind']}/{name}" for (_, _, name), body in world.server.objects.items() if body["kind"] != "Event"}
    assert made == {
        "VisionRLJob/demo", "Secret/demo-key", "ConfigMap/demo-config", str(CLAIM),
        "NetworkPolicy/demo-parts", "NetworkPolicy/demo-report",
        "Service/demo-taskapp", "Service/demo-inference", "Service/demo-trainer",
        "Deployment/demo-taskapp", "Deployment/demo-inference",
    }  # fmt: skip
    assert world.server.writes[0].endswith("/visionrljobs/demo/status"), "the status comes first"
    assert world.server.writes[-1].startswith("POST"), "events come last"
    assert world.events() == ["Created"]
    assert await world.reconcile() == 0
    world.restart()
    assert await world.reconcile() == 0, "a restarted operator has nothing to write"


async def test_a_job_from_start_to_end() -> None:
    world = await running()
    assert world.status["phase"] == "Running"
    assert world.probes.followed is not None
    assert world.probes.followed.address == "10.0.0.1"
    world.trainer_ends(0, "Completed")
    await world.settle()
    world.server.finish_deletions(world.store)
    await world.settle()
    assert world.status["phase"] == "Complete"
    assert world.server.of("deployments") == [], "the GPUs are free"
    assert world.events() == ["Created", "Ready", "Completed"]


async def test_the_last_report_is_not_lost_where_nobody_asked_for_it_in_time() -> None:
    world = await running()
    world.probes.current = TrainerReport(phase="Training", progress=Progress(iteration=1, total=3))
    await world.settle()
    score = Score(mean=2.6, low=2.4, high=2.8, episodes=300)
    progress = Progress(iteration=3, total=3, evaluation=EvaluationProgress(latest=score, latest_iteration=3))
    last = TrainerReport(
        phase="Complete", progress=progress, policy=PolicyVersions(trained="demo-v3", serving="demo-v3")
    )
    world.restart()  # in the trainer's last seconds
    world.probes.current = None
    world.trainer_ends(0, "Completed", last.model_dump_json(by_alias=True, exclude_none=True))
    await world.settle()
    assert (world.status["phase"], world.status["progress"]["iteration"]) == ("Complete", 3)
    assert world.status["progress"]["evaluation"]["latest"]["mean"] == 2.6
    assert world.status["policy"]["serving"] == "demo-v3"


async def test_a_trainer_that_leaves_nonsense_is_complete_all_the_same() -> None:
    world = await running()
    world.trainer_ends(0, "Completed", '{"phase": ')
    await world.settle()
    assert world.status["phase"] == "Complete"


async def test_a_failed_trainer_is_followed_by_another_and_never_joined_by_it() -> None:
    world = await running()
    world.trainer_ends(137, "OOMKilled")
    await world.reconcile()
    assert world.status["attempt"] == 1
    [old] = world.server.of("jobs")
    assert "deletionTimestamp" in old["metadata"], "gone before its successor comes"
    await world.settle()
    assert len(world.server.of("jobs")) == 1
    world.server.finish_deletions(world.store)
    await world.settle()
    [new] = world.server.of("jobs")
    assert new["metadata"]["name"] == "demo-trainer-1"
    assert world.status["attempts"][0]["cause"] == "trainer: exit code 137 (OOMKilled)"
    assert "Restarted" in world.events()


async def test_a_trainer_pod_that_is_taken_away_is_an_uncounted_restart() -> None:
    world = await running()
    world.run_pod("trainer", world.trainer()["metadata"]["uid"], deletionTimestamp="2026-01-01T00:01:00Z")
    await world.reconcile()
    assert (world.status["attempt"], world.status["restarts"]) == (1, 0)
    assert "deletionTimestamp" in world.server.of("jobs")[0]["metadata"], "its Job cannot start another pod"


async def test_the_jobs_failure_alone_decides_nothing() -> None:
    world = await running()
    job = world.trainer()
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}]}
    world.server.put("jobs", job)
    await world.reconcile()
    assert world.status["attempt"] == 0, "the exit code is not known yet"
    world.trainer_ends(2)
    await world.settle()
    assert world.status["phase"] == "Failed", "a configuration error is not retried"


async def test_suspending_and_resuming() -> None:
    world = await running()
    world.change(suspend=True)
    await world.settle()
    world.server.finish_deletions(world.store)
    for name in list(world.server.objects):
        if name[0] == "pods":
            world.store.remove("Pod", world.server.objects.pop(name))
    await world.settle()
    assert world.status["phase"] == "Suspended"
    assert not world.server.of("deployments")
    assert not world.server.of("jobs")
    world.change(suspend=False)
    await world.settle()
    assert len(world.server.of("deployments")) == 2
    assert [reason for reason in world.events() if "us" in reason or "ume" in reason] == ["Suspended", "Resumed"]


@pytest.mark.parametrize("lives", range(13))
async def test_killed_after_any_write_it_goes_on_to_the_same_end(lives: int) -> None:
    world, whole = World(), World()
    await whole.settle()
    world.server.lives = lives
    with contextlib.suppress(Died):
        for _ in range(3):
            await world.reconcile()
    world.restart()
    await world.settle()
    names = {key for key in world.server.objects if key[0] != "events"}
    assert names == {key for key in whole.server.objects if key[0] != "events"}
    assert world.status == {**whole.status, **times_of(world.status)}


def times_of(status: dict[str, Any]) -> dict[str, Any]:
    return {name: status[name] for name in ("startTime", "activeSince", "activeSeconds", "conditions")}


@pytest.mark.parametrize("lives", range(6))
async def test_killed_while_an_attempt_follows_another_it_counts_once(lives: int) -> None:
    world = await running()
    world.trainer_ends(1)
    world.server.lives = lives
    with contextlib.suppress(Died):
        await world.reconcile()
    world.restart()
    await world.settle()
    world.server.finish_deletions(world.store)
    await world.settle()
    assert (world.status["attempt"], world.status["restarts"]) == (1, 1)
    assert [job["metadata"]["name"] for job in world.server.of("jobs")] == ["demo-trainer-1"]


async def test_two_operators_at_once_make_everything_once() -> None:
    world = World()
    other = Store()
    second = Reconciler(client(world.server), other, world.probes, Metrics())  # type: ignore[arg-type]
    world.server.deliver(other)
    world.server.deliver(world.store)
    results = await asyncio.gather(world.reconciler.reconcile(DEMO), second.reconcile(DEMO), return_exceptions=True)
    assert any(isinstance(result, Outdated) for result in results), "one of them had an old view"
    await world.settle()
    secrets = [write for write in world.server.writes if write.startswith("POST") and write.endswith("/secrets")]
    assert len(world.server.of("secrets")) == 1
    assert len(secrets) == 1


async def test_an_old_view_of_the_job_writes_nothing() -> None:
    world = World()
    world.change(suspend=True)  # the watch has not reported it yet
    with pytest.raises(Outdated):
        await world.reconciler.reconcile(DEMO)
    assert world.server.of("deployments") == []


async def test_a_deleted_secret_is_missed_after_a_restart_at_the_latest() -> None:
    world = World()
    await world.settle()
    del world.server.objects["secrets", "default", "demo-key"]
    world.restart()
    await world.settle()
    assert len(world.server.of("secrets")) == 1


async def test_deleted_children_are_made_again() -> None:
    world = World()
    await world.settle()
    for plural, name in (("services", "demo-trainer"), ("configmaps", "demo-config"), ("deployments", "demo-taskapp")):
        gone = world.server.objects.pop((plural, "default", name))
        world.store.remove(gone["kind"], gone)
    await world.settle()
    assert len(world.server.of("services")) == 3
    assert world.server.get("configmaps", "demo-config")
    assert world.server.get("deployments", "demo-taskapp")


async def test_children_of_a_former_job_of_that_name_are_left_alone() -> None:
    world = World()
    await world.settle()
    world.job["metadata"]["uid"] = "another-object"
    world.job["status"] = {}
    world.server.put("visionrljobs", world.job)
    world.restart()
    before = {name: body["metadata"]["resourceVersion"] for name, body in world.server.objects.items()}
    with pytest.raises(NameTaken, match="demo-key exists and is not this job's"):
        await world.reconcile()
    changed = {
        name[0]
        for name, body in world.server.objects.items()
        if before.get(name) != body["metadata"]["resourceVersion"]
    }
    assert changed == {"visionrljobs"}


@pytest.mark.parametrize(("plural", "kind", "name"), OTHERS)
async def test_what_belongs_to_others_is_not_taken_over(plural: str, kind: str, name: str) -> None:
    world = World()
    foreign = world.server.put(plural, {"kind": kind, "metadata": {"name": name, "namespace": "default"}})
    version = foreign["metadata"]["resourceVersion"]
    with pytest.raises(NameTaken, match=f"{kind}/{name} exists and is not this job's"):
        await world.reconcile()
    assert world.server.get(plural, name)["metadata"]["resourceVersion"] == version


async def test_what_the_server_refuses_is_the_reason_that_people_read() -> None:
    world = World()
    world.server.fault = lambda method, path: (
        failure(403, "Forbidden", "exceeded quota: few-services") if "/services/" in path else None
    )
    with pytest.raises(ApiError):
        await world.reconcile()
    with pytest.raises(ApiError):
        await world.reconcile()
    assert world.status["reason"].startswith("cannot make Service/demo-")
    assert "exceeded quota: few-services" in world.status["reason"]
    world.server.fault = lambda method, path: None
    await world.settle()
    assert "quota" not in world.status.get("reason", "")


async def test_a_namespace_whose_secrets_it_may_not_read_is_told_and_nothing_restarts() -> None:
    """``rbac.secrets: listed``."""
    world = await running()
    before = {name: body["metadata"]["resourceVersion"] for name, body in world.server.objects.items()}
    world.restart()
    world.server.fault = lambda method, path: (
        failure(403, "Forbidden", "secrets is forbidden") if "/secrets" in path else None
    )
    for _ in range(3):
        with pytest.raises(ApiError):
            await world.reconcile()
    assert world.status["reason"] == "cannot read Secret/demo-key: secrets is forbidden"
    changed = [
        name for name, body in world.server.objects.items() if body["metadata"]["resourceVersion"] != before[name]
    ]
    assert changed == [("visionrljobs", "default", "demo")]
    world.server.fault = lambda method, path: None
    await world.settle()
    assert "forbidden" not in world.status.get("reason", "")


async def test_why_a_trainer_gets_no_pod_is_asked_and_told() -> None:
    world = World({"failurePolicy.backoffSeconds": 0.0})
    await world.settle()
    world.servers_ready()
    await world.settle()
    uid = world.trainer()["metadata"]["uid"]
    event = {"message": 'pods "x" is forbidden: exceeded quota: gpus', "lastTimestamp": "2026-01-01T00:00:05Z"}

    def events_of_the_job(method: str, path: str) -> Any:
        return answer(200, {"metadata": {}, "items": [event]}) if f"involvedObject.uid%3D{uid}" in path else None

    world.server.fault = events_of_the_job
    outcome = await world.reconciler.reconcile(DEMO)
    assert outcome.again_after is not None
    assert "exceeded quota: gpus" in world.condition("TrainerRunning")["message"]
    assert world.condition("TrainerRunning")["reason"] == "FailedCreate"
    assert world.status["reason"] == 'trainer: FailedCreate (pods "x" is forbidden: exceeded quota: gpus)'


async def test_an_invalid_job_is_told_what_is_wrong_and_gets_nothing() -> None:
    world = World({"training.groupSize": 1})
    await world.settle()
    assert world.condition("Accepted")["status"] == "False"
    assert "spec.training.groupSize" in world.condition("Accepted")["message"]
    assert {key[0] for key in world.server.objects} == {"visionrljobs", "events"}
    assert world.events() == ["Invalid"]


@pytest.mark.parametrize(
    ("modes", "topology", "accepted"),
    [
        (["ReadWriteOnce"], "Any", False),
        (["ReadWriteOnce"], "DifferentNodes", False),
        (["ReadWriteOnce"], "SameNode", True),
        (["ReadWriteOncePod"], "SameNode", False),
        (["ReadWriteOnce", "ReadWriteMany"], "Any", True),
        (["ReadOnlyMany"], "DifferentNodes", True),
    ],
)
async def test_a_model_cache_that_two_nodes_cannot_mount_is_refused(
    modes: list[str], topology: str, accepted: bool
) -> None:
    world = World({"storage.modelCacheClaim": "models", "placement.topology": topology})
    metadata = {"name": "models", "namespace": "default"}
    world.server.put("persistentvolumeclaims", {"metadata": metadata, "spec": {"accessModes": modes}})
    await world.settle()
    assert (world.condition("Accepted")["status"] == "True") is accepted
    assert bool(world.server.of("deployments")) is accepted
    if not accepted:
        assert "models is ReadWriteOnce" in world.condition("Accepted")["message"]


async def test_a_job_that_runs_is_not_refused_for_its_cache() -> None:
    world = World({"storage.modelCacheClaim": "models"})
    await world.settle()
    metadata = {"name": "models", "namespace": "default"}
    world.server.put("persistentvolumeclaims", {"metadata": metadata, "spec": {"accessModes": ["ReadWriteOnce"]}})
    world.restart()
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"


async def test_events_that_cannot_be_posted_stop_nothing() -> None:
    world = World()
    world.server.fault = lambda method, path: (
        failure(403, "Forbidden") if path.partition("?")[0].endswith("/events") else None
    )
    await world.settle()
    assert len(world.server.of("deployments")) == 2


async def test_an_expired_job_is_deleted() -> None:
    world = await running({"lifecycle.ttlSecondsAfterFinished": 0})
    world.trainer_ends(0, "Completed")
    await world.reconcile()
    assert world.server.of("visionrljobs") == []


async def test_a_job_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    world = await running()
    world.job["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
    world.server.put("visionrljobs", world.job)
    assert await world.reconcile() == 0
    assert world.probes.followed is None
