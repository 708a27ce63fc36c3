"""The files of the pages: read once, served from memory with an entity tag, compressed for whom it helps."""

from __future__ import annotations

import gzip
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from aiohttp import web

__all__ = ["Pages"]

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_ALIASES: Final = {"": "index.html", "docs": "docs.html"}


class Pages:
    """What the package has in ``static``, by path; no other path leads to a file."""

    def __init__(self) -> None:
        self._files = {
            path: (body, gzip.compress(body, mtime=0), hashlib.sha256(body).hexdigest()[:32])
            for path, body in _below(files("mdi_exit.gateway").joinpath("static"))
        }

    def answer(self, request: web.Request) -> web.StreamResponse:
        """The file of the request's path. Raises ``HTTPNotFound``."""
        path = request.path.strip("/")
        path = _ALIASES.get(path, path)
        found = self._files.get(path)
        if found is None:
            raise web.HTTPNotFound
        body, packed, tag = found
        headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if any(known.value in (tag, "*") for known in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = _TYPES[path[path.rindex(".") :]]
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=packed, headers=headers | {"Content-Encoding": "gzip"})
        return web.Response(body=body, headers=headers)


def _below(folder: Traversable, path: str = "") -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        name = f"{path}{entry.name}"
        if entry.is_dir():
            found += _below(entry, f"{name}/")
        elif name[name.rfind(".") :] in _TYPES:
            found.append((name, entry.read_bytes()))
    return found
