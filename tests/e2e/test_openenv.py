"""An OpenEnv server by its image, beside the task app, as docs/environments.md has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster import project_images
from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.kube import images as kube_images
from tests.cluster.release import Release
from tests.e2e.cluster_job import ClusterJob
from tests.e2e.conftest import supervised

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SERVER = project_images.REPOSITORY / "tests" / "support" / "openenv_server"
GAME = {
    "url": "http://127.0.0.1:8080",
    "actions": {"up": {"add": 1}, "stay": {"add": 0}},
    "imageField": "screen",
    "imageEncoding": "flat",
    "shapeField": "shape",
    "imageSize": 64,
}


@pytest.fixture(scope="module")
def image(kube: kube_cluster.Running, images: None) -> str:
    """The server's image, in the cluster."""
    if kube.cluster is None:
        pytest.skip("the image is built for a cluster of ours")
    tag = f"{project_images.PREFIX}openenv:{project_images.TAG}"
    kube_images.build(SERVER, tag, {"BASE": kube_images.BASE})
    kube.load(tag)
    return tag


def test_the_games_of_an_openenv_image_are_played_and_learned_from_in_pods(
    operator: Release, job: Callable[[str], ClusterJob], image: str
) -> None:
    games: dict[str, Any] = {"name": "games", "image": image, "imagePullPolicy": "Never"}
    run = job("openenv")
    run.apply(
        supervised(
            2,
            {
                "rollout.envName": "openenv",
                "rollout.envConfig": GAME,
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
