"""The API server in memory, over HTTP and with a kubeconfig: for programs that bring their own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.fake_api import FakeApi
from tests.support.serving import serving


@dataclass
class ApiServer:
    """A running server; ``logs`` by pod."""

    objects: FakeApi
    kubeconfig: Path
    logs: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path with its query, oldest first."""
    tokens: list[str] = field(default_factory=list)


@contextmanager
def api_server(folder: Path, namespace: str = "default") -> Iterator[ApiServer]:
    """Serve on loopback until the block ends; the kubeconfig's context is ``test``."""
    server = ApiServer(FakeApi(), folder / "kubeconfig")

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            server.requests.append(f"{self.command} {self.path}")
            server.tokens.append(self.headers.get("Authorization", ""))
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
            parts = urlsplit(self.path)
            if parts.path.endswith("/log"):
                text = server.logs.get(parts.path.split("/")[-2], "")
                tail = parse_qs(parts.query).get("tailLines")
                lines = text.splitlines(keepends=True)
                self._answer(200, "".join(lines[-int(tail[0]) :] if tail else lines).encode())
                return
            content_type = self.headers.get("Content-Type", "")
            found = asyncio.run(server.objects.send(self.command, self.path, content_type, body, 1.0))
            self._answer(found.status, found.content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _do

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{httpd.server_port}"}}],
                "users": [{"name": "u", "user": {"token": "secret-token"}}],
                "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u", "namespace": namespace}}],
            }
        )
    )
    with serving(httpd):
        yield server
