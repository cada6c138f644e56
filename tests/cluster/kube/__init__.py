"""A real Kubernetes for the cluster tests, on a bare Debian 12 machine, without Docker.

`kind` needs a Docker engine and its node image. Here the API server, the controller manager, the
scheduler, kubelet and kube-proxy are built from Debian's own source package and run, with Debian's etcd,
containerd and runc, inside one set of Linux namespaces (processes, mounts, network). Stopping the first
process of that sandbox stops all of it and takes every mount, address and firewall rule with it.

    python -m tests.cluster.kube --help
"""
