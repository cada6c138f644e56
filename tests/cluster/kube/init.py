"""The sandbox's first process: lays out what its processes see, then reaps the orphans until it is killed.

usage: unshare --fork --pid --mount --net --ipc python init.py ROOT

Everything mounted from here on exists in this mount namespace only and ends with it. Kubelet, containerd and
the CNI plugins have fixed folders of their own under /run, /var/lib and /var/log, and kubelet sets sysctls of
the whole machine: they get private ones, so the host keeps its own.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

# What kubelet writes there, so that it finds nothing to change.
KUBELET_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def lay_out(root: Path) -> None:
    mount("--make-rshared", "/")  # kubelet's mounts must reach containers; the host is out of reach already
    mount("-t", "proc", "proc", "/proc")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/netns").mkdir()
    for hidden, own in (("/var/lib", root / "var-lib"), ("/var/log", root / "var-log")):
        own.mkdir(parents=True)
        mount("--bind", own, hidden)
    for name, value in KUBELET_SYSCTLS.items():
        own = root / "sysctl" / name.replace("/", ".")
        own.parent.mkdir(exist_ok=True)
        own.write_text(f"{value}\n")
        mount("--bind", own, f"/proc/sys/{name}")


def reap() -> None:
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    root = Path(sys.argv[1])
    # /proc is still the host's: the number by which the host knows this process.
    host_pid = os.readlink("/proc/self")  # noqa: PTH115
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    lay_out(root)
    unfinished = root / "init.pid.partial"
    unfinished.write_text(host_pid)
    unfinished.rename(root / "init.pid")
    reap()
