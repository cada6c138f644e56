"""Objects that a cluster under test is expected to have: the DNS Service, local volumes."""

from typing import Any

from .layout import NODE, Cluster

STORAGE_CLASS = "visionrl-local"
VOLUMES = 8
VOLUME_SIZE = "10Gi"


def dns_service(cluster: Cluster) -> list[dict[str, Any]]:
    """The Service at the address in every pod's resolv.conf, with the DNS process as its one endpoint."""
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    endpoint = {"addresses": [{"ip": str(cluster.node_address)}], "ports": ports}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": str(cluster.dns_address), "ports": ports},
        },
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [endpoint]},
    ]


def volumes(cluster: Cluster) -> list[dict[str, Any]]:
    """A storage class and its volumes, folders of the node. Of type local, for hostPath ignores fsGroup.

    No provisioner empties a released volume: each serves one claim in a cluster's life.
    """
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    return [storage_class, *(_volume(cluster, f"local-{number}") for number in range(VOLUMES))]


def _volume(cluster: Cluster, name: str) -> dict[str, Any]:
    path = cluster.root / "volumes" / name
    path.mkdir(parents=True)
    on_node = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": VOLUME_SIZE},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [on_node]}},
        },
    }
