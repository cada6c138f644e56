"""containerd, on an image store that stays in the cache between runs.

An image is written to the store once: a cluster that starts with the store of the last one has its images at
once, and an image that was rebuilt brings only its new layers. Each cluster name has a store of its own, for
containerd's store serves one daemon at a time.
"""

import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from .host import KubeError, cache, run
from .images import PAUSE
from .layout import Cluster
from .sandbox import Process, Sandbox
from .storage import Image, Storage

MIB = 1 << 20  # writes of this size, where the default 10 KiB is slow for gigabytes

# An import passes over layers that are there, and containerd's garbage collection may take one a moment later: no lease
# holds what is not written anew (https://github.com/containerd/containerd/issues/3787, in Debian's 1.6.20). Once more,
# then, with what the store has now.
COLLECTED = re.compile(r": not found\s*$", re.MULTILINE)
IMPORTS = 3


@dataclass(frozen=True)
class Containerd:
    socket: Path

    @classmethod
    def start(cls, cluster: Cluster, sandbox: Sandbox, storage: Storage) -> "Containerd":
        """Starts the daemon; containers of a former run, and images that storage no longer has, are forgotten."""
        config = cluster.root / "containerd.toml"
        config.write_text(_config(cluster))
        daemon = cls(cluster.containerd_socket)
        process = daemon._spawn(sandbox, config)
        containers = daemon.ctr("containers", "list", "--quiet").split()
        if containers:
            daemon.ctr("containers", "remove", *containers)
        stale = daemon._images_not_in(storage.digests())
        if stale:
            daemon.ctr("images", "remove", *stale)  # without --sync: their files go while the cluster starts
        if containers or stale:
            process.stop()  # the daemon read them at its start
            daemon._spawn(sandbox, config)
        return daemon

    def _images_not_in(self, digests: set[str]) -> list[str]:
        """Replaced images live on under the second name, their id, that kubelet's interface gives each image."""
        rows = [line.split() for line in self.ctr("images", "list").splitlines()[1:]]
        return [name for name, _type, digest, *_ in rows if digest not in digests]

    def _spawn(self, sandbox: Sandbox, config: Path) -> Process:
        process = sandbox.spawn("containerd", "containerd", "--config", config, "--log-level", "warn")
        process.wait_for(self._answers, "containerd", 30)
        return process

    def _answers(self) -> bool:
        try:
            self.ctr("version")
        except KubeError:
            return False
        return True

    def _command(self, *arguments: str) -> list[str]:
        return ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]

    def ctr(self, *arguments: str) -> str:
        return run(self._command(*arguments))

    def load(self, storage: Storage, tag: str) -> bool:
        """Brings an image from buildah's storage into the store; False if it is there already.

        Only the layers that the store lacks are read and written, as a stream without a copy on disk.
        """
        image = storage.image(tag)
        if image.digest in self._target_of(tag):
            return False
        for _ in range(IMPORTS):
            errors = self._import(storage, image)
            if not errors:
                return True
            if not COLLECTED.search(errors):
                break
        raise KubeError(f"{tag}: containerd refused the image\n{errors}")

    def _import(self, storage: Storage, image: Image) -> str:
        """What was said if the image was refused."""
        present = set(self.ctr("content", "list", "--quiet").split())
        command = self._command("images", "import", "-")
        importing = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert importing.stdin is not None
        assert importing.stdout is not None
        try:
            with tarfile.open(fileobj=importing.stdin, mode="w|", bufsize=MIB) as archive:
                _write_archive(archive, storage, image, present)
        except BrokenPipeError:
            pass  # it has ended and says why
        importing.stdin.close()
        said = importing.stdout.read().decode()
        return (said or "without a word") if importing.wait() else ""

    def _target_of(self, tag: str) -> str:
        """The line of the store's image list that names the tag's digest, or nothing."""
        return self.ctr("images", "list", f"name=={tag}")


def _write_archive(archive: tarfile.TarFile, storage: Storage, image: Image, present: set[str]) -> None:
    """An OCI image archive (https://specs.opencontainers.org/image-spec/image-layout/) of what is not present."""

    def add(name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))

    def blob(digest: str) -> str:
        return f"blobs/{digest.replace(':', '/')}"

    target = {
        "mediaType": image.parsed["mediaType"],
        "digest": image.digest,
        "size": len(image.manifest),
        "annotations": {"io.containerd.image.name": image.tag},
    }
    add("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    add("index.json", json.dumps({"schemaVersion": 2, "manifests": [target]}).encode())
    add(blob(image.digest), image.manifest)
    add(blob(image.parsed["config"]["digest"]), image.config)
    for layer in image.parsed["layers"]:
        if layer["digest"] not in present:
            with storage.open_layer(image.layer_ids[layer["digest"]]) as source:
                entry = tarfile.TarInfo(blob(layer["digest"]))
                entry.size = layer["size"]
                archive.addfile(entry, source.stdout)


def _config(cluster: Cluster) -> str:
    return f"""\
version = 2
root = "{cache("containerd", cluster.name)}"
state = "{cluster.root}/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{cluster.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true  # a machine without CAP_SYS_RESOURCE refuses negative scores
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  BinaryName = "runc"
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{cluster.root}/cni"
"""
