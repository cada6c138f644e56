"""``visionrl fetch``: download what a job has trained, while anything still has it."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from visionrl.adapters import MANIFEST, Manifest, Version, verified_manifest
from visionrl.folders import place as put_in_place
from visionrl_cli.places.choice import WHERE, add_place, place_of

DESCRIPTION = f"""Download the newest trained adapter of a job, with its digest checked.

On this machine it comes from the run folder. In a cluster it comes, through kubectl and with your rights (pods/exec),
from the trainer's pod while that runs, afterwards from the run folder's claim, which a pod reads for as long as the
transfer takes. A claim that outlived its job is found by the job's name.

{WHERE}
"""
EXAMPLES = """examples:
  visionrl fetch crafter-tiny                    from runs/crafter-tiny
  kubectl visionrl fetch crafter -n team --output best   from a cluster, into the folder best
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="name of the job")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to make (default: the version's name)")
    add_place(parser)


def command(options: argparse.Namespace) -> int:
    """The exit code."""
    from visionrl.trained import NothingTrained
    from visionrl_cli.places.kubectl import Kubectl, KubectlError
    from visionrl_cli.places.machine import Machine
    from visionrl_cli.places.place import PlaceError

    try:
        place = place_of(options)
        with tempfile.TemporaryDirectory(prefix=".visionrl-fetch-", dir=_parent(options.output)) as temporary:
            draft = Path(temporary) / "adapter"
            draft.mkdir()
            if isinstance(place, Machine):
                version = _from_run_folder(place.runs / options.job, options.job, draft)
            else:
                from visionrl_cli.places.cluster import Cluster
                from visionrl_cli.places.fetching import from_cluster

                assert isinstance(place, Cluster)
                version = from_cluster(Kubectl(place.context, place.namespace), options.job, draft)
            target = options.output or Path(version.name)
            _place(draft, target)
    except (NothingTrained, KubectlError, FetchError, PlaceError, OSError) as error:
        print(f"visionrl: {error}", file=sys.stderr)
        return 1
    manifest = verified_manifest(target)
    print(f"{target}: {version.name}, {manifest.size / 1e6:.1f} MB, sha256 {manifest.digest}")
    return 0


class FetchError(Exception):
    """The adapter cannot be had; the message is for the user."""


def _from_run_folder(run_folder: Path, job: str, draft: Path) -> Version:
    from visionrl.trained import newest

    if not run_folder.is_dir():
        raise FetchError(f"no job {job} in {run_folder.parent}/; for a job in a cluster: kubectl visionrl fetch {job}")
    found = newest(run_folder, job)
    for name in (*found.manifest.files, MANIFEST):
        shutil.copyfile(found.folder / name, draft / name)
    return found.version


def _place(draft: Path, target: Path) -> None:
    manifest: Manifest = verified_manifest(draft)
    if target.exists() and not target.is_dir():
        raise FetchError(f"{target} is a file; choose another --output")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).exists():
        raise FetchError(f"{target} holds something else; choose another --output")
    put_in_place(draft, target, manifest)


def _parent(output: Path | None) -> Path:
    parent = output.parent if output else Path()
    parent.mkdir(parents=True, exist_ok=True)
    return parent
