"""GET / is 200; GET /resolve/NAME answers with NAME's address, as the pod's resolver sees it."""

import importlib.metadata
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        try:
            body, status = self.answer(), 200
        except OSError as error:
            body, status = str(error), 502
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def answer(self) -> str:
        if self.path.startswith("/resolve/"):
            return socket.gethostbyname(self.path.removeprefix("/resolve/"))
        return importlib.metadata.version("dnslib")


ThreadingHTTPServer(("", 8080), Handler).serve_forever()
