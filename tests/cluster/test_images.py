"""What is in the images. That they do their work in the operator's pods, restricted and with a read-only root file
system, is what tests/e2e shows."""

from __future__ import annotations

import pytest

from . import project_images
from .kube import cluster as kube_cluster

pytestmark = pytest.mark.cluster


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
