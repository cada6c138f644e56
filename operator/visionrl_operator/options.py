"""The command line of the operator; every option is also an environment variable."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from visionrl.checks import pod_templates

PREFIX = "VISIONRL_OPERATOR_"
# For a Service called visionrl-operator, Kubernetes sets variables in pods that look like ours.
SERVICE_LINK = re.compile(r"service_(host|port)|port(_\d+_|$)")

DESCRIPTION = """\
Watch VisionRLJobs and make what they need: task app, inference, trainer.

It talks to the cluster of its service account, or of KUBECONFIG. The CustomResourceDefinition must exist
(kubectl apply -f crds/). Several replicas are safe: one leads, the others stand by and take over within
15 seconds. SIGTERM ends it in order: passes that run are finished, the lease is given up.

Port 8080 answers /healthz, /readyz (a replica that stands by is ready) and /metrics.
"""

EPILOG = """\
Every option is also an environment variable: --log-format is VISIONRL_OPERATOR_LOG_FORMAT; flags take true or
false, --namespace takes several names separated by commas. POD_NAMESPACE is where the lease
is, POD_NAME who holds it.

  python -m visionrl_operator run                                    all namespaces
  python -m visionrl_operator run --namespace team-a --namespace b   these only: Roles instead of a ClusterRole
"""


@dataclass(frozen=True)
class Options:
    """How to run."""

    namespaces: tuple[str, ...] = ()
    """Empty: all of them."""
    workers: int = 16
    health_host: str = "0.0.0.0"
    health_port: int = 8080
    leader_election: bool = True
    log_format: str = "text"
    log_level: str = "INFO"
    request_timeout: float = 15.0
    """Seconds that one request to the API server may take."""
    watchdog_interval: float = 300.0
    """Seconds between comparisons of the store with lists."""
    image_prefix: str = "visionrl/"
    """Of the images of a job's components, where the job names none."""
    image_tag: str = version("visionrl")
    allowed_images: tuple[str, ...] = ()
    """Prefixes that the images of a job may have; none allow every image."""
    pod_template: Mapping[str, Any] = field(default_factory=dict)
    """Merged into every pod of a job, below what the job itself says."""
    fixed_ids: bool = True
    """Whether pods of jobs name user and group."""
    allow_privileged: bool = False
    """Whether pod templates of jobs may go beyond the *restricted* Pod Security Standard."""
    scraped_by: tuple[Mapping[str, Any], ...] = ()
    """NetworkPolicy peers that may read metrics of jobs."""
    lease_name: str = "visionrl-operator"
    """Operators that share it elect one leader."""
    lease_namespace: str = "default"
    identity: str = "operator"


