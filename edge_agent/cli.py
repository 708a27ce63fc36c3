"""``edge-agent``: one agent."""

from __future__ import annotations

import asyncio
import os
import sys

from mdi_exit.config import run_program

__all__ = ["main"]


def _run() -> int:
    from edge_agent.config import resolve_agent

    settings = resolve_agent(sys.argv[1:], os.environ).settings

    from edge_agent.app import serve
    from mdi_exit import logs

    logs.configure(settings.log_level, settings.log_format)
    return asyncio.run(serve(settings))


def main() -> int:
    """The program; returns its exit status."""
    return run_program("edge-agent", _run, interrupted=0)


if __name__ == "__main__":
    sys.exit(main())
