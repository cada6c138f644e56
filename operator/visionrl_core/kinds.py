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
        parts = ["apis" if self.group else "api", self.api_version]
        parts += ["namespaces", quote(namespace, safe="")] if namespace is not None else []
        parts.append(self.plural)
        parts += [quote(name, safe="")] if name is not None else []
        parts += [subresource] if subresource is not None else []
        return "/" + "/".join(parts)


JOB = Kind(KIND, API_VERSION, "visionrljobs")
POD = Kind("Pod", "v1", "pods")
SECRET = Kind("Secret", "v1", "secrets")
EVENT = Kind("Event", "v1", "events")
LEASE = Kind("Lease", "coordination.k8s.io/v1", "leases")
KUEUE_GROUP = "kueue.x-k8s.io"

# Children that are watched. Secrets are not: the right to watch them would be the right to read all of them.
WATCHED_CHILDREN = (
    Kind("ConfigMap", "v1", "configmaps"),
    Kind("Deployment", "apps/v1", "deployments"),
    Kind("Job", "batch/v1", "jobs"),
    Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
    POD,
    Kind("Service", "v1", "services"),
)
CHILDREN = {kind.name: kind for kind in (*WATCHED_CHILDREN, SECRET)}

# Every object that we make, and its pods, has it.
CHILD_SELECTOR = f"app.kubernetes.io/managed-by={FIELD_MANAGER},{API_GROUP}/job"
