"""A cluster to try the project on: `make cluster` and `make cluster-down`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from ruamel.yaml import YAML

from tests.cluster import project_images
from tests.cluster.kube import cluster as kube_cluster
from tests.cluster.kube.host import KubeError
from tests.cluster.kube.layout import Cluster

FOLDER = project_images.REPOSITORY / ".cluster"


def up() -> None:
    """Start it, load the project's images, and leave in ``.cluster`` what a shell and helm need."""
    running = kube_cluster.up(Cluster.from_environment())
    project_images.ensure(running, *project_images.PARTS)
    programs = FOLDER / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    for client in (running.kubectl, running.helm):
        link = programs / client.program.name
        link.unlink(missing_ok=True)
        link.symlink_to(client.program)
    YAML().dump(project_images.chart_values(), FOLDER / "values.yaml")
    Path(FOLDER, "env").write_text(
        f'export KUBECONFIG={running.kubeconfig}\nexport PATH={programs}:"$PATH"\n'
        "export NO_PROXY='*' no_proxy='*'  # the cluster is on this machine\n"
    )
    print(f"The cluster is up. Its kubectl and helm: . {os.path.relpath(FOLDER / 'env')}")


def down() -> None:
    kube_cluster.down(Cluster.from_environment())
    shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    try:
        {"up": up, "down": down}[sys.argv[1]]()
    except KubeError as error:
        sys.exit(f"error: {error}")
