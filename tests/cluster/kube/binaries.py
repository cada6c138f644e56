"""The Kubernetes server binaries: built once from source, kept in the cache."""

import hashlib
import os
import shutil
from pathlib import Path

from .host import BUILD_PACKAGES, cache, locked, progress, require_packages, run

SCRIPT = Path(__file__).with_name("build.sh")
NAMES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "pause")


def ensure() -> Path:
    """The folder of the binaries, building them if this build script has not been run before.

    WORK (sources and objects) and GOCACHE of the environment reach the script, to build on an earlier try.
    """
    digest = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()[:16]
    with locked(cache() / "build.lock"):
        folder = cache() / digest
        if not folder.is_dir():
            require_packages(BUILD_PACKAGES)
            progress("building Kubernetes 1.20.2 from source: 8 minutes, once")
            unfinished = folder.with_suffix(".partial")
            work = Path(os.environ.get("WORK", cache("build")))
            run([SCRIPT, unfinished], env={**os.environ, "WORK": str(work)})
            unfinished.rename(folder)
            if "WORK" not in os.environ:
                shutil.rmtree(work)
    return folder
