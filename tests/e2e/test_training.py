"""A job trains in pods: applied with kubectl, looked after by an operator that helm installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.release import Release
from tests.e2e.conftest import ClusterJob, config, on_cpu

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ITERATIONS = 16


def short(document: dict[str, Any], **training: object) -> dict[str, Any]:
    """The tiny configuration, cut down to minutes; the run folder outlives its pods."""
    spec = document["spec"]
    spec["training"] |= {
        "iterations": ITERATIONS,
        "groupsPerIteration": 2,
        "groupSize": 4,
        "updatesPerIteration": 2,
        "learningRate": 2e-4,
        "warmStart": {"episodes": 40, "steps": 200, "turns": 20, "optimizer": "muon"},
        **training,
    }
    spec["rollout"]["policyConfig"]["maxLlmCalls"] = 6
    spec["rollout"]["maxConcurrent"] = 8
    spec["evaluation"] = {"episodes": 8}
    spec["storage"] = {"runSize": "1Gi", "storageClassName": "visionrl-local"}
    spec["failurePolicy"] = {"backoffSeconds": 1}
    return document


def test_a_job_trains_in_pods_through_everything_that_happens_to_it(
    release: Release, job: Callable[[str], ClusterJob]
) -> None:
    """Its server is deleted, its trainer is ended, it is suspended, its operator is replaced: it completes, once."""
    run = job("through")
    run.apply(short(on_cpu(config("crafter-tiny.yaml"), run.name)))
    run.wait("the warm start", lambda: run.phase == "WarmStart")
    run.wait("the first iteration", lambda: run.iteration >= 1)
    assert run.condition("InferenceReady")["status"] == "True"
    assert "serves: differs by" in run.logs("trainer")
    assert "episode" in run.logs("taskapp")

    # The server comes back and serves the current version with nobody's help.
    before, [server] = run.iteration, run.pods("inference")
    run.kubectl("delete", "pod", server["metadata"]["name"], "--wait=false")
    run.wait("an iteration after the server was deleted", lambda: run.iteration > before)
    assert [pod["metadata"]["uid"] for pod in run.pods("inference")] != [server["metadata"]["uid"]]

    # Another trainer goes on from the checkpoint.
    before, [trainer] = run.iteration, run.pods("trainer")
    run.kubectl("exec", trainer["metadata"]["name"], "--", "sh", "-c", "kill 1")
    run.wait("the next attempt", lambda: run.status()["attempt"] >= 1)
    run.wait("an iteration after the trainer was ended", lambda: run.iteration > before)

    # Suspended: no pods, the run folder stays; then it goes on where it was.
    run.patch({"suspend": True})
    run.wait("the pods to go", lambda: not run.pods())
    assert run.condition("Suspended")["status"] == "True"
    before = run.iteration
    release.deploy("scope=namespaced", "operator.workers=4")  # a new operator, while nothing runs
    run.patch({"suspend": False})
    run.wait("training to go on", lambda: run.iteration > before or run.phase == "Complete")

    run.wait("the end", lambda: run.phase == "Complete")
    status = run.status()
    assert status["progress"]["iteration"] == ITERATIONS
    assert status["progress"]["evaluation"]["latestIteration"] == ITERATIONS
    assert status["policy"]["trained"] == status["policy"]["serving"]
    causes = [attempt["cause"] for attempt in status["attempts"] if attempt.get("cause")]
    assert any("143" in cause for cause in causes), causes
    assert not run.pods("inference"), "the GPUs are free at the end"

    row = run.kubectl("get", "vrl", run.name, "--no-headers")
    assert "Complete" in row
    run.kubectl("delete", "vrl", run.name)
    run.wait_gone()


def test_a_third_job_waits_for_a_gpu_and_says_so(release: Release, job: Callable[[str], ClusterJob]) -> None:
    """The node has two GPUs. Jobs that never start their model hold one each."""
    first, second, third = (job(name) for name in ("first", "second", "third"))
    for run in (first, second, third):
        document = short(on_cpu(config("crafter-tiny.yaml"), run.name))
        document["spec"]["trainer"]["gpu"] = {"count": 1}
        run.apply(document)
        run.wait("a trainer", lambda run=run: bool(run.pods("trainer")))
    third.wait("the reason", lambda: "nvidia.com/gpu" in third.status().get("reason", ""))
    assert {first.phase, second.phase} <= {"Starting", "WarmStart", "Running"}
    first.kubectl("delete", "vrl", first.name)
    third.wait("its turn", lambda: third.phase in ("WarmStart", "Running"))
    for run in (second, third):
        run.kubectl("delete", "vrl", run.name, "--wait=false")
        run.wait_gone()


@pytest.mark.parametrize("phase", ["Pending", "Starting", "WarmStart"])
def test_a_job_deleted_in_any_phase_leaves_nothing(
    phase: str, release: Release, job: Callable[[str], ClusterJob]
) -> None:
    run = job(f"gone-in-{phase.lower()}")
    run.apply(short(on_cpu(config("crafter-tiny.yaml"), run.name)))
    if phase != "Pending":
        run.wait(phase, lambda: run.phase == phase)
    run.kubectl("delete", "vrl", run.name)
    run.wait_gone()


def test_a_job_that_contradicts_itself_says_which_field(release: Release, job: Callable[[str], ClusterJob]) -> None:
    run = job("wrong")
    document = on_cpu(config("crafter-tiny.yaml"), run.name)
    document["spec"]["training"]["groupSize"] = 1
    run.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    run.wait("the verdict", lambda: bool(run.condition("Accepted")), fails=True)
    accepted = run.condition("Accepted")
    assert accepted["status"] == "False"
    assert "spec.training.groupSize" in accepted["message"]
    assert run.pods() == []
