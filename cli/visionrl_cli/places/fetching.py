"""The newest adapter of a job in a cluster: out of the trainer's pod, or out of the claim of the run folder."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionrl.adapters import MANIFEST, MAX_MANIFEST_BYTES, Manifest, ManifestError, Version
from visionrl.trained import ADAPTERS, CHECKPOINTS
from visionrl_cli.places.kubectl import Body, Kubectl, KubectlError
from visionrl_cli.places.place import PlaceError
from visionrl_core import accepted
from visionrl_core.container_images import RELEASED, images_of
from visionrl_core.crd import PLURAL
from visionrl_core.manifests.common import SUFFIXES, selector
from visionrl_core.manifests.pods import RUN_DIR
from visionrl_core.manifests.storage import CLAIM, reader_pod

JOBS = f"{PLURAL}.visionrl.dev"


@dataclass(frozen=True)
class RunningFolder:
    """A run folder as a container of a running pod sees it."""

    kubectl: Kubectl
    pod: str
    container: str

    def versions(self, job: str) -> list[Version]:
        """Those that a checkpoint belongs to, the newest first."""
        found = []
        for name in self.kubectl.names(self.pod, self.container, f"{RUN_DIR}/{CHECKPOINTS}"):
            try:
                found.append(Version.parse(name))
            except ValueError:
                continue
        return sorted((version for version in found if version.job == job), reverse=True)

    def download(self, version: Version, target: Path) -> None:
        """The files of a version. Raises :class:`ManifestError` where they are not its content."""
        folder = f"{RUN_DIR}/{ADAPTERS}/{version.name}"
        self._file(f"{folder}/{MANIFEST}", target / MANIFEST, MAX_MANIFEST_BYTES)
        manifest = Manifest.parse((target / MANIFEST).read_bytes())
        if not version.matches(manifest):
            raise ManifestError(f"{version.name}: its content's digest is {manifest.digest}")
        for name, entry in manifest.files.items():
            self._file(f"{folder}/{name}", target / name, entry.size)
        manifest.check(target)

    def _file(self, path: str, target: Path, size: int) -> None:
        self.kubectl.download(self.pod, self.container, path, target, size)


def from_cluster(kubectl: Kubectl, job: str, target: Path) -> Version:
    """Download the newest whole version into an empty folder. Raises :class:`PlaceError`, :class:`KubectlError`."""
    body = kubectl.find(JOBS, job)
    labels = ",".join(f"{key}={value}" for key, value in selector(job, "trainer").items())
    trainer = next((pod for pod in kubectl.objects("pods", labels) if _runs(pod)), None)
    if trainer is not None:
        return _newest(RunningFolder(kubectl, trainer["metadata"]["name"], SUFFIXES["trainer"]), job, target)
    claim = _claim(kubectl, job, body)
    with kubectl.pod(reader_pod(f"{job}-fetch-{secrets.token_hex(3)}", claim, RUN_DIR, _image(body))) as pod:
        return _newest(RunningFolder(kubectl, pod, "reader"), job, target)


def _newest(folder: RunningFolder, job: str, target: Path) -> Version:
    trouble = ""
    for version in folder.versions(job):
        try:
            folder.download(version, target)
            return version
        except (ManifestError, KubectlError) as error:  # damaged, or deleted meanwhile
            trouble = f"; {error}"
            for path in target.iterdir():
                path.unlink()
    raise PlaceError(f"the run folder of {job} holds no whole checkpoint{trouble}")


def _claim(kubectl: Kubectl, job: str, body: Body | None) -> str:
    """The claim of the run folder: the job's, or the newest that a deleted job of this name left."""
    storage = body["spec"].get("storage", {}) if body else {}
    if named := storage.get("runClaim"):
        return str(named)
    found = kubectl.objects(CLAIM, f"visionrl.dev/job={job}")
    own = [claim for claim in found if body is None or _job_uid(claim) == body["metadata"]["uid"]]
    if own:
        return str(max(own, key=lambda claim: str(claim["metadata"]["creationTimestamp"]))["metadata"]["name"])
    if body is None:
        raise PlaceError(f"there is neither a job {job} nor a claim that one left (kubectl get pvc)")
    copies = [copy["to"] for copy in body.get("status", {}).get("result", {}).get("copies", [])]
    where = f"; it was copied to {' and '.join(copies)}" if copies else ""
    raise PlaceError(f"nothing has what {job} trained any more: no trainer runs, and no claim is left{where}")


def _job_uid(claim: Body) -> Any:
    return claim["metadata"].get("annotations", {}).get("visionrl.dev/job-uid")


def _image(body: Body | None) -> str:
    """An image that the cluster can pull: the task app's is the smallest of the job's."""
    job = accepted.job_of(body.get("status", {}).get("accepted", "")) if body else None
    return images_of(job)["taskApp"] if job else RELEASED["taskApp"]


def _runs(pod: Body) -> bool:
    """Whether the trainer runs, whatever sidecars of its pod do."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    own: Body = next((each for each in statuses if each["name"] == SUFFIXES["trainer"]), {})
    return "deletionTimestamp" not in pod["metadata"] and "running" in own.get("state", {})
