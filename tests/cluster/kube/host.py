"""What every piece asks of the machine: a command, a package, a folder of the cache, root."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class KubeError(Exception):
    """Something the user can act on; the message says what and how."""


# program -> Debian package. Installed only when the program is missing.
RUN_PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",  # kubectl port-forward
    "ethtool": "ethtool",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "openssl": "openssl",
}
IMAGE_PACKAGES = {"buildah": "buildah", "containers-storage": "containers-storage", "debootstrap": "debootstrap"}
BUILD_PACKAGES = {"go": "golang-go", "gcc": "gcc", "dpkg-source": "dpkg-dev", "/usr/include/stdio.h": "libc6-dev"}


def require_root() -> None:
    if os.geteuid() != 0:
        raise KubeError(
            "the test cluster needs root (network namespaces, mounts, cgroups): run it with sudo, "
            "or set VISIONRL_E2E_KUBECONFIG to test against a cluster that exists"
        )


def require_packages(packages: dict[str, str]) -> None:
    """Installs the Debian packages whose program is not there yet."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for program, package in packages.items() if not shutil.which(program, os.F_OK, path)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise KubeError(f"missing, and there is no apt-get to install them: {' '.join(missing)}")
    require_root()
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env=environment)
    run(["apt-get", "install", "-qq", "--no-install-recommends", *missing], env=environment)


def cache(*parts: str) -> Path:
    """A folder of the user's cache, made if need be."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base.joinpath("visionrl", "kube", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file, so that two runs do not fill the same cache at once."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Runs a command to its end and returns what it printed; raises KubeError with its errors if it failed."""
    arguments = [str(word) for word in command]
    done = subprocess.run(arguments, input=stdin, env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise KubeError(f"{' '.join(arguments)}: exit status {done.returncode}\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float, interval_s: float = 0.1) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise KubeError(f"{what}: not within {timeout_s:g} s")
        time.sleep(interval_s)


def progress(message: str) -> None:
    print(message, flush=True)
