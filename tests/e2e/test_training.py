"""A job trains in pods: applied with kubectl, looked after by an operator that helm installed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.release import Release
from tests.e2e.cluster_job import ClusterJob
from tests.e2e.conftest import tiny
from tests.e2e.surroundings import object_store, sidecars_first
from visionrl.adapters import verified_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

# What differs from configs/crafter-tiny.yaml: less of everything, and no limit on answers that mean nothing, for after
# so short a warm start there are many. The number of iterations is lowered when enough was seen.
SHORT = {
    "training.iterations": 1000,
    "training.groupsPerIteration": 2,
    "training.groupSize": 4,
    "training.updatesPerIteration": 2,
    "training.learningRate": 2e-4,
    "training.guards": {"maxInvalidRate": 1.0},
    "rollout.policyConfig.maxLlmCalls": 6,
    "rollout.maxConcurrent": 8,
    "evaluation.episodes": 8,
    "failurePolicy": {"backoffSeconds": 1},
}
WARM_START = {"training.warmStart": {"episodes": 10, "turns": 10, "steps": 60, "optimizer": "muon"}}


@pytest.fixture
def sidecar(kube: kube_cluster.Running) -> Iterator[dict[str, str]]:
    """Labels of pods that get a sidecar; none in a cluster of others, whose network does not reach this process."""
    if kube.cluster is None:
        yield {}
        return
    with sidecars_first(kube, kube.cluster) as labels:
        yield labels


def claim(volume: dict[str, Any]) -> dict[str, Any]:
    """One that is there before the job, for what it trains."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    spec |= {name: volume[name] for name in ("storageClassName",) if name in volume}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"}, "spec": spec}


def exported(run: ClusterJob) -> tuple[str, str]:
    """Whether, and where to."""
    found = run.condition("Exported")
    return found.get("status", ""), found.get("message", "")


def test_a_job_trains_through_everything_that_happens_to_it(
    kube: kube_cluster.Running,
    release: Release,
    job: Callable[[str], ClusterJob],
    volume: dict[str, Any],
    sidecar: dict[str, str],
    tmp_path: Path,
) -> None:
    """The operator comes late, dies, and is upgraded; the server is deleted, the trainer crashes, the job is suspended:
    it resumes from where it was, and completes. What it trained is copied, and fetched. All the while a sidecar that
    does not end by itself is the first container in the trainer's pods."""
    run = job("through")
    kube.kubectl.apply(claim(volume), namespace=release.namespace)
    storage = {**volume, "export": {"adapter": "pvc://kept/through"}}
    served = {"inference.vllm.apiServerCount": 2}
    run.apply(tiny({**SHORT, **WARM_START, **served, "storage": storage, "overrides.trainer.labels": sidecar}))
    assert run.children() == {}, "no operator runs yet"

    release.deploy("scope=namespaced")
    run.wait_for_phase("WarmStart")
    run.wait_for_iteration(1)
    assert run.condition("InferenceReady")["status"] == "True"
    assert "serves, content" in run.logs("trainer")
    assert "episode" in run.logs("taskapp")
    seen, (phase, shown) = run.iteration, run.row().split()[1:3]
    assert phase == "Running"
    assert seen <= int(shown) <= run.iteration

    # Neither another operator nor another release of the chart touches what runs.
    before = run.children()
    release.kill()
    run.wait_for_iteration(run.iteration + 1)
    release.deploy("scope=namespaced", "operator.workers=4")
    run.wait_for_iteration(run.iteration + 1)
    assert run.children() == before
    assert run.attempt == 0

    # Another server fetches the version that is to be served.
    [server] = run.pods("inference")
    run.kubectl("delete", "pod", server["metadata"]["name"])  # until it is gone
    run.wait_for_iteration(run.iterations_kept()[-1] + 2)  # one may have been played before
    assert "fetched adapter" in run.logs("inference")

    # Another trainer resumes from the checkpoint.
    if sidecar:
        [trainer] = run.pods("trainer")
        assert [each["name"] for each in trainer["spec"]["containers"]] == ["proxy", "trainer"]
    done = run.iteration
    run.signal_trainer("TERM")
    run.wait("the next attempt", lambda: run.attempt == 1)
    run.wait_to_go_on(after=done)
    assert "exit code 143" in run.status()["attempts"][0]["cause"]
    kept = run.iterations_kept()
    assert kept == list(range(1, len(kept) + 1)), "each once"

    # Suspended, it has no pods; the run folder stays.
    run.patch({"suspend": True})
    run.wait_for_phase("Suspended")
    run.wait("the pods to go", lambda: not run.pods())
    done = run.iteration
    run.patch({"suspend": False})
    run.wait_to_go_on(after=done)

    last = run.iteration + 2
    run.patch({"training": {"iterations": last}})
    run.wait_for_phase("Complete")
    status = run.status()
    assert status["progress"]["iteration"] >= last
    assert status["progress"]["evaluation"]["latestIteration"] == status["progress"]["iteration"]
    assert status["policy"]["trained"] == status["policy"]["serving"]
    assert status["restarts"] == 1, "suspension is no failure"
    run.wait("the server to go: GPUs are free at the end", lambda: not run.pods("inference"))
    assert run.row().split()[1] == "Complete"

    # Copied to a claim, and then, for that may be changed after the end, to an object store.
    run.wait("the copy", lambda: exported(run) == ("True", "pvc://kept/through"))
    result = run.status()["result"]
    [copy] = result["copies"]
    assert (copy["to"], result["version"]) == ("pvc://kept/through", status["policy"]["trained"])
    manifest = run.fetch(tmp_path / "fetched")
    assert manifest.digest == copy["digest"]
    if kube.cluster is not None:
        bound = kube.kubectl.get("pvc", "kept", "-n", release.namespace)["spec"]["volumeName"]
        assert verified_manifest(kube.cluster.root / "volumes" / bound / "through") == manifest
        with object_store(kube.cluster) as store:
            kube.kubectl.apply(store.secret, namespace=release.namespace)
            run.patch({"storage": {"export": {"adapter": "s3://kept/through", "secretName": "store"}}})
            run.wait("the second copy", lambda: exported(run) == ("True", "s3://kept/through"))
            assert run.status()["result"]["copies"] == [{**copy, "to": "s3://kept/through"}]
            assert store.manifest("through") == manifest

    run.delete()
    run.wait_gone()


def test_a_job_deleted_while_it_trains_leaves_nothing(operator: Release, job: Callable[[str], ClusterJob]) -> None:
    """Of a model that knows nothing, and from images that bring all that is compiled."""
    run = job("untaught")
    document = tiny(SHORT)
    del document["spec"]["training"]["warmStart"]
    run.apply(document)
    run.wait_for_iteration(1)
    assert [restarts for _, _, restarts in run.children().values() if restarts] == []
    assert compiled_beside_the_image(run) == []

    run.delete()
    run.wait_gone()


def compiled_beside_the_image(run: ClusterJob) -> list[str]:
    """What numba has compiled in a task app that plays; its image brings all of it compiled."""
    program = """
import json, os, pathlib
def entries(folder):
    return {str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*.nb[ci]")}
image, pod = entries(os.environ["VISIONRL_NUMBA_SEED"]), entries(os.environ["NUMBA_CACHE_DIR"])
assert image
print(json.dumps(sorted(pod ^ image)))
"""
    found: list[str] = json.loads(run.kubectl("exec", f"deployment/{run.name}-taskapp", "--", "python", "-c", program))
    return found