def parse(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Options:
    """Options from the command line, then the environment, then the defaults. Exits on mistakes, and after help."""
    default = Options()
    parser = argparse.ArgumentParser(
        prog="python -m visionrl_operator",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="run the operator",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "--namespace", action="append", metavar="NS", help="watch this namespace; repeat it for more (default: all)"
    )
    run.add_argument("--workers", type=_positive_int, help=f"jobs worked on at once (default: {default.workers})")
    run.add_argument("--health-host", metavar="ADDRESS", help=f"address to listen on (default: {default.health_host})")
    run.add_argument("--health-port", type=_port, metavar="PORT", help=f"default: {default.health_port}")
    run.add_argument(
        "--leader-election",
        action=argparse.BooleanOptionalAction,
        help="without it, run exactly one replica (default: on)",
    )
    run.add_argument(
        "--lease-name",
        metavar="NAME",
        help=f"operators that share this lease elect one leader (default: {default.lease_name})",
    )
    run.add_argument("--log-format", choices=["text", "json"], help=f"default: {default.log_format}")
    run.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING"], help=f"default: {default.log_level}")
    run.add_argument(
        "--request-timeout",
        type=_positive_float,
        metavar="SECONDS",
        help=f"of one request to the API server (default: {default.request_timeout:g})",
    )
    run.add_argument(
        "--watchdog-interval",
        type=_positive_float,
        metavar="SECONDS",
        help=f"between checks that no watch has stalled (default: {default.watchdog_interval:g})",
    )
    run.add_argument(
        "--image-prefix",
        metavar="PREFIX",
        help="of the components' images (PREFIXtaskapp:TAG and so on), where a job names none "
        f"(default: {default.image_prefix})",
    )
    run.add_argument("--image-tag", metavar="TAG", help=f"of the components' images (default: {default.image_tag})")
    run.add_argument(
        "--allowed-images",
        metavar="PREFIX,PREFIX",
        type=_prefixes,
        help="prefixes of the images that a job may name; others are refused when it is applied (default: any image)",
    )
    run.add_argument(
        "--pod-template",
        metavar="JSON",
        type=_template,
        help="metadata and spec that every pod of a job gets, below what the job says: imagePullSecrets, nodeSelector, "
        "tolerations (default: nothing)",
    )
    run.add_argument(
        "--scraped-by",
        metavar="JSON",
        type=_peers,
        help="list of NetworkPolicy peers that may read /metrics of jobs' servers and trainers (default: nobody)",
    )
    run.add_argument(
        "--fixed-ids",
        action=argparse.BooleanOptionalAction,
        help="without it, pods of jobs name no user and group: for clusters that assign them, as OpenShift does "
        "(default: on)",
    )
    run.add_argument(
        "--allow-privileged",
        action=argparse.BooleanOptionalAction,
        help="let jobs' pod templates go beyond the restricted Pod Security Standard: hostPath, privileged, root "
        "(default: off)",
    )
    run.set_defaults(**_from_environment(run, environment))
    chosen = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    del chosen["command"]
    listed = environment.get(f"{PREFIX}NAMESPACE", "").split(",")
    namespaces = chosen.pop("namespace", None) or [name.strip() for name in listed if name.strip()]
    return Options(
        namespaces=tuple(namespaces),
        lease_namespace=environment.get("POD_NAMESPACE") or default.lease_namespace,
        identity=f"{environment.get('POD_NAME') or socket.gethostname()}_{os.urandom(4).hex()}",
        **chosen,
    )


def _from_environment(parser: argparse.ArgumentParser, environment: Mapping[str, str]) -> dict[str, object]:
    """Defaults from the environment; argparse itself checks what is text. A variable without an option is refused: it
    is a typing error."""
    found: dict[str, object] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or text == "" or name == "namespace" or SERVICE_LINK.match(name):
            continue
        action = next((action for action in parser._actions if action.dest == name and name != "help"), None)
        if action is None:
            parser.error(f"{variable} is no option; see --help")
        if isinstance(action, argparse.BooleanOptionalAction):
            if text.lower() not in ("true", "false"):
                parser.error(f"{variable}: {text!r} is neither true nor false")
            found[name] = text.lower() == "true"
        elif action.choices and text not in action.choices:
            parser.error(f"{variable}: {text!r} is not one of {', '.join(action.choices)}")
        else:
            found[name] = text
    return found


def _template(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("must be a mapping with metadata and spec")
    wrong = [str(problem).lstrip(".") for problem in pod_templates.faults(found, "", own="")]
    if not wrong and {"containers", "initContainers"} & found.get("spec", {}).keys():
        wrong = ["spec: containers belong into a job's own podTemplate"]
    if wrong:
        raise argparse.ArgumentTypeError(wrong[0])
    return found


def _peers(text: str) -> tuple[dict[str, Any], ...]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    known = {"podSelector", "namespaceSelector", "ipBlock"}
    if not isinstance(found, list) or not all(
        isinstance(peer, dict) and peer and peer.keys() <= known for peer in found
    ):
        raise argparse.ArgumentTypeError("must be a list of peers with podSelector, namespaceSelector or ipBlock")
    return tuple(found)


def _prefixes(text: str) -> tuple[str, ...]:
    return tuple(prefix.strip() for prefix in text.split(",") if prefix.strip())


def _positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535; 0 takes a free one)")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
