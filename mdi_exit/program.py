"""What the live programs share: connecting, signals, and an end that says goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from mdi_exit.driver import NodeDriver
from mdi_exit.errors import StartError, StoppedError
from mdi_exit.metrics import serve_metrics
from mdi_exit.settings import NodeSettings
from mdi_exit.transport import Handler, Will
from mdi_exit.transport.mqtt import MAX_PENDING_BYTES, MqttTransport

__all__ = ["joined", "run_tidily", "stop_requested", "transport_of"]

T = TypeVar("T")

log = logging.getLogger(__name__)


def transport_of(
    settings: NodeSettings,
    client_id: str,
    handler: Handler,
    will: Will | None = None,
    *,
    room_bytes: int = MAX_PENDING_BYTES,
    beside: MqttTransport | None = None,
    on_denied: Callable[[StartError], None] | None = None,
) -> MqttTransport:
    """A connection as the settings want it. ``room_bytes``: how much may wait for a slow broker; ``beside``: of two
    connections the first, which finds the broker; ``on_denied``: see ``MqttTransport``.
    """
    return MqttTransport(
        beside or settings.broker,
        client_id=client_id,
        handler=handler,
        will=will,
        username=settings.username,
        password=settings.password,
        tls=settings.tls(),
        on_denied=on_denied,
        keepalive_s=max(round(settings.keepalive), 1),
        max_pending_bytes=room_bytes,
    )


@contextlib.asynccontextmanager
async def joined(driver: NodeDriver, settings: NodeSettings) -> AsyncIterator[MqttTransport]:
    """A transport for ``driver``, and its metrics if wanted, for as long as the context lasts."""
    client_id = f"{driver.topics.deployment}-{driver.name}-{driver.worker.config.incarnation}"
    transport = transport_of(settings, client_id, driver, driver.will(), on_denied=driver.fail)
    where = settings.metrics
    metrics = serve_metrics(where.host, where.port, driver, transport) if where is not None else None
    try:
        if metrics is not None:
            log.info("metrics on %s", metrics.address)
        async with transport:
            yield transport
    finally:
        driver.close()
        if metrics is not None:
            metrics.close()


def stop_requested() -> asyncio.Event:
    """Set by SIGINT and SIGTERM from now on."""
    event = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, event.set)
    return event


def run_tidily(work: Coroutine[Any, Any, T]) -> T:
    """Run it; SIGTERM ends it as Ctrl-C does: what was started ends, what was changed on the machine is put back.

    Raises ``StoppedError`` then.
    """

    async def watched() -> T:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        raise StoppedError("ended by SIGTERM") from None
