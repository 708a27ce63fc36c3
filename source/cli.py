"""``edge-source``: the source."""

from __future__ import annotations

import asyncio
import os
import sys

from mdi_exit.config import run_program

__all__ = ["main"]


def _run() -> int:
    from source.config import resolve_source

    settings = resolve_source(sys.argv[1:], os.environ).settings

    from mdi_exit import logs
    from source.app import serve

    logs.configure(settings.log_level, settings.log_format)
    return asyncio.run(serve(settings))


def main() -> int:
    """The program; returns its exit status."""
    return run_program("edge-source", _run, interrupted=0)


if __name__ == "__main__":
    sys.exit(main())
