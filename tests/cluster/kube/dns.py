"""The cluster's DNS: answers A queries for Services and their pods from what the API server says.

usage: KUBECONFIG=... python dns.py ADDRESS        (inside the sandbox; needs dnslib and kubernetes)

Debian 12 packages no cluster DNS. Names outside cluster.local do not exist here: an answer at once, where
silence would make a resolver wait.
"""

import ipaddress
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from dnslib import QTYPE, RCODE, RR, SOA, A, DNSRecord
from dnslib.server import BaseResolver, DNSLogger, DNSServer
from kubernetes import client, config, watch

ZONE = "cluster.local"
TTL_S = 5
RETRY_S = 1
WATCH_S = 300

Key = tuple[str, str]  # namespace, name


class Follower:
    """A live copy of all objects of one kind, by namespace and name."""

    def __init__(self, list_objects: Callable[..., Any]) -> None:
        self.objects: dict[Key, Any] = {}
        self.synced = threading.Event()
        self._list = list_objects
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while True:
            try:
                listing = self._list()
                self.objects = {(o.metadata.namespace, o.metadata.name): o for o in listing.items}
                self.synced.set()
                version = listing.metadata.resource_version
                for event in watch.Watch().stream(self._list, resource_version=version, timeout_seconds=WATCH_S):
                    self._take(event["type"], event["object"])
            except Exception as error:  # a version too old, an API server that went away: list again
                logging.warning("%s", error)
                time.sleep(RETRY_S)

    def _take(self, kind: str, changed: Any) -> None:
        key = (changed.metadata.namespace, changed.metadata.name)
        if kind == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = changed


def addresses(name: str, services: dict[Key, Any], endpoints: dict[Key, Any]) -> list[str]:
    """The IPv4 addresses of [pod.]service.namespace.svc.cluster.local; empty for a name that does not exist."""
    labels = name.removesuffix(f".svc.{ZONE}").split(".")
    if not name.endswith(f".svc.{ZONE}") or len(labels) not in (2, 3):
        return []
    key = (labels[-1], labels[-2])
    service = services.get(key)
    if service is None:
        return []
    if service.spec.cluster_ip not in (None, "", "None"):
        return [service.spec.cluster_ip] if len(labels) == 2 else []
    subsets = (endpoints[key].subsets or []) if key in endpoints else []
    pods = [pod for subset in subsets for pod in subset.addresses or []]
    return [pod.ip for pod in pods if len(labels) == 2 or labels[0] == pod.hostname]


class Resolver(BaseResolver):
    def __init__(self, services: Follower, endpoints: Follower) -> None:
        self.services, self.endpoints = services, endpoints

    def resolve(self, request: DNSRecord, handler: object) -> DNSRecord:
        reply = request.reply()
        name = str(request.q.qname).rstrip(".").lower()
        found = addresses(name, self.services.objects, self.endpoints.objects)
        if not found:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            for address in found:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=TTL_S))
        if not reply.rr:
            # A name with no record of the wanted type (AAAA) is an empty success: resolvers then use the A record.
            authority = SOA(f"ns.dns.{ZONE}", f"hostmaster.{ZONE}", (1, 60, 60, 60, TTL_S))
            reply.add_auth(RR(ZONE, QTYPE.SOA, rdata=authority, ttl=TTL_S))
        return reply


def main() -> None:
    address = str(ipaddress.ip_address(sys.argv[1]))
    config.load_config()
    core = client.CoreV1Api()
    services = Follower(core.list_service_for_all_namespaces)
    endpoints = Follower(core.list_endpoints_for_all_namespaces)
    services.synced.wait()
    endpoints.synced.wait()
    for tcp in (False, True):
        server = DNSServer(Resolver(services, endpoints), address=address, port=53, tcp=tcp, logger=DNSLogger("error"))
        server.start_thread()
    threading.Event().wait()


if __name__ == "__main__":
    main()
