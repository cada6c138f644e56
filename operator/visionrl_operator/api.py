"""Requests to the API server: bounded in time, retried where that can help.

The requests are made with ``kubernetes.aio``'s REST client, below its generated classes: those copy every object
several times, and ours are plain JSON already.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import aiohttp

from visionrl_core.kinds import FIELD_MANAGER, Kind

JSON = "application/json"
APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"

ATTEMPTS = 5
FIRST_RETRY_SECONDS = 0.25
LONGEST_RETRY_SECONDS = 10.0
RETRIED = frozenset({429, 500, 502, 503, 504})

Body = dict[str, Any]
FORBIDDEN = 403

logger = logging.getLogger(__name__)


class ApiError(Exception):
    """The API server's refusal, or none at all: ``status`` is 0 when it could not be reached."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status, self.reason, self.message = status, reason, message
        super().__init__(f"{' '.join(filter(None, (str(status), reason)))}: {message}" if status else message)


@dataclass(frozen=True)
class Answer:
    """What the transport got."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Transport(Protocol):
    """Sends one request. Raises ``aiohttp.ClientError``, ``OSError`` or ``TimeoutError`` when none comes back."""

    async def send(self, method: str, path: str, content_type: str, body: Any, timeout_s: float) -> Answer: ...

    async def close(self) -> None: ...


class KubernetesTransport:
    """The cluster that the service account or the kubeconfig names."""

    def __init__(self, configuration: Any) -> None:
        from kubernetes.aio.client.rest import RESTClientObject

        self._configuration = configuration
        self._rest = RESTClientObject(configuration)

    @classmethod
    async def connect(cls, connections: int) -> KubernetesTransport:
        """``connections``: requests at once."""
        from kubernetes.aio import config
        from kubernetes.aio.client import Configuration

        configuration = Configuration()
        if "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(client_configuration=configuration)
        configuration.connection_pool_maxsize = connections
        return cls(configuration)

    async def send(self, method: str, path: str, content_type: str, body: Any, timeout_s: float) -> Answer:
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": FIELD_MANAGER}
        for setting in (await self._configuration.auth_settings()).values():
            headers[setting["key"]] = setting["value"]
        response = await self._rest.request(
            method,
            self._configuration.host + path,
            headers=headers,
            body=body,
            _request_timeout=aiohttp.ClientTimeout(total=timeout_s),
        )
        async with asyncio.timeout(timeout_s):
            content = await response.read()
        return Answer(response.status, response.headers, content)

    async def close(self) -> None:
        await self._rest.close()


class Api:
    """Reads and writes objects. ``count`` is called for every answered request with verb, kind and status code."""

    def __init__(
        self,
        transport: Transport,
        timeout: float,
        count: Callable[[str, str, int], None] = lambda verb, kind, code: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._transport, self._timeout, self._count, self._sleep = transport, timeout, count, sleep

    async def close(self) -> None:
        await self._transport.close()

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Body | None:
        """The object, or None where there is none."""
        return await _or_none(self._call("GET", kind, kind.path(namespace, name)), 404)

    async def list(self, kind: Kind, namespace: str | None, **parameters: Any) -> Body:
        """One page of a collection."""
        return await self._call("GET", kind, kind.path(namespace), parameters)

    async def create(self, kind: Kind, namespace: str, body: Body) -> Body | None:
        """The object as it was made; None where one of its name exists already."""
        try:
            return await self._call("POST", kind, kind.path(namespace), {"fieldManager": FIELD_MANAGER}, JSON, body)
        except ApiError as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def replace(self, kind: Kind, namespace: str, name: str, body: Body) -> Body | None:
        """The object as it is now; None where it changed since ``body`` was read."""
        return await _or_none(self._call("PUT", kind, kind.path(namespace, name), {}, JSON, body), 409)

    async def apply(self, kind: Kind, namespace: str, name: str, body: Body) -> Body:
        """Server-side apply: the object as it is now."""
        parameters = {"fieldManager": FIELD_MANAGER, "force": "true"}
        path = kind.path(namespace, name)
        return await self._call("PATCH", kind, path, parameters, APPLY_PATCH, body, RETRIED | {409})

    async def patch_status(self, kind: Kind, namespace: str, name: str, body: Body) -> Body | None:
        """Merge into the status subresource; None where the object is gone or changed since it was read (``body``
        names its resource version)."""
        path = kind.path(namespace, name, "status")
        parameters = {"fieldManager": FIELD_MANAGER}
        return await _or_none(self._call("PATCH", kind, path, parameters, MERGE_PATCH, body), 404, 409)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str | None, propagation: str) -> Body | None:
        """Delete the object, if given exactly the one with this uid: what is left of it; None where it was gone."""
        options: Body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        call = self._call("DELETE", kind, kind.path(namespace, name), {}, JSON, options)
        return await _or_none(call, 404, 409)

    async def delete_now(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete an object without waiting for whoever would confirm its end. No error where it is gone."""
        options: Body = {
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background", "gracePeriodSeconds": 0,
            "preconditions": {"uid": uid},
        }  # fmt: skip
        await _or_none(self._call("DELETE", kind, kind.path(namespace, name), {}, JSON, options), 404, 409)

    async def groups(self) -> Body:
        """The API groups that the server has."""
        return await self._call("GET", None, "/apis")

    async def _call(
        self,
        method: str,
        kind: Kind | None,
        path: str,
        parameters: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        body: Any = None,
        retried: frozenset[int] = RETRIED,
    ) -> Body:
        """Every request here may be repeated: applying, merging and deleting are idempotent, and an object that is
        created again is there already."""
        target = f"{path}?{urlencode(parameters)}" if parameters else path
        error = ApiError(0, "", "not tried")
        for attempt in range(ATTEMPTS):
            try:
                answer = await self._transport.send(method, target, content_type, body, self._timeout)
            except (aiohttp.ClientError, OSError, TimeoutError) as problem:
                error = ApiError(0, "Unreachable", f"{method} {path}: {problem or type(problem).__name__}")
                delay = _backoff(attempt)
            else:
                self._count(method.lower(), kind.name if kind else "", answer.status)
                if 200 <= answer.status < 300:
                    found: Body = json.loads(answer.content)
                    return found
                error = _error(answer)
                if answer.status not in retried:
                    raise error
                delay = max(_backoff(attempt), _retry_after(answer))
            if attempt + 1 < ATTEMPTS:
                logger.debug("retrying %s %s in %.1f s: %s", method, path, delay, error)
                await self._sleep(delay)
        raise error


async def _or_none(call: Awaitable[Body], *statuses: int) -> Body | None:
    try:
        return await call
    except ApiError as error:
        if error.status in statuses:
            return None
        raise


def _error(answer: Answer) -> ApiError:
    """A proxy between us may answer with anything, so only a Status object is quoted."""
    try:
        status = json.loads(answer.content)
        return ApiError(answer.status, str(status.get("reason", "")), str(status["message"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return ApiError(answer.status, "", answer.content[:200].decode(errors="replace").strip())


def _backoff(attempt: int) -> float:
    return min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**attempt) * random.uniform(0.8, 1.2)


def _retry_after(answer: Answer) -> float:
    try:
        return min(60.0, float(answer.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0
