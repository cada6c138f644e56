"""Environments of users in pods, as docs/environments.md has them: the example's image, built FROM the task app's, and
an OpenEnv server's, which knows nothing of us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from recipes.learn.jobs import changed
from tests.cluster import project_images
from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.kube import images as kube_images
from tests.cluster.release import Release
from tests.e2e.cluster_job import ClusterJob
from tests.e2e.conftest import supervised, supervision

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EXAMPLE = project_images.REPOSITORY / "examples" / "own-environment"
OPENENV_SERVER = project_images.REPOSITORY / "tests" / "support" / "openenv_server"
OPENENV_GAME = {
    "url": "http://127.0.0.1:8080",
    "actions": {"up": {"add": 1}, "stay": {"add": 0}},
    "imageField": "screen",
    "imageEncoding": "flat",
    "shapeField": "shape",
    "imageSize": 64,
}
TASK_INFO = """
import os, urllib.request
key = open(os.environ["VISIONRL_KEY_FILE"]).read().strip()
asked = urllib.request.Request("http://127.0.0.1:8000/task_info", headers={"X-API-Key": key})
print(urllib.request.urlopen(asked).read().decode())
"""


def in_the_cluster(kube: kube_cluster.Running, name: str, folder: Path, bases: dict[str, str]) -> str:
    """The tag of an image that is built and brought there."""
    if kube.cluster is None:
        pytest.skip("the image is built for a cluster of ours")
    tag = f"{project_images.PREFIX}{name}:{project_images.TAG}"
    kube_images.build(folder, tag, bases)
    kube.load(tag)
    return tag


@pytest.fixture(scope="module")
def image(kube: kube_cluster.Running, images: None) -> str:
    """The example's."""
    bases = {"BASE": project_images.tag("taskapp"), "PYTHON": kube_images.BASE}
    return in_the_cluster(kube, "treasure", EXAMPLE, bases)


def treasure(image: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The example's job, shortened."""
    found: dict[str, Any] = YAML(typ="safe").load(EXAMPLE / "job.yaml")
    found["spec"].pop("inference")
    short = {**supervision(2), "storage": {"ephemeral": True}, "lifecycle.cleanupPolicy": "KeepAll"}
    return changed(found, {**short, "taskApp.image": image, **changes})


def test_an_environment_of_ones_own_is_played_and_learned_from_in_pods(
    operator: Release, job: Callable[[str], ClusterJob], image: str
) -> None:
    run = job("treasure")
    run.apply(treasure(image, {}))
    run.wait_for_phase("Complete")
    told = json.loads(run.kubectl("exec", f"deployment/{run.name}-taskapp", "--", "python", "-c", TASK_INFO))
    assert told["environment"] == "treasure"
    assert told["action_space"]["actions"] == ["up", "down", "left", "right"]
    assert [score["name"] for score in told["scores"]] == ["treasure", "steps"]


def test_settings_that_the_environment_refuses_reach_the_jobs_condition(
    operator: Release, job: Callable[[str], ClusterJob], image: str
) -> None:
    run = job("refused")
    run.apply(treasure(image, {"rollout.envConfig.cells": 99}))
    run.wait_for_phase("Failed")
    failed = run.condition("Failed")
    assert failed["reason"] == "ConfigurationError"
    assert "taskApp: exit code 2" in failed["message"]
    assert "spec.rollout.envConfig.cells" in failed["message"]


def test_a_task_app_of_its_own_plays_for_a_job_in_pods(
    operator: Release, job: Callable[[str], ClusterJob], image: str, tmp_path: Path
) -> None:
    run, file = job("plays-elsewhere"), tmp_path / "app.yaml"
    app = treasure(image, {})
    app["metadata"]["name"] = "app"
    file.write_text(json.dumps(app))
    try:
        url = run.visionrl("task-app", "deploy", str(file), "--namespace", run.namespace, "--timeout", "900").strip()
        document = treasure(image, {})
        document["spec"]["taskApp"] = {"url": url, "keySecret": {"name": "app-key", "key": "api-key"}}
        run.apply(document)
        run.wait_for_phase("Complete")
        assert not run.pods("taskapp"), "it has learned from the other's episodes"
        run.delete()
        run.wait_gone()
    finally:
        names = ("deployment/app-taskapp", "service/app-taskapp", "configmap/app-config", "secret/app-key")
        run.kubectl("delete", "--ignore-not-found", *names)


def test_the_games_of_an_openenv_image_are_played_and_learned_from_in_pods(
    kube: kube_cluster.Running, operator: Release, job: Callable[[str], ClusterJob]
) -> None:
    server = in_the_cluster(kube, "openenv", OPENENV_SERVER, {"BASE": kube_images.BASE})
    games = {"name": "games", "image": server, "imagePullPolicy": "Never"}
    run = job("openenv")
    run.apply(
        supervised(
            2,
            {
                "rollout.envName": "openenv",
                "rollout.envConfig": OPENENV_GAME,
                "training.warmStart.player": "random",
                "overrides.taskApp.podTemplate": {"spec": {"containers": [games]}},
                "lifecycle.cleanupPolicy": "KeepAll",
            },
        )
    )
    run.wait_for_phase("Complete")
    [pod] = run.pods("taskapp")
    assert [(status["name"], status["ready"]) for status in pod["status"]["containerStatuses"]] == [
        ("games", True),
        ("taskapp", True),
    ]
