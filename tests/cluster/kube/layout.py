"""One cluster's names, addresses and files."""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from .host import KubeError

NODE = "node1"
DEFAULT_NAME = "visionrl"
DEFAULT_CIDR = "10.200.0.0/16"
# The sandbox lays its own folders over these.
HIDDEN_FOLDERS = (Path("/run"), Path("/var/run"), Path("/var/lib"), Path("/var/log"), Path("/proc"), Path("/sys"))


@dataclass(frozen=True)
class Cluster:
    """Two clusters with different names and address ranges can run at once.

    name: at most 10 lower-case letters and digits, for a network link may be called 15 characters.
    network: a /16, shared out as: the link to the host .0.0/30, pods .1.0/24, Services .16.0/20.
    root: the work folder; all of the cluster's files, removed with it.
    """

    name: str
    network: IPv4Network
    root: Path

    @classmethod
    def of(cls, name: str = DEFAULT_NAME, cidr: str = DEFAULT_CIDR, root: Path | None = None) -> "Cluster":
        if not re.fullmatch(r"[a-z0-9]{1,10}", name):
            raise KubeError(f"--name {name}: give 1 to 10 lower-case letters and digits")
        try:
            network = IPv4Network(cidr)
        except ValueError as error:
            raise KubeError(f"--cidr {cidr}: {error}; give a /16 such as {DEFAULT_CIDR}") from None
        if network.prefixlen != 16:
            raise KubeError(f"--cidr {cidr}: give a /16 such as {DEFAULT_CIDR}")
        folder = (root or Path(f"/var/tmp/visionrl-kube-{name}")).resolve()
        if any(folder.is_relative_to(hidden) for hidden in HIDDEN_FOLDERS):
            raise KubeError(f"--dir {folder}: the cluster's processes do not see that folder; try one in /var/tmp")
        return cls(name, network, folder)

    @classmethod
    def from_environment(cls) -> "Cluster":
        """The one that VISIONRL_KUBE_NAME and VISIONRL_KUBE_CIDR name."""
        return cls.of(chosen_name(), chosen_cidr())

    def _subnet(self, third_octet: int, prefix: int) -> IPv4Network:
        return IPv4Network((self.network[third_octet * 256], prefix))

    @property
    def pods(self) -> IPv4Network:
        return self._subnet(1, 24)

    @property
    def services(self) -> IPv4Network:
        return self._subnet(16, 20)

    @property
    def host_address(self) -> IPv4Address:
        return self.network[1]

    @property
    def node_address(self) -> IPv4Address:
        return self.network[2]

    @property
    def api_service_address(self) -> IPv4Address:
        return self.services[1]

    @property
    def dns_address(self) -> IPv4Address:
        return self.services[10]

    @property
    def link(self) -> str:
        return f"kube-{self.name}"

    @property
    def cgroup(self) -> str:
        return f"/visionrl-kube-{self.name}"

    @property
    def containerd_socket(self) -> Path:
        return self.root / "containerd.sock"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    def kubeconfig(self, user: str = "admin") -> Path:
        return self.root / f"{user}.kubeconfig"


def chosen_name() -> str:
    return os.environ.get("VISIONRL_KUBE_NAME", DEFAULT_NAME)


def chosen_cidr() -> str:
    return os.environ.get("VISIONRL_KUBE_CIDR", DEFAULT_CIDR)
