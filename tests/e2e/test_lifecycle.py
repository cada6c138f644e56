"""What happens to jobs around their training. They imitate the scripted player and stop."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.release import Release
from tests.e2e.cluster_job import ClusterJob
from tests.e2e.conftest import supervised

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

GPU = "nvidia.com/gpu"
FOREVER, BRIEF = 1_000_000, 2
LOST = "The container could not be located when the pod was deleted."
"""What a kubelet reports of a container that it lost while it ended (reason ContainerStatusUnknown): then there is no
log of it any more."""


def test_a_third_job_waits_for_a_gpu_and_starts_when_one_is_free(
    kube: kube_cluster.Running, operator: Release, job: Callable[[str], ClusterJob]
) -> None:
    """The first two hold the GPUs while their image is pulled; the third finds that its GPU is a pretended one."""
    nodes = kube.kubectl.get("nodes")["items"]
    if sum(int(node["status"]["allocatable"].get(GPU, 0)) for node in nodes) != 2:
        pytest.skip("needs a cluster with two GPUs, or two that are pretended")
    first, second, third = (job(name) for name in ("first", "second", "third"))
    for run in (first, second):
        run.apply(supervised(FOREVER, {"trainer.gpu": {}, "trainer.image": "localhost/visionrl-trainer:none"}))
    first.wait("its image", lambda: "Image" in first.reason)
    second.wait("its image", lambda: "Image" in second.reason)
    third.apply(supervised(BRIEF, {"trainer.gpu": {}}))
    third.wait("the reason", lambda: GPU in third.reason)
    assert third.phase == "Pending"
    assert f"Insufficient {GPU}" in third.row()
    assert (first.phase, second.phase) == ("Starting", "Starting")

    first.patch({"lifecycle": {"activeDeadlineSeconds": 1}})
    first.wait_for_phase("Failed")
    assert first.condition("Failed")["reason"] == "ActiveDeadlineExceeded"
    third.wait_for_phase("Failed")
    assert third.condition("Failed")["reason"] == "ConfigurationError"
    assert "computes on CPUs only" in third.condition("Failed")["message"]
    assert second.phase == "Starting"
    for run in (first, second, third):
        run.delete()
    for run in (first, second, third):
        run.wait_gone()


def test_a_trainer_that_fails_for_good_leaves_its_reason_and_its_log(
    operator: Release, job: Callable[[str], ClusterJob]
) -> None:
    run, hung = job("fails"), job("hangs")
    hung.apply(supervised(FOREVER, {"failurePolicy": {"maxRestarts": 0}}))
    run.apply(supervised(BRIEF, {"model.base": "/no/such/model", "training.warmStart.trains": "adapter"}))
    run.wait_for_phase("Failed")
    failed = run.condition("Failed")
    assert failed["reason"] == "ConfigurationError", "another attempt would fail alike"
    assert "exit code 2" in failed["message"]
    assert "/no/such/model" in failed["message"]
    assert "/no/such/model" in run.row()
    assert run.attempt == 0
    run.wait("the task app to go", lambda: not run.pods("taskapp"), fails=True)
    assert "/no/such/model" in run.logs("trainer")

    hung.wait_for_phase("WarmStart")
    hung.signal_trainer("STOP")
    hung.patch({"lifecycle": {"progressDeadlineSeconds": 1}})
    hung.wait_for_phase("Failed")
    assert "NoProgress" in hung.condition("Failed")["message"]
    hung.signal_trainer("CONT")  # it ends now, instead of after its grace period
    log = ("INFO stopped", LOST)
    hung.wait("its last lines", lambda: any(words in hung.status()["failureLog"] for words in log), fails=True)
    for each in (run, hung):
        each.delete()
    for each in (run, hung):
        each.wait_gone()


def test_a_job_deleted_in_any_phase_leaves_nothing(operator: Release, job: Callable[[str], ClusterJob]) -> None:
    """But *Running*, *Complete* and *Failed*: jobs of other tests end there, and are deleted then."""
    no_restart = {"failurePolicy": {"backoffSeconds": 300}}
    runs = {
        "Pending": (job("waits"), supervised(FOREVER, {"trainer.gpu": {"products": ["of-no-node"]}})),
        "Starting": (job("lacks-image"), supervised(FOREVER, {"trainer.image": "localhost/visionrl-trainer:none"})),
        "WarmStart": (job("learns"), supervised(FOREVER)),
        "Suspended": (job("rests"), supervised(FOREVER)),
        "Restarting": (job("crashes"), supervised(FOREVER, no_restart)),
    }
    for run, document in runs.values():
        run.apply(document)
    pending, starting = runs["Pending"][0], runs["Starting"][0]
    pending.wait("the reason", lambda: "affinity" in pending.reason)
    starting.wait("the reason", lambda: "Image" in starting.reason)
    for phase in ("WarmStart", "Suspended", "Restarting"):
        runs[phase][0].wait_for_phase("WarmStart")
    runs["Suspended"][0].patch({"suspend": True})
    runs["Restarting"][0].signal_trainer("TERM")

    for phase, (run, _) in runs.items():
        run.wait_for_phase(phase)
        run.delete()
    for run, _ in runs.values():
        run.wait_gone()


def test_a_trainer_deleted_while_it_loads_ends_at_once(operator: Release, job: Callable[[str], ClusterJob]) -> None:
    run = job("loads")
    run.apply(supervised(FOREVER))
    run.wait("the trainer's container", lambda: run.trainer_runs)
    end = run.end_of_a_deleted_trainer()
    assert end["exitCode"] == 128 + signal.SIGTERM, "killed after its grace period, in which it held its GPU"
    run.wait_gone()
