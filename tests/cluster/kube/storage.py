"""buildah's image storage in the cache: what is in it, and the exact bytes of its layers."""

import fcntl
import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .host import KubeError, cache, run


def builds_lock() -> Path:
    """Held by whoever builds an image."""
    return cache() / "images.lock"


@dataclass(frozen=True)
class Image:
    """manifest: the OCI manifest's bytes; config: the image config's; layer_ids: storage id by layer digest."""

    tag: str
    manifest: bytes
    config: bytes
    layer_ids: dict[str, str]

    @property
    def parsed(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.manifest)
        return found

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"


class Storage:
    """Apart from the machine's own images, and removed by removing the cache."""

    def __init__(self) -> None:
        self._places = (cache("buildah"), cache("buildah-run"))
        # Not mounting its own folder leaves no mount behind.
        self._driver = ["--storage-driver", "overlay", "--storage-opt", "overlay.skip_mount_home=true"]

    def buildah(self, *arguments: str | Path) -> str:
        root, run_root = self._places
        command = ["buildah", "--root", root, "--runroot", run_root, *self._driver, *arguments]
        try:
            return run(command)
        except KubeError as error:
            if "device or resource busy" in str(error) and self.unmount_leftovers():
                return run(command)
            raise

    def unmount_leftovers(self) -> bool:
        """Unmount what a killed build left: buildah cannot delete its layers otherwise. False while a build runs, to
        which it may belong."""
        with builds_lock().open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
            for place in reversed(mounted):  # what was mounted last may lie on top of others
                if Path(place).is_relative_to(self._places[0]):
                    subprocess.run(["umount", place], capture_output=True)
            return True

    def _containers_storage(self, *arguments: str) -> list[str]:
        root, run_root = self._places
        return ["containers-storage", "--graph", str(root), "--run", str(run_root), *self._driver, *arguments]

    def has(self, tag: str) -> bool:
        return bool(self.buildah("images", "--quiet", "--filter", f"reference={tag}").strip())

    def _listing(self) -> list[dict[str, Any]]:
        """All images, the newest first."""
        found: list[dict[str, Any]] = json.loads(self.buildah("images", "--all", "--json") or "[]") or []
        return sorted(found, key=lambda image: image["created"], reverse=True)

    def digests(self) -> set[str]:
        """The manifest digests of all images that have a tag."""
        return {image["digest"] for image in self._listing() if image.get("names")}

    def tags(self, repository: str = "") -> list[str]:
        """Those of a repository, or all; the newest first."""
        names = [name for image in self._listing() for name in image.get("names") or ()]
        return [name for name in names if not repository or name.rpartition(":")[0] == repository]

    def untagged(self) -> list[str]:
        """The ids of images that have no tag."""
        return [image["id"] for image in self._listing() if not image.get("names")]

    def image(self, tag: str) -> Image:
        if not self.has(tag):
            raise KubeError(f"no image {tag}: build it first (python -m tests.cluster.kube build --help)")
        manifest = run(self._containers_storage("get-image-data", tag, "manifest")).encode()
        config = run(self._containers_storage("get-image-data", tag, json.loads(manifest)["config"]["digest"])).encode()
        layers = json.loads(run(self._containers_storage("layers", "--json")))
        # A layer without a digest is a build's in progress, or one that failed.
        ids = {layer["diff-digest"]: layer["id"] for layer in layers if "diff-digest" in layer}
        return Image(tag, manifest, config, ids)

    def open_layer(self, layer_id: str) -> "subprocess.Popen[bytes]":
        """Starts writing a layer's tar, byte for byte as its digest says, to the process's stdout."""
        return subprocess.Popen(self._containers_storage("diff", layer_id), stdout=subprocess.PIPE)
