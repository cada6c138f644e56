"""``visionrl doctor``: can this machine, and the cluster, run jobs?"""

from __future__ import annotations

import argparse
import json

from visionrl_cli.extras import needed_packages

DESCRIPTION = """Check this machine (Python, packages, torch, GPUs, ports, disk) and, where there is a kubeconfig,
the cluster (access, the custom resource's version, GPU nodes). Nothing is changed. Exit code 1 where something is
missing that every job needs.
"""
EXAMPLES = """examples:
  visionrl doctor
  kubectl visionrl doctor --context gpu-cluster -n team
  visionrl doctor --json | jq -r '.[] | select(.state != "ok") | .fix'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--context", metavar="NAME", help="the kubeconfig's context to check")
    parser.add_argument("-n", "--namespace", metavar="NAME", help="the namespace to check (default: the context's)")


def command(options: argparse.Namespace) -> int:
    with needed_packages("doctor"):
        from visionrl_cli.health.checks import checks
    found = []
    for check in checks(options.context, options.namespace):
        found.append(check)
        if not options.json:
            fix = f"; {check.fix}" if check.fix else ""
            print(f"{check.state:8}{check.name}: {check.text}{fix}", flush=True)
    if options.json:
        shown = [{"name": each.name, "state": each.state, "text": each.text, "fix": each.fix} for each in found]
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    return 1 if any(check.state == "missing" for check in found) else 0
