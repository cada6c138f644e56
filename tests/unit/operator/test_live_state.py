"""The cluster is not quiet: people, policies and upgrades change what the operator made."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest

from tests.support.fake_api import Died
from tests.support.jobs import document
from tests.support.reconciling import CLAIM, DEMO, World, running
from visionrl_core.container_images import named
from visionrl_core.manifests import pods
from visionrl_core.manifests.common import Ref
from visionrl_operator import reconciler, repairs
from visionrl_operator.questions import STARTING_CHECK_SECONDS


def scale(world: World, replicas: int, name: str = "demo-inference") -> None:
    """``kubectl scale``."""
    found = copy.deepcopy(world.server.get("deployments", name))
    found["spec"]["replicas"] = replicas
    world.server.put("deployments", found)


def replicas(world: World, name: str = "demo-inference") -> int:
    found: int = world.server.get("deployments", name)["spec"]["replicas"]
    return found


def templates(world: World) -> dict[str, Any]:
    return {
        found["metadata"]["name"]: copy.deepcopy(found["spec"]["template"]) for found in world.server.of("deployments")
    }


# --- drift


async def test_a_server_that_somebody_scaled_to_zero_comes_back_and_an_event_says_so() -> None:
    world = await running()
    scale(world, 0)
    await world.settle()
    assert replicas(world) == 1
    [event] = [event for event in world.server.of("events") if event["reason"] == "Repaired"]
    assert event["message"] == "Deployment/demo-inference: spec.replicas"


async def test_edits_of_configuration_and_addresses_are_undone() -> None:
    world = await running()
    config = copy.deepcopy(world.server.get("configmaps", "demo-config"))
    before = copy.deepcopy(config["data"])
    config["data"]["job.json"] = config["data"]["job.json"].replace("5e-05", "0.5")
    world.server.put("configmaps", config)
    service = copy.deepcopy(world.server.get("services", "demo-trainer"))
    service["spec"]["selector"] = {"app": "another"}
    world.server.put("services", service)
    await world.settle()
    assert world.server.get("configmaps", "demo-config")["data"] == before
    assert world.server.get("services", "demo-trainer")["spec"]["selector"]["visionrl.dev/job"] == "demo"


async def test_drift_that_happened_while_no_operator_ran_is_found() -> None:
    world = await running()
    scale(world, 0)
    world.restart()
    await world.settle()
    assert replicas(world) == 1


async def test_a_claim_that_somebody_has_grown_is_left_alone() -> None:
    world = await running()
    claim = copy.deepcopy(world.server.get("persistentvolumeclaims", CLAIM.name))
    claim["spec"]["resources"]["requests"]["storage"] = "10Gi"
    world.server.put("persistentvolumeclaims", claim)
    assert await world.reconcile() == 0


async def test_a_quiet_job_is_looked_at_again() -> None:
    world = await running()
    again = [(await world.reconciler.reconcile(DEMO)).again_after or 0 for _ in range(20)]
    assert all(0.8 * reconciler.RESYNC_SECONDS <= wait <= 1.2 * reconciler.RESYNC_SECONDS for wait in again)
    assert len(set(again)) > 1, "not all jobs at the same moment"


# --- the brake


def lose_label(world: World, plural: str, kind: str, name: str) -> None:
    """Somebody removes the label that watches select by: to the watch, the object is gone."""
    found = copy.deepcopy(world.server.get(plural, name))
    before = copy.deepcopy(found)
    del found["metadata"]["labels"]["visionrl.dev/job"]
    world.server.put(plural, found)
    before["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
    world.store.remove(kind, before)


async def test_an_object_whose_label_was_removed_gets_it_back_once() -> None:
    world = await running()
    lose_label(world, "deployments", "Deployment", "demo-inference")
    assert await world.reconcile() > 0
    assert "visionrl.dev/job" in world.server.get("deployments", "demo-inference")["metadata"]["labels"]
    await world.settle(passes=3)
    assert Ref("Deployment", "demo-inference") in world.store.owned(DEMO), "what seemed gone has come back"


async def test_a_claim_whose_label_was_removed_is_not_declared_lost() -> None:
    world = await running()
    lose_label(world, CLAIM.kind.lower() + "s", CLAIM.kind, CLAIM.name)
    await world.settle(passes=3)
    assert world.condition("ResultKept")["reason"] == "ClaimMade"
    assert CLAIM in world.store.owned(DEMO)


async def test_a_claim_that_was_deleted_is_told_and_made_anew() -> None:
    world = await running()
    lost = world.server.objects.pop(("persistentvolumeclaims", "default", CLAIM.name))
    world.store.remove(CLAIM.kind, lost)
    await world.settle()
    assert "ClaimLost" in world.events()
    assert world.condition("ResultKept")["reason"] == "ClaimMadeAnew"
    assert world.server.get("persistentvolumeclaims", CLAIM.name)["metadata"]["uid"] != lost["metadata"]["uid"]


async def test_a_trainer_whose_label_was_removed_is_not_declared_deleted() -> None:
    world = await running()
    uid = world.trainer()["metadata"]["uid"]
    lose_label(world, "jobs", "Job", "demo-trainer-0")
    await world.settle(passes=4)
    assert (world.status["phase"], world.status.get("attempt", 0)) == ("Running", 0)
    assert world.trainer()["metadata"]["uid"] == uid
    assert world.trainer()["metadata"]["labels"]["visionrl.dev/job"] == "demo"
    assert world.trainer()["metadata"]["labels"]["visionrl.dev/attempt"] == "0"


async def test_a_trainer_that_was_deleted_is_still_declared_deleted() -> None:
    world = await running()
    gone = world.server.objects.pop(("jobs", "default", "demo-trainer-0"))
    world.store.remove("Job", gone)
    await world.reconcile()
    assert world.status["attempt"] == 1


async def test_a_policy_that_strips_our_annotations_costs_no_writes() -> None:
    world = World()
    store = world.server.put

    def stripping(plural: str, body: Any) -> Any:
        if plural == "services":
            body["metadata"].pop("annotations", None)
        return store(plural, body)

    world.server.put = stripping  # type: ignore[method-assign]
    await world.settle(passes=3)
    for _ in range(5):
        assert await world.reconcile() == 0
    assert "Drifted" not in {condition["type"] for condition in world.status["conditions"]}, "it harms nobody"


async def test_a_policy_that_changes_what_matters_is_shown_and_costs_no_writes() -> None:
    world = World()
    store = world.server.put

    def scaling(plural: str, body: Any) -> Any:
        if plural == "deployments":
            body["spec"]["replicas"] = 0
        return store(plural, body)

    world.server.put = scaling  # type: ignore[method-assign]
    await world.settle(passes=4)
    assert world.condition("Drifted")["status"] == "True"
    assert "spec.replicas" in world.condition("Drifted")["message"]


async def test_repairs_that_do_not_stick_come_less_and_less_often_and_are_shown() -> None:
    world = await running()
    repaired = 0
    for _ in range(360):  # another controller sets it to 0 every ten seconds, for an hour
        world.seconds += 10
        scale(world, 0)
        world.server.deliver(world.store)
        before = len(world.server.writes)
        result = await world.reconciler.reconcile(DEMO)
        wrote = [write for write in world.server.writes[before:] if "deployments" in write]
        repaired += len(wrote)
        assert wrote or result.again_after is not None
    assert 3 < repaired < 20
    assert world.condition("Drifted")["status"] == "True"
    assert "Deployment/demo-inference: spec.replicas, repaired" in world.condition("Drifted")["message"]
    assert world.events().count("Repaired") <= repairs.CONTESTED_REPAIRS

    world.seconds += repairs.LONGEST_DELAY_SECONDS  # the other one gives up
    await world.settle()
    assert replicas(world) == 1
    world.seconds += 2 * repairs.HEALED_SECONDS
    await world.settle()
    assert world.condition("Drifted")["status"] == "False"


async def test_another_controller_that_deletes_what_we_make_is_braked_too() -> None:
    world = await running()
    made = 0
    for _ in range(60):
        world.seconds += 10
        gone = world.server.objects.pop(("services", "default", "demo-trainer"), None)
        if gone is not None:
            made += 1
            world.store.remove("Service", gone)
        world.server.deliver(world.store)
        await world.reconciler.reconcile(DEMO)
    assert made < 15


# --- an operator of another version


async def test_an_upgrade_restarts_no_server_of_a_running_job(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await running()
    before = templates(world)
    monkeypatch.setattr(pods, "STOP_SECONDS", 77)
    world.restart()
    await world.settle()
    assert templates(world) == before
    scale(world, 0)
    await world.settle()
    assert replicas(world) == 1
    assert templates(world) == before, "a repair goes back to the template that the server was made with"


async def test_a_new_attempt_takes_the_new_template(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await running()
    monkeypatch.setattr(pods, "STOP_SECONDS", 77)
    world.restart()
    world.trainer_ends(1)
    await world.settle()
    world.server.finish_deletions(world.store)
    await world.settle()
    assert world.trainer()["metadata"]["name"] == "demo-trainer-1"
    assert world.trainer()["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 77


async def test_a_change_that_restarts_a_server_brings_the_new_template(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await running()
    before = templates(world)
    monkeypatch.setattr(pods, "STOP_SECONDS", 77)
    world.restart()
    world.change(taskApp={"resources": {"cpu": "2", "memory": "2Gi"}})
    await world.settle()
    after = templates(world)
    assert after["demo-taskapp"]["spec"]["terminationGracePeriodSeconds"] == 77
    assert after["demo-inference"] == before["demo-inference"]


async def test_servers_of_an_operator_that_kept_no_template_are_not_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await running()
    for found in world.server.of("deployments"):
        for name in ("template", "template-inputs"):
            del found["metadata"]["annotations"][f"visionrl.dev/{name}"]
        for name in ("key", "job-uid"):
            del found["spec"]["template"]["metadata"]["annotations"][f"visionrl.dev/{name}"]
        found["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"  # a default of the API server
        world.server.put("deployments", found)
    del world.job["status"]["accepted"]
    before = templates(world)
    monkeypatch.setattr(pods, "STOP_SECONDS", 77)
    world.restart()
    await world.settle()
    assert templates(world) == before


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_deleted_configmap_does_not_forget_what_was_accepted(restarted: bool) -> None:
    world = await running()
    before, served = copy.deepcopy(world.server.get("configmaps", "demo-config")["data"]), templates(world)
    world.change(training={**document()["spec"]["training"], "groupSize": 3})
    gone = world.server.objects.pop(("configmaps", "default", "demo-config"))
    world.store.remove("ConfigMap", gone)
    if restarted:
        world.images = named("registry.example/", "9.9")
        world.restart()
    await world.settle()
    assert world.server.get("configmaps", "demo-config")["data"] == before
    assert templates(world) == served
    assert world.condition("Accepted")["reason"] == "Immutable"


# --- the key


def key_of(template: Any) -> str:
    found: str = template["metadata"]["annotations"]["visionrl.dev/key"]
    return found


async def test_a_deleted_secret_makes_all_components_start_again_with_the_new_key() -> None:
    world = await running()
    [old] = {key_of(template) for template in templates(world).values()}
    del world.server.objects["secrets", "default", "demo-key"]
    world.seconds += reconciler.SECRET_CHECK_SECONDS
    await world.settle()
    [new] = {key_of(template) for template in templates(world).values()}
    assert new != old
    [attempt] = world.status["attempts"]
    assert (world.status["attempt"], attempt["counted"]) == (1, False)
    assert "key was replaced" in attempt["cause"]
    assert world.condition("InferenceReady")["reason"] == "KeyReplaced", "the old pods serve nobody"

    world.server.finish_deletions(world.store)
    await world.settle()
    assert world.server.of("jobs") == [], "the trainer comes after the servers"
    for component in ("taskapp", "inference"):
        world.run_pod(component, f"rs-new-{component}")
    world.change(failurePolicy={"backoffSeconds": 0.0})
    await world.settle()
    assert key_of(world.trainer()["spec"]["template"]) == new


@pytest.mark.parametrize("lives", range(9))
async def test_killed_after_any_write_of_a_rotation_all_components_get_one_key(lives: int) -> None:
    world = await running()
    [old] = {key_of(template) for template in templates(world).values()}
    del world.server.objects["secrets", "default", "demo-key"]
    world.seconds += reconciler.SECRET_CHECK_SECONDS
    world.server.lives = lives
    with contextlib.suppress(Died):
        for _ in range(3):
            await world.reconcile()
    world.restart()
    await world.settle()
    [new] = {key_of(template) for template in templates(world).values()}
    assert new != old
    assert len(world.server.of("secrets")) == 1
    assert (world.status["attempt"], world.status.get("restarts", 0)) == (1, 0)
    assert "deletionTimestamp" in world.server.get("jobs", "demo-trainer-0")["metadata"]


async def test_a_secret_that_pods_wait_for_is_made_at_once() -> None:
    world = World()
    await world.settle()
    pending = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    name = world.run_pod("taskapp", "rs-taskapp")
    world.server.get("pods", name)["status"] = pending
    del world.server.objects["secrets", "default", "demo-key"]
    world.server.deliver(world.store)
    result = await world.reconciler.reconcile(DEMO)
    assert result.again_after is not None
    assert result.again_after <= STARTING_CHECK_SECONDS
    world.seconds += STARTING_CHECK_SECONDS
    await world.reconcile()
    assert world.server.get("secrets", "demo-key")


async def test_a_restarted_operator_does_not_replace_the_key() -> None:
    world = await running()
    before = templates(world)
    world.restart()
    assert await world.reconcile() == 0
    assert templates(world) == before


# --- a former job of the same name


async def test_pods_of_a_deleted_job_of_the_same_name_are_not_this_jobs_servers() -> None:
    world = World()
    await world.settle()
    for component in ("taskapp", "inference"):
        world.run_pod(component, f"rs-old-{component}", annotations={"visionrl.dev/job-uid": "former"})
    await world.settle()
    assert world.condition("TaskAppReady")["status"] == "False"
    assert world.server.of("jobs") == []
    for component in ("taskapp", "inference"):
        world.run_pod(component, f"rs-{component}")
    await world.settle()
    assert world.condition("TaskAppReady")["status"] == "True"
