"""``mdi-exit serve``: the gateway as a program."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Any

from mdi_exit import logs
from mdi_exit.config import resolve
from mdi_exit.errors import StartError, UsageError
from mdi_exit.gateway.config import GatewaySettings
from mdi_exit.program import stop_requested

__all__ = ["main", "need_web"]

log = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status. Raises ``MdiExitError``."""
    settings = resolve(
        GatewaySettings,
        argv,
        os.environ,
        prog="mdi-exit serve",
        section="serve",
        description="Labels over HTTP and a live page of a running deployment.",
    ).settings
    need_web("mdi-exit serve")
    logs.configure(settings.log_level, settings.log_format)
    return asyncio.run(_serve(settings))


def need_web(what: str) -> None:
    """Raises ``UsageError`` where the extra is not installed."""
    if importlib.util.find_spec("aiohttp") is None:
        raise UsageError(what, "the extra 'web' (pip install 'mdi-exit[web]')", "none")


async def _serve(settings: GatewaySettings) -> int:
    from mdi_exit.gateway.app import serving

    stop = stop_requested()
    denied: asyncio.Future[StartError] = asyncio.get_running_loop().create_future()
    async with serving(
        settings, on_denied=lambda error: None if denied.done() else denied.set_result(error)
    ) as address:
        log.info("page and gateway of %s on %s", settings.deployment, address)
        stopped = asyncio.create_task(stop.wait(), name="stop")
        either: list[asyncio.Future[Any]] = [denied, stopped]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
    if denied.done():
        raise denied.result()
    return 0
