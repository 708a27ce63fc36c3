"""``python -m mdi_exit.probe``: does the program of this container answer? For Docker's health check: quick, stdlib only.

Asks the metrics address of the environment (``MDI_EXIT_METRICS``) for ``/healthz``, or for what the argument says: another
path, or ``HOST:PORT/PATH``. Status 0 when the answer is 200, else 1; one line says what it was.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["main", "probe"]

_PATH: Final = "/healthz"
_HERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}  # noqa: S104 - where it listens: where to ask
_PATIENCE_S: Final = 4.0
_SHOWN: Final = 200


def probe(address: str, path: str) -> tuple[bool, str]:
    """Whether ``HOST:PORT`` answers a request for ``path`` with 200, and a line that says what it answered."""
    host, _, port = address.rpartition(":")
    try:
        connection = http.client.HTTPConnection(_HERE.get(host, host), int(port), timeout=_PATIENCE_S)
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read(_SHOWN).decode(errors="replace").split("\n", 1)[0]
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, f"{address}{path}: {error or type(error).__name__}"
    return answer.status == http.client.OK, f"{address}{path}: {answer.status} {said}".rstrip()


def main(argv: Sequence[str], env: Mapping[str, str]) -> int:
    """The program; returns its exit status."""
    address, slash, path = (argv[0] if argv else _PATH).partition("/")
    well, line = probe(address or env.get("MDI_EXIT_METRICS", ""), slash + path)
    sys.stdout.write(line + "\n")
    return int(not well)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
