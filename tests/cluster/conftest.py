"""The cluster that the tests of this folder run against."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .kube import cluster as kube_cluster
from .kube.layout import Cluster


@pytest.fixture(scope="session")
def kube() -> Iterator[kube_cluster.Running]:
    """A running cluster: kube.kubeconfig, kube.kubectl(...), kube.helm(...), kube.load(tag).

    VISIONRL_E2E_KUBECONFIG names one to use instead. A cluster of ours that is up already is used and stays up.
    """
    named = os.environ.get("VISIONRL_E2E_KUBECONFIG")
    if named:
        yield kube_cluster.existing(Path(named))
        return
    cluster = Cluster.from_environment()
    was_up = kube_cluster.is_up(cluster)
    yield kube_cluster.up(cluster)
    if not was_up:
        kube_cluster.down(cluster)


@contextmanager
def temporary_namespace(kube: kube_cluster.Running) -> Iterator[str]:
    """A namespace of its own; it goes, with all that is in it, without being waited for."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    kube.kubectl("create", "namespace", name)
    # Pods are refused until the controller manager has made the namespace's service account.
    kube.kubectl.wait_for("serviceaccount", "default", "-n", name)
    try:
        yield name
    finally:
        kube.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def namespace(kube: kube_cluster.Running) -> Iterator[str]:
    """A namespace of the test's own."""
    with temporary_namespace(kube) as name:
        yield name
