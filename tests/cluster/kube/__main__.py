"""The command line: python -m tests.cluster.kube."""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from . import binaries, images, tools
from .cluster import down, is_up, up
from .containerd import Containerd
from .host import KubeError
from .kubectl import Client
from .layout import Cluster, chosen_cidr, chosen_name
from .storage import Storage

DESCRIPTION = """\
A real single-node Kubernetes 1.20 on a bare Debian 12 machine, without Docker. Needs root.

  up                        start it (the first time: builds Kubernetes, 10 minutes)
  kubectl get nodes         kubectl and helm, already pointed at it
  build DIR TAG             build DIR/Dockerfile as image TAG
  build-cpu LOCK            build an image of LOCK's packages, once; --build-arg BASE=... puts others on top
  load TAG                  make TAG usable in pods, with imagePullPolicy: IfNotPresent
  down                      stop it; nothing stays but the cache (~/.cache/visionrl/kube)

The node has 2 pretended nvidia.com/gpu of product NVIDIA-H200, volumes of storage class visionrl-local, and
no way out to the Internet. NetworkPolicy objects are accepted and do nothing.

A second cluster beside the first needs its own --name and --cidr (or VISIONRL_KUBE_NAME, VISIONRL_KUBE_CIDR).
"""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m tests.cluster.kube",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--name", default=chosen_name())
    options.add_argument("--cidr", default=chosen_cidr(), help="a /16 of its own")
    options.add_argument("--dir", type=Path, help="work folder (default: /var/tmp/visionrl-kube-NAME)")
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("up", help="start the cluster; no harm if it is up")
    command.add_argument("--control-plane-only", action="store_true", help="no node: for operator benchmarks")
    commands.add_parser("down", help="stop the cluster and remove all of it")
    for program in ("kubectl", "helm"):
        # No prefix character: every word, "-n" too, is the program's own.
        command = commands.add_parser(
            program, help=f"run {program} against the cluster", add_help=False, prefix_chars="\0"
        )
        command.add_argument("arguments", nargs=argparse.REMAINDER)
    command = commands.add_parser("build", help="build an image")
    command.add_argument("folder", type=Path, help="the folder of the Dockerfile")
    command.add_argument("tag", help="such as localhost/visionrl-trainer:test")
    command.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    command.add_argument("--context", type=Path, help="what COPY sees (default: the folder)")
    command = commands.add_parser("build-cpu", help="build the image of a lock file's packages; print its tag")
    command.add_argument("requirements", type=Path, help="such as requirements/cpu.lock")
    command = commands.add_parser("load", help="bring built images into the running cluster")
    command.add_argument("tags", nargs="+", metavar="TAG")
    commands.add_parser("binaries", help="build the Kubernetes binaries; print their folder")
    commands.add_parser("tools", help="download helm and kubectl; print their paths")
    return options


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    cluster = Cluster.of(options.name, options.cidr, options.dir)
    if options.command in ("kubectl", "helm", "load") and not is_up(cluster):
        raise KubeError(f"cluster {cluster.name} is not up: start it with the command up")
    match options.command:
        case "up":
            running = up(cluster, control_plane_only=options.control_plane_only)
            print(f"export KUBECONFIG={running.kubeconfig}")
        case "down":
            down(cluster)
        case "kubectl" | "helm":
            program = getattr(tools.ensure(), options.command)
            client = Client(program, cluster.kubeconfig())
            return subprocess.run([program, *options.arguments], env=client.environment()).returncode
        case "build":
            build_args = dict(argument.split("=", 1) for argument in options.build_arg)
            images.build(options.folder, options.tag, build_args, options.context)
        case "build-cpu":
            print(images.build_cpu_environment(options.requirements))
        case "load":
            for tag in options.tags:
                state = "loaded" if Containerd(cluster.containerd_socket).load(Storage(), tag) else "already there"
                print(f"{tag}: {state}")
        case "binaries":
            print(binaries.ensure())
        case "tools":
            found = tools.ensure()
            print(f"{found.helm}\n{found.kubectl}")
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Stopped either way, a half-started cluster is taken down; what a shell starts with & is born deaf to SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KubeError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
