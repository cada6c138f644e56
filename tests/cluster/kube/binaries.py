"""Kubernetes' servers: built once from source, kept in the cache."""

import hashlib
import os
import shutil
from pathlib import Path

from .host import BUILD_PACKAGES, cache, locked, progress, require_packages, run

SCRIPT = Path(__file__).with_name("build.sh")
CUSTOM_RESOURCES = Path(__file__).with_name("apiextensions.sh")
NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "pause")


def ensure() -> Path:
    """The folder of the test cluster's binaries."""
    return _built(SCRIPT, BUILD_PACKAGES, "building Kubernetes 1.20.2 from source: 8 minutes, once")


def ensure_custom_resources() -> Path:
    """The folder of the API server for custom resources of a current Kubernetes, and its VERSION."""
    what = "building apiextensions-apiserver from Debian sid's packages: a few minutes and 120 MB to download, once"
    return _built(CUSTOM_RESOURCES, {}, what)


def _built(script: Path, packages: dict[str, str], message: str) -> Path:
    """What the script builds, if it was not run before as it is.

    WORK (sources and objects) and GOCACHE of the environment reach the script, to build on an earlier try.
    """
    digest = hashlib.sha256(script.read_bytes()).hexdigest()[:16]
    with locked(cache() / f"{script.stem}.lock"):
        folder = cache() / digest
        if not folder.is_dir():
            require_packages(packages)
            progress(message)
            unfinished = folder.with_suffix(".partial")
            work = Path(os.environ.get("WORK", cache("build", script.stem)))
            run([script, unfinished], env={**os.environ, "WORK": str(work)})
            unfinished.rename(folder)
            if "WORK" not in os.environ:
                shutil.rmtree(work)
    return folder
