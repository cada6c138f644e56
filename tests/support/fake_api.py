"""An API server in memory, as a transport: enough of Kubernetes to reconcile against, with faults on demand."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from visionrl_core.kinds import EVENT, JOB, LEASE, OWNED_KINDS, SECRET, Kueue
from visionrl_operator.api import APPLY_PATCH, MERGE_PATCH, Answer, Api
from visionrl_operator.store import OwnedObject, Store

Body = dict[str, Any]
KUEUE = Kueue("kueue.x-k8s.io/v1beta2")
KINDS = {kind.plural: kind for kind in (JOB, EVENT, LEASE, *OWNED_KINDS.values(), KUEUE.workload)}
OF_THE_CLUSTER = ("nodes", KUEUE.flavor.plural, KUEUE.priority_class.plural)
CREATED = "2026-01-01T00:00:00Z"


class Died(BaseException):
    """The operator's process ended in the middle of a pass."""


def answer(status: int, content: Any, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, headers or {}, json.dumps(content).encode())


def failure(status: int, reason: str = "", message: str = "", **headers: str) -> Answer:
    content = {"kind": "Status", "reason": reason, "message": message}
    return answer(status, content, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class FakeApi:
    """``objects`` by (plural, namespace, name). ``fault`` sees every request first: an answer, an exception to raise,
    or None to go on. With ``lives`` given, the operator dies after so many writes."""

    objects: dict[tuple[str, str, str], Body] = field(default_factory=dict)
    fault: Callable[[str, str], Answer | BaseException | None] = lambda method, path: None
    webhook: Callable[[str, Body | None, Body], str | None] = lambda plural, old, new: None
    """Sees every write of an object: its refusal, or None."""
    writes: list[str] = field(default_factory=list)
    """Method and path of every write, oldest first."""
    lives: int | None = None
    revision: int = 1000

    # --- transport

    async def send(self, method: str, path: str, content_type: str, body: Any, timeout_s: float) -> Answer:
        wanted = self.fault(method, path)
        if isinstance(wanted, BaseException):
            raise wanted
        if wanted is not None:
            return wanted
        parts = urlsplit(path)
        if method != "GET":
            if self.lives is not None:
                if self.lives == 0:
                    raise Died
                self.lives -= 1
            self.writes.append(f"{method} {parts.path}")
        return self._answer(method, parts.path, parse_qs(parts.query), content_type, copy.deepcopy(body))

    async def close(self) -> None:
        pass

    def _answer(self, method: str, path: str, query: Mapping[str, list[str]], content_type: str, body: Any) -> Answer:
        segments = path.split("/namespaces/")[-1].split("/")
        if segments[-2] in OF_THE_CLUSTER:
            found = self.objects.get((segments[-2], "", segments[-1]))
            return answer(200, found) if found else failure(404, "NotFound")
        if "namespaces" not in path:
            return answer(200, self._list(segments[-1], None))
        namespace, plural, *rest = segments
        if not rest:
            if method == "GET":
                wanted = query.get("fieldSelector", [""])[0].split(",")
                labels = [each.partition("=") for each in query.get("labelSelector", [""])[0].split(",") if each]
                found = self._list(plural, namespace)
                found["items"] = [
                    item
                    for item in found["items"]
                    if all(selects(each, item) for each in wanted if each)
                    and all(item["metadata"].get("labels", {}).get(key) == value for key, _, value in labels)
                ]
                return answer(200, found)
            rest = [body["metadata"]["name"]]
        key = (plural, namespace, rest[0])
        existing = self.objects.get(key)
        match method:
            case "GET":
                return answer(200, existing) if existing else failure(404, "NotFound")
            case "POST":
                if existing:
                    return failure(409, "AlreadyExists", f"{plural} {rest[0]} already exists")
                return self._put(plural, None, body, 201)
            case "PUT":
                if existing is None or body["metadata"]["resourceVersion"] != existing["metadata"]["resourceVersion"]:
                    return failure(409, "Conflict")
                return self._put(plural, existing, body)
            case "DELETE":
                return self._delete(key, existing, body)
        if content_type == APPLY_PATCH:
            return self._put(plural, existing, merged(existing or {}, body), 200 if existing else 201)
        assert content_type == MERGE_PATCH
        if existing is None:
            return failure(404, "NotFound")
        if not rest[1:]:
            return answer(200, self.put(plural, merged(existing, body)))
        assert rest[1:] == ["status"]
        if body["metadata"]["resourceVersion"] != existing["metadata"]["resourceVersion"]:
            return failure(409, "Conflict")
        changed = {**existing, "status": merged(existing.get("status", {}), body["status"])}
        changed["metadata"] = dict(existing["metadata"])
        return self._put(plural, existing, changed)

    def _put(self, plural: str, existing: Body | None, body: Body, status: int = 200) -> Answer:
        if refusal := self.webhook(plural, existing, body):
            return failure(403, "Forbidden", f"admission webhook denied the request: {refusal}")
        return answer(status, self.put(plural, body))

    def _list(self, plural: str, namespace: str | None) -> Body:
        items = [body for (p, n, _), body in self.objects.items() if p == plural and namespace in (None, n)]
        return {"metadata": {"resourceVersion": str(self.revision)}, "items": items}

    def _delete(self, key: tuple[str, str, str], existing: Body | None, options: Body) -> Answer:
        if existing is None:
            return failure(404, "NotFound")
        if options.get("preconditions", {}).get("uid", existing["metadata"]["uid"]) != existing["metadata"]["uid"]:
            return failure(409, "Conflict")
        if options["propagationPolicy"] == "Foreground":
            existing["metadata"]["deletionTimestamp"] = CREATED
            return answer(200, self.put(key[0], existing))
        del self.objects[key]
        return answer(200, {"kind": "Status"})

    # --- the cluster, from outside

    def put(self, plural: str, body: Body) -> Body:
        """Store an object, as the API server would after any write."""
        self.revision += 1
        metadata = body["metadata"]
        metadata.setdefault("uid", f"uid-{self.revision}")
        metadata.setdefault("creationTimestamp", CREATED)
        metadata.setdefault("generation", 1)
        metadata["resourceVersion"] = str(self.revision)
        self.objects[plural, metadata["namespace"], metadata["name"]] = body
        return body

    def of(self, plural: str) -> list[Body]:
        return [body for (kind, _, _), body in self.objects.items() if kind == plural]

    def get(self, plural: str, name: str, namespace: str = "default") -> Body:
        return self.objects[plural, namespace, name]

    def finish_deletions(self, store: Store | None = None) -> None:
        """The garbage collector's work, and the watch that reports it."""
        for key, body in list(self.objects.items()):
            if "deletionTimestamp" in body["metadata"] and key[0] != "pods":
                del self.objects[key]
                for pod_key, pod in list(self.objects.items()):
                    owners = pod["metadata"].get("ownerReferences", [])
                    if pod_key[0] == "pods" and any(owner["uid"] == body["metadata"]["uid"] for owner in owners):
                        del self.objects[pod_key]
                        if store is not None:
                            store.remove("Pod", pod)
                if store is not None:
                    store.remove(KINDS[key[0]].name, body)

    def deliver(self, store: Store) -> None:
        """What working watches deliver."""
        for kind in (*OWNED_KINDS.values(), KUEUE.workload):
            for job, entry in store.entries(kind.name):
                name = entry.ref.name if isinstance(entry, OwnedObject) else job.name
                if (kind.plural, job.namespace, name) not in self.objects:
                    store.forget(kind.name, entry, job)
        for (plural, _, _), body in list(self.objects.items()):
            if plural in OF_THE_CLUSTER:
                continue
            if plural != JOB.plural and "visionrl.dev/job" not in body["metadata"].get("labels", {}):
                continue  # watches are label-selected
            if KINDS[plural] not in (EVENT, LEASE, SECRET):
                store.feed(KINDS[plural].name, copy.deepcopy(body))


def client(server: FakeApi) -> Api:
    """An API client that does not really wait."""

    async def no_sleep(_: float) -> None:
        return None

    return Api(server, timeout=60.0, sleep=no_sleep)


def selects(field: str, body: Body) -> bool:
    """One requirement of a field selector, such as ``involvedObject.uid=...``."""
    path, _, value = field.partition("=")
    found: Any = body
    for name in path.split("."):
        found = found.get(name, {})
    return bool(found == value)


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    base = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            base.pop(name, None)
        else:
            base[name] = merged(base.get(name), value)
    return base
