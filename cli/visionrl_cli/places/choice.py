"""Where the user's jobs are: the flags that say so."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from visionrl_cli.extras import needed_packages

if TYPE_CHECKING:
    from visionrl_cli.places.place import Place

CONTEXT_VARIABLE = "VISIONRL_CONTEXT"
WHERE = f"""Where: visionrl looks on this machine, kubectl visionrl in the cluster of the kubeconfig's current context.
--local, --context and --namespace take precedence over that, as does {CONTEXT_VARIABLE}, which names a context."""


def add_place(parser: argparse.ArgumentParser) -> None:
    """The flags of :func:`place_of`."""
    group = parser.add_argument_group("where")
    group.add_argument("--local", action="store_true", help="on this machine")
    group.add_argument("--runs", metavar="DIR", type=Path, help="run folders on this machine (default: runs)")
    group.add_argument("--context", metavar="NAME", help="in the cluster of this context of the kubeconfig")
    group.add_argument(
        "-n", "--namespace", metavar="NAME", help="in this namespace of the cluster (default: the context's)"
    )


def place_of(options: argparse.Namespace) -> Place:
    """The place that the flags name. Raises ``PlaceError``; ends the command where flags contradict each other."""
    here, there = options.local or options.runs is not None, options.context or options.namespace
    if here and there:
        options.usage_error("--local and --runs are about this machine, --context and --namespace about a cluster")
    context = options.context or (None if here else os.environ.get(CONTEXT_VARIABLE)) or None
    if there or (not here and (context or options.in_cluster)):
        with needed_packages(options.name):
            from visionrl_cli.places.cluster import Cluster
        return Cluster.connect(context, options.namespace)
    from visionrl_cli.places.machine import Machine

    return Machine(options.runs or Path("runs"))
