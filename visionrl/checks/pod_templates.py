"""Pod templates of a job (``spec.overrides.*.podTemplate``): what they may say, and what needs the cluster's consent.

Names of fields are checked here, at the levels where they matter; the API server checks what is inside of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from visionrl.job import API_GROUP
from visionrl.problems import Problem, unknown_key

MAX_BYTES = 32 * 1024
RESERVED_ENV = "VISIONRL_"
# Domains of labels and annotations by which pods are found and queued.
RESERVED_DOMAINS = (API_GROUP, "app.kubernetes.io", "kueue.x-k8s.io")
RESERVED_VOLUMES = frozenset({"job", "key", "tmp", "cache", "run", "traces", "shm"})

TEMPLATE = frozenset({"metadata", "spec"})
METADATA = frozenset({"labels", "annotations"})
POD = frozenset(
    {
        *("affinity", "automountServiceAccountToken", "containers", "dnsConfig", "dnsPolicy", "enableServiceLinks"),
        *("hostAliases", "hostIPC", "hostNetwork", "hostPID", "hostUsers", "imagePullSecrets", "initContainers"),
        *("nodeSelector", "preemptionPolicy", "priorityClassName", "readinessGates", "resourceClaims"),
        *("runtimeClassName", "schedulerName", "schedulingGates", "securityContext", "serviceAccountName"),
        *("setHostnameAsFQDN", "shareProcessNamespace", "terminationGracePeriodSeconds", "tolerations"),
        *("topologySpreadConstraints", "volumes"),
    }
)
RESERVED_POD = frozenset(
    {"activeDeadlineSeconds", "ephemeralContainers", "hostname", "nodeName", "restartPolicy", "subdomain"}
)
OWN_CONTAINER = frozenset(
    {
        *("env", "envFrom", "imagePullPolicy", "lifecycle", "name", "resizePolicy", "resources", "securityContext"),
        *("terminationMessagePolicy", "volumeDevices", "volumeMounts"),
    }
)
RESERVED_CONTAINER = frozenset(
    {
        *("args", "command", "image", "livenessProbe", "ports", "readinessProbe", "startupProbe", "stdin", "stdinOnce"),
        *("terminationMessagePath", "tty", "workingDir"),
    }
)
CONTAINER = OWN_CONTAINER | RESERVED_CONTAINER | {"restartPolicy"}

SECRET_NAME = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY)($|_)", re.IGNORECASE)
IN_A_SECRET = "must not be a literal: it would lie in a ConfigMap; take it from a Secret (valueFrom.secretKeyRef)"

Template = Mapping[str, Any]


def faults(template: Template, path: str, own: str) -> Iterator[Problem]:
    """What a template may not say; ``own`` is the name of the component's container."""
    if len(json.dumps(template)) > MAX_BYTES:
        yield Problem(path, f"has more than {MAX_BYTES} bytes")
        return
    yield from _fields(template, path, TEMPLATE, frozenset())
    metadata, spec = template.get("metadata", {}), template.get("spec", {})
    yield from _fields(metadata, f"{path}.metadata", METADATA, frozenset())
    for kind in METADATA:
        yield from reserved_keys(_mapping(metadata).get(kind), f"{path}.metadata.{kind}")
    yield from _fields(spec, f"{path}.spec", POD, RESERVED_POD)
    for kind in ("containers", "initContainers"):
        for at, container in _items(spec, kind, f"{path}.spec"):
            is_own = container.get("name") == own and kind == "containers"
            allowed, reserved = (OWN_CONTAINER, RESERVED_CONTAINER) if is_own else (CONTAINER, frozenset[str]())
            yield from _fields(container, at, allowed, reserved)
            yield from _named(container, at)
            if not is_own and "image" not in container:
                yield Problem(f"{at}.image", f"required: only the component's own container, {own}, has one already")
            yield from _env(container, at)
    for at, volume in _items(spec, "volumes", f"{path}.spec"):
        yield from _named(volume, at)
        if volume.get("name") in RESERVED_VOLUMES:
            yield Problem(f"{at}.name", f"{volume['name']} is a volume of the operator's")


