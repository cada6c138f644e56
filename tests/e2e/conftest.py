"""An operator that helm installs, and jobs that it looks after. A module's tests share both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
from ruamel.yaml import YAML

from recipes.learn.jobs import changed
from tests.cluster import project_images
from tests.cluster.conftest import kube, temporary_namespace  # noqa: F401  (a fixture of these tests, too)
from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.kube.manifests import STORAGE_CLASS
from tests.cluster.release import Release
from tests.e2e.cluster_job import ClusterJob
from visionrl_core.crd import SHORT_NAME


@pytest.fixture(scope="session")
def images(kube: kube_cluster.Running) -> None:  # noqa: F811
    project_images.ensure(kube, *project_images.PARTS)


@pytest.fixture(scope="module")
def release(kube: kube_cluster.Running, images: None) -> Iterator[Release]:  # noqa: F811
    """The definition is there, and an operator for one namespace that is scaled to zero: release.start()."""
    with temporary_namespace(kube) as namespace:
        made = Release(kube, namespace)
        made.deploy("scope=namespaced", "operator.replicas=0")
        yield made
        made.uninstall()


@pytest.fixture(scope="module")
def operator(release: Release) -> Release:
    """The operator works."""
    release.deploy("scope=namespaced")
    return release


@pytest.fixture
def job(kube: kube_cluster.Running, release: Release) -> Iterator[Callable[[str], ClusterJob]]:  # noqa: F811
    yield partial(ClusterJob, kube, release.namespace)
    # Of a test that failed: its pods hold what the next one needs.
    kube.kubectl("delete", SHORT_NAME, "--all", "--namespace", release.namespace, "--wait=false")


@pytest.fixture(scope="session")
def volume(kube: kube_cluster.Running) -> dict[str, Any]:  # noqa: F811
    """``spec.storage`` of a job whose run folder outlives its pods; on a cluster of others, of its default class."""
    return {
        "runSize": "1Gi",
        "retention": {"whenDeleted": "Delete"},
        **({"storageClassName": STORAGE_CLASS} if kube.cluster else {}),
    }


def tiny(changes: Mapping[str, Any]) -> dict[str, Any]:
    """``configs/crafter-tiny.yaml`` with values set at dotted paths below ``spec``; without a claim, unless one is
    asked for: a cluster has few volumes."""
    found: dict[str, Any] = YAML(typ="safe").load(project_images.REPOSITORY / "configs" / "crafter-tiny.yaml")
    return changed(found, {"storage": {"ephemeral": True}, **changes})


def supervision(steps: int) -> dict[str, Any]:
    """Changes that make a job one of so many supervised steps on two short episodes: its pods are real and need no
    inference server, which would take a minute to start."""
    return {
        "algorithm": {"type": "sft"},
        "taskApp.resources": {"cpu": "50m", "memory": "512Mi"},
        "trainer.resources": {"cpu": "50m", "memory": "1536Mi"},
        "training.warmStart": {"episodes": 2, "turns": 4, "steps": steps, "batchSize": 8},
        "evaluation.episodes": 0,
        "failurePolicy": {"backoffSeconds": 1},
    }


def supervised(steps: int, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """``configs/crafter-tiny.yaml`` with these, and with further changes."""
    document = tiny({**supervision(steps), **(changes or {})})
    document["spec"].pop("inference")
    return document
