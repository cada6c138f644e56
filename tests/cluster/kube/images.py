"""Container images of this repository, built without a daemon or a registry."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from . import layers, pip_config
from .host import IMAGE_PACKAGES, KubeError, cache, locked, progress, require_packages, require_root, run
from .storage import Storage, builds_lock

BASE = "localhost/debian:bookworm"
PAUSE = "localhost/pause:3.2"
CPU_ENVIRONMENT = Path(__file__).with_name("cpu-environment")
# Dockerfiles that expect python:3.11-slim find the same here: Debian 12's Python is 3.11.
# Gigabytes each; two branches may differ in their lock file.
KEPT_ENVIRONMENTS = 2
BASE_PACKAGES = "ca-certificates,python3,python3-venv"


def build(folder: Path, tag: str, build_args: Mapping[str, str] | None = None, context: Path | None = None) -> None:
    """Builds folder/Dockerfile as an image called tag, from context (default: the folder itself).

    Layers of the last build are kept in the cache: a build without a change takes about a second. A RUN line sees the
    network, and pip in it this machine's configuration. ARG BASE is given as a Debian 12 with Python.
    """
    require_root()
    require_packages(IMAGE_PACKAGES)
    storage = Storage()
    ensure_base(storage)
    arguments = {"BASE": BASE, **(build_args or {})}
    options = pip_config.settings()
    # One build at a time: the sweep afterwards would take another's layers.
    with locked(builds_lock()), TemporaryDirectory() as temporary:
        config, log = Path(temporary, "pip.conf"), Path(temporary, "log")
        config.write_text(pip_config.render(options))
        mounts = {config: pip_config.PATH_IN_BUILD} | {path: str(path) for path in pip_config.local_paths(options)}
        try:
            storage.buildah(
                "bud", "--layers", "--pull-never", "--isolation", "chroot", "--network", "host", "--logfile", log,
                *(f"--volume={source}:{target}:ro" for source, target in mounts.items()),
                *(f"--build-arg={name}={value}" for name, value in arguments.items()),
                "--file", folder / "Dockerfile", "--tag", tag, context or folder,
            )  # fmt: skip
        except KubeError as error:
            raise KubeError(f"{error}\n{tail(log)}") from None
        layers.note(tag, log.read_text())
        layers.sweep(storage)


def build_cpu_environment(requirements: Path) -> str:
    """The image with a lock file's packages in /opt/venv, to be given as BASE of others; returns its tag."""
    repository = "localhost/visionrl-cpu"
    tag = f"{repository}:{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    layers.keep_newest(Storage(), repository, KEPT_ENVIRONMENTS)
    with TemporaryDirectory() as context:
        shutil.copy(requirements, Path(context, "requirements.txt"))
        build(CPU_ENVIRONMENT, tag, context=Path(context))
    return tag


def tail(log: Path, lines: int = 40) -> str:
    """The last lines of a build's log, if it got as far as having one."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def ensure_base(storage: Storage) -> None:
    """Makes the base image with debootstrap, once."""
    with locked(cache() / "base.lock"):
        if storage.has(BASE):
            return
        progress("making the Debian base image: a minute, once")
        with TemporaryDirectory(dir="/var/tmp") as temporary:
            root = Path(temporary, "root")
            run(["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm", root, mirror()])
            for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*", "var/log/*.log"):
                for path in root.glob(pattern):
                    path.unlink()
            container = storage.buildah("from", "scratch").strip()
            storage.buildah("add", "--quiet", container, root, "/")
            storage.buildah("config", "--env", "LANG=C.UTF-8", "--cmd", "/bin/bash", container)
            storage.buildah("commit", "--quiet", "--rm", container, BASE)


def mirror() -> str:
    """The Debian mirror that this machine's apt uses."""
    wanted = ["Created-By: Packages", "Origin: Debian", "Codename: bookworm"]
    return run(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]).split()[0]


def ensure_pause(storage: Storage, binaries: Path) -> None:
    """The image that holds a pod's namespaces open."""
    require_packages(IMAGE_PACKAGES)
    if storage.has(PAUSE):
        return
    container = storage.buildah("from", "scratch").strip()
    storage.buildah("add", "--quiet", container, binaries / "pause", "/pause")
    storage.buildah("config", "--entrypoint", '["/pause"]', "--user", "65535:65535", container)
    storage.buildah("commit", "--quiet", "--rm", container, PAUSE)