def privileges(template: Template, path: str) -> Iterator[Problem]:
    """What is beyond the *restricted* Pod Security Standard, or reaches the API server: it needs the cluster's
    consent (chart value ``jobPods.allowPrivileged``)."""
    spec = _mapping(template.get("spec"))
    for name in ("hostNetwork", "hostPID", "hostIPC", "automountServiceAccountToken"):
        if spec.get(name):
            yield Problem(f"{path}.spec.{name}", "is not allowed in this cluster")
    yield from _context(spec.get("securityContext"), f"{path}.spec.securityContext")
    for kind in ("containers", "initContainers"):
        for at, container in _items(spec, kind, f"{path}.spec"):
            yield from _context(container.get("securityContext"), f"{at}.securityContext")
            if any(port.get("hostPort") for _, port in _items(container, "ports", at)):
                yield Problem(f"{at}.ports", "hostPort is not allowed in this cluster")
    for at, volume in _items(spec, "volumes", f"{path}.spec"):
        if "hostPath" in volume:
            yield Problem(f"{at}.hostPath", "is not allowed in this cluster")


def images(template: Template, path: str) -> Iterator[tuple[str, str]]:
    """Path and image of every container that names one."""
    spec = _mapping(template.get("spec"))
    for kind in ("containers", "initContainers"):
        for at, container in _items(spec, kind, f"{path}.spec"):
            if "image" in container:
                yield f"{at}.image", str(container["image"])


def reserved_keys(keys: Any, path: str) -> Iterator[Problem]:
    """Labels or annotations that the operator sets."""
    for key in _mapping(keys):
        if key.split("/")[0] in RESERVED_DOMAINS:
            yield Problem(path, f"{key} is set by the operator")


def _context(context: Any, path: str) -> Iterator[Problem]:
    context = _mapping(context)
    wrong = {
        "privileged": context.get("privileged") is True,
        "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is True,
        "runAsNonRoot": context.get("runAsNonRoot") is False,
        "runAsUser": context.get("runAsUser") == 0,
        "capabilities": bool(_mapping(context.get("capabilities")).get("add")),
        "seccompProfile": _mapping(context.get("seccompProfile")).get("type") == "Unconfined",
        "procMount": context.get("procMount") not in (None, "Default"),
        "sysctls": bool(context.get("sysctls")),
    }
    for name, refused in wrong.items():
        if refused:
            yield Problem(f"{path}.{name}", "is not allowed in this cluster")


def _env(container: Template, path: str) -> Iterator[Problem]:
    for at, variable in _items(container, "env", path):
        name = str(variable.get("name", ""))
        if name.startswith(RESERVED_ENV):
            yield Problem(f"{at}.name", f"{name} is set by the operator")
        if "value" in variable and SECRET_NAME.search(name):
            yield Problem(f"{at}.value", f"{name} {IN_A_SECRET}")


def _named(item: Template, path: str) -> Iterator[Problem]:
    if not isinstance(item.get("name"), str) or not item["name"]:
        yield Problem(f"{path}.name", "required: by its name it is merged with the operator's")


def _fields(value: Any, path: str, allowed: frozenset[str], reserved: frozenset[str]) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(path, "must be a mapping (key: value)")
        return
    for name in value:
        if name in reserved:
            yield Problem(f"{path}.{name}", "is set by the operator")
        elif name not in allowed:
            yield Problem(f"{path}.{name}", unknown_key(name, allowed))


def _items(value: Any, name: str, path: str) -> Iterator[tuple[str, Template]]:
    """The mappings of a list, with their paths."""
    found = _mapping(value).get(name)
    for index, item in enumerate(found if isinstance(found, list) else []):
        if isinstance(item, Mapping):
            yield f"{path}.{name}[{index}]", item


def _mapping(value: Any) -> Template:
    return value if isinstance(value, Mapping) else {}
