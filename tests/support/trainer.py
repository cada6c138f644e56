"""A trainer's HTTP side, in this process: folders with manifests behind the job's key, and the faults it can have."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from visionrl.adapters import MANIFEST, Manifest, Version


class StandInTrainer:
    """Serves ``<root>/adapters/<name>/`` and ``<root>/base/`` as ``docs/architecture.md`` says.

    ``fault`` changes what it answers from now on: ``corrupt`` (a file's bytes differ from its digest), ``truncated``
    (a file ends early), ``stalled`` (a file never ends), ``not_ready`` (503). ``requests`` counts by path.
    """

    def __init__(self, root: Path, key: str, port: int = 0) -> None:
        self.root, self.key = root, key
        self.fault = ""
        self.requests: Counter[str] = Counter()
        self.release = threading.Event()
        """Set at the end: lets stalled answers go."""
        trainer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trainer._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> StandInTrainer:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests[handler.path] += 1
        folder, _, name = handler.path.strip("/").rpartition("/")
        file = self.root / folder / name
        if handler.headers.get("Authorization") != f"Bearer {self.key}":
            self._send(handler, 401, b"{}")
        elif self.fault == "not_ready":
            self._send(handler, 503, b"{}")
        elif name == MANIFEST and file.parent.is_dir():
            self._send(handler, 200, Manifest.of_folder(file.parent).to_json().encode())
        elif file.is_file():
            self._send_file(handler, file.read_bytes())
        else:
            self._send(handler, 404, b"{}")

    def _send_file(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        if self.fault == "corrupt":
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif self.fault == "truncated":
            data = data[:-1]
        elif self.fault == "stalled":
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(data[:1])
            self.release.wait()
            return
        self._send(handler, 200, data)

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def named_by_content(folder: Path, job: str, number: int) -> str:
    """Give an adapter's folder the name of the version that it is; returns the name."""
    version = Version.of(job, number, Manifest.of_folder(folder))
    folder.rename(folder.with_name(version.name))
    return version.name
