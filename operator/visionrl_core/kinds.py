"""The kinds of objects that the operator reads and writes, and their place in the API."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from visionrl.job import API_GROUP, API_VERSION, KIND

FIELD_MANAGER = "visionrl-operator"


@dataclass(frozen=True)
class Kind:
    """A namespaced kind."""

    name: str
    api_version: str
    plural: str

    @property
    def group(self) -> str:
        """API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of an object, or of a collection; ``namespace`` None means all namespaces."""
        segments = ["apis" if self.group else "api", self.api_version]
        segments += ["namespaces", quote(namespace, safe="")] if namespace is not None else []
        segments.append(self.plural)
        segments += [quote(name, safe="")] if name is not None else []
        segments += [subresource] if subresource is not None else []
        return "/" + "/".join(segments)


JOB = Kind(KIND, API_VERSION, "visionrljobs")
POD = Kind("Pod", "v1", "pods")
SECRET = Kind("Secret", "v1", "secrets")
EVENT = Kind("Event", "v1", "events")
NODE = Kind("Node", "v1", "nodes")  # of the cluster: its path has no namespace
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")

# Kinds of owned objects that are watched. Secrets are not: the right to watch them is the right to read all of them.
WATCHED_KINDS = (
    Kind("ConfigMap", "v1", "configmaps"),
    Kind("Deployment", "apps/v1", "deployments"),
    Kind("Job", "batch/v1", "jobs"),
    Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
    POD,
    Kind("Service", "v1", "services"),
)
WORKLOAD = "Workload"
CLAIM_TEMPLATE = Kind("ResourceClaimTemplate", "resource.k8s.io/v1", "resourceclaimtemplates")
OWNED_KINDS = {kind.name: kind for kind in (*WATCHED_KINDS, CLAIM_TEMPLATE, SECRET)}


@dataclass(frozen=True)
class Kueue:
    """Kueue's kinds in the version that is used; the last two are the cluster's and have no namespace."""

    api_version: str

    GROUP = "kueue.x-k8s.io"
    VERSIONS = ("v1beta2", "v1beta1")
    """Those that the operator knows, the one that it prefers first."""

    @property
    def workload(self) -> Kind:
        return Kind(WORKLOAD, self.api_version, "workloads")

    @property
    def flavor(self) -> Kind:
        return Kind("ResourceFlavor", self.api_version, "resourceflavors")

    @property
    def priority_class(self) -> Kind:
        return Kind("WorkloadPriorityClass", self.api_version, "workloadpriorityclasses")


@dataclass(frozen=True)
class Offered:
    """What only some clusters have, and the operator may use in this one."""

    kueue: Kueue | None = None
    claim_templates: bool = False

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Those that are watched."""
        return (
            *([self.kueue.workload] if self.kueue is not None else []),
            *([CLAIM_TEMPLATE] if self.claim_templates else []),
        )


# Matches every object that the operator makes, and the pods of these objects.
OWNED_SELECTOR = f"app.kubernetes.io/managed-by={FIELD_MANAGER},{API_GROUP}/job"
