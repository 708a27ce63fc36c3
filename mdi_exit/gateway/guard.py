"""What keeps other sites' pages and hostile names out: headers of every answer, whose requests are taken.

The page takes scripts, styles, pictures and data from the gateway only, and may make no markup of text. There is no
authentication: the gateway listens on loopback unless told otherwise, and there it answers only to names of loopback, so
that no page of the web can read it through a name of its own that points here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from mdi_exit.gateway.infer import RejectedError

__all__ = ["HEADERS", "check_host", "check_origin", "with_headers"]

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def with_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Put the headers on an answer that is about to go out."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")


def check_host(request: web.Request, bound: str) -> None:
    """Raises ``RejectedError`` if a loopback listener is asked under a name that is none of loopback's."""
    if bound not in _LOOPBACK:
        return
    host = urlsplit(f"//{request.host}").hostname or ""
    if host not in _LOOPBACK and not host.endswith(".localhost"):
        raise RejectedError(403, "host", "host: expected a name of loopback (use --http to listen elsewhere)")


def check_origin(request: web.Request) -> None:
    """Raises ``RejectedError`` for a request that another site's page has its visitor's browser send."""
    origin = request.headers.get("Origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.host
    if foreign or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise RejectedError(403, "origin", "origin: expected this gateway's page or a program, got another site's page")
