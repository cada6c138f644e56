"""``visionrl render``: the Kubernetes objects of a job."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from visionrl.jobfile import JobFileError, load_job
from visionrl_cli.files import unusable
from visionrl_core.manifests import all_manifests
from visionrl_core.manifests.common import Owner

DESCRIPTION = """Print every object that the operator creates for a job, in the order of creation.

The key in the Secret is masked and the owner's uid is a placeholder: the output is for reading and comparing. In a
cluster, apply the job file itself.
"""
EXAMPLES = """examples:
  visionrl render job.yaml | less
  visionrl render job.yaml | kubectl apply --dry-run=server -f -
  visionrl render --json job.yaml | jq '.items[] | select(.kind == "Job")'
"""

NO_UID = "00000000-0000-0000-0000-000000000000"
MASK = "masked"  # in place of the operator's random key


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="job file, or a training file of the reference system (TOML)"
    )
    parser.add_argument("--namespace", help="namespace of the objects (default: the file's, else default)")
    parser.add_argument("--json", action="store_true", help="print one Kubernetes List as JSON")


def command(options: argparse.Namespace) -> int:
    try:
        objects = rendered(options.file, options.namespace)
    except (JobFileError, OSError) as error:
        return unusable(options.file, error)
    if options.json:
        print(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2, ensure_ascii=False))
    else:
        yaml = YAML()
        yaml.width = 4096
        yaml.explicit_start = True
        yaml.dump_all([_with_blocks(each) for each in objects], sys.stdout)
    return 0


def rendered(file: Path, namespace: str | None) -> list[dict[str, Any]]:
    """The objects of the job in a file, the key masked."""
    job = load_job(file)
    owner = Owner(job.name, namespace or job.metadata.namespace or "default", NO_UID)
    return all_manifests(job, 0, owner, MASK)


def _with_blocks(value: Any) -> Any:
    """Multi-line strings as literal blocks."""
    if isinstance(value, dict):
        return {key: _with_blocks(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_blocks(inner) for inner in value]
    return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value
