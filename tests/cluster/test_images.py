"""The images start as the operator's pods: restricted, with a read-only root file system."""

from __future__ import annotations

import json
from typing import Any

import pytest

from visionrl.job import API_VERSION, KIND, Job
from visionrl_operator.children import all_children
from visionrl_operator.children.common import Owner, selector

from . import project_images
from .kube import cluster as kube_cluster
from .kube.host import wait_until

pytestmark = pytest.mark.cluster

SMALL = {"cpu": "100m", "memory": "6Gi"}
# One iteration of a model that knows nothing.
JOB: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "images"},
    "spec": {
        "model": {"base": "tiny", "dtype": "float32"},
        "taskApp": {"image": project_images.tag("taskapp"), "resources": {"cpu": "100m", "memory": "2Gi"}},
        "inference": {
            "image": project_images.tag("inference"),
            "resources": SMALL,
            "vllm": {"maxModelLen": 512},
        },
        "trainer": {"image": project_images.tag("trainer"), "resources": SMALL},
        "rollout": {
            "envConfig": {"imageSize": 144},
            "policyConfig": {"systemPrompt": "Play.", "maxTokens": 8, "maxLlmCalls": 2, "historyTurns": 0},
        },
        "training": {"iterations": 1, "groupsPerIteration": 1, "groupSize": 2},
        "evaluation": {"episodes": 0},
    },
}


@pytest.fixture
def job(kube: kube_cluster.Running, namespace: str) -> Job:
    """A job whose objects are there, as the operator would have made them, and nobody looks after them."""
    project_images.ensure(kube, "taskapp", "inference", "trainer")
    job = Job.model_validate(JOB)
    children = all_children(job, 1, Owner(job.name, namespace, uid="none"), key="secret")
    for child in children:
        del child["metadata"]["ownerReferences"]  # to an object that does not exist: they would be collected
    kube.kubectl.apply(*children, namespace=namespace)
    return job


def test_the_three_parts_of_a_job_do_their_work_in_restricted_pods(
    kube: kube_cluster.Running, namespace: str, job: Job
) -> None:
    def logs(part: str) -> str:
        return kube.kubectl("logs", "-l", selector_text(job, part), "--tail=60", "-n", namespace)

    for part in ("taskapp", "inference"):
        rollout = ("rollout", "status", f"deployment/{job.name}-{part}", "--timeout=300s", "-n", namespace)
        assert kube.kubectl.succeeds(*rollout), logs(part)
    assert compiled_beside_the_image(kube, f"deployment/{job.name}-taskapp", namespace) == []

    def outcome() -> list[str]:
        status = kube.kubectl.get("job", f"{job.name}-trainer-1", "-n", namespace)["status"]
        return [condition["type"] for condition in status.get("conditions", [])]

    wait_until(lambda: bool(outcome()), "the trainer's end", 300, 1)
    assert outcome() == ["Complete"], logs("trainer")
    pods = kube.kubectl.get("pods", "-l", selector_text(job), "-n", namespace)["items"]
    assert [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods] == [0, 0, 0]


def compiled_beside_the_image(kube: kube_cluster.Running, pod: str, namespace: str) -> list[str]:
    """What numba has compiled in a task app that is ready; its image brings all of it compiled."""
    program = """
import json, os, pathlib
def entries(folder):
    return {str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*.nb[ci]")}
image, pod = entries(os.environ["VISIONRL_NUMBA_SEED"]), entries(os.environ["NUMBA_CACHE_DIR"])
assert image
print(json.dumps(sorted(pod ^ image)))
"""
    found: list[str] = json.loads(kube.kubectl("exec", pod, "-n", namespace, "--", "python", "-c", program))
    return found


def test_the_operators_image_lacks_what_it_does_not_need(kube: kube_cluster.Running, namespace: str) -> None:
    project_images.ensure(kube, "operator")
    program = (
        "import importlib.util as u, os; print(os.getuid(), [n for n in ('torch', 'numpy', 'pip') if u.find_spec(n)])"
    )
    words = ["run", "look", f"--image={project_images.tag('operator')}", "--restart=Never", "-n", namespace]
    kube.kubectl(*words, "--command", "--", "python", "-c", program)
    phase = ("wait", "pod/look", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s", "-n", namespace)
    kube.kubectl(*phase)
    assert kube.kubectl("logs", "look", "-n", namespace).strip() == "10001 []"


def selector_text(job: Job, part: str | None = None) -> str:
    labels = selector(job.name)
    if part is not None:
        labels |= {"app.kubernetes.io/component": part}
    return ",".join(f"{name}={value}" for name, value in labels.items())
