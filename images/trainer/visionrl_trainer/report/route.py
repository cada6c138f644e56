"""``GET /report``: the run's page in a browser, which gets the key once, in the address.

``/report?key=…`` answers with a cookie and leads to ``/report``, so that the key stays in no history and no log. The
cookie is derived from the key, opens this page alone, and scripts cannot read it.
"""

from __future__ import annotations

import hmac
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response

PAGE = "/report"
COOKIE = "visionrl-report"


def report_page(request: Request, key: str, file: Path | None) -> Response:
    """The page, the cookie for it, or a refusal."""
    cookie = hmac.new(key.encode(), b"report", "sha256").hexdigest()
    if _same(request.query_params.get("key"), key):
        response: Response = RedirectResponse(PAGE, status_code=303)
        response.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", path=PAGE)
    elif not (
        _same(request.cookies.get(COOKIE), cookie) or _same(request.headers.get("authorization"), f"Bearer {key}")
    ):
        response = PlainTextResponse("open /report?key=KEY with the job's key\n", status_code=401)
    elif file is None or not file.is_file():
        response = PlainTextResponse("there is no report yet\n", status_code=503)
    else:
        response = FileResponse(file, media_type="text/html")
    response.headers["cache-control"] = "no-store"
    response.headers["referrer-policy"] = "no-referrer"
    return response


def _same(given: str | None, expected: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), expected.encode())
