"""``python -m broker.amqtt_broker PORT``: amqtt, the broker of last resort, in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import warnings
from typing import Any

__all__ = ["main"]


class _QuietBytes(bytes):
    """amqtt formats every payload into debug strings, even with logging off: give it a short ``repr``."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def _quieten() -> None:
    from amqtt.mqtt.publish import PublishPayload

    original = PublishPayload.__init__

    def quiet(self: Any, data: Any = None) -> None:
        original(self, _QuietBytes(data) if data is not None else None)

    PublishPayload.__init__ = quiet


def _keep_to_own_topics() -> None:
    """amqtt sends a client that connects the retained messages of everybody's subscriptions: only of its own."""
    from amqtt.broker import Broker

    original = Broker._publish_retained_messages_for_subscription

    async def own(self: Any, subscription: tuple[str, int], session: Any) -> None:
        if any(holder is session for holder, _ in self._subscriptions.get(subscription[0], ())):
            await original(self, subscription, session)

    Broker._publish_retained_messages_for_subscription = own


async def _serve(port: int) -> None:
    from amqtt.broker import Broker

    _quieten()
    _keep_to_own_topics()
    config = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}", "max_connections": 1000}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    broker = Broker(config)
    await broker.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await broker.shutdown()


def main() -> int:
    """Serve until SIGTERM."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    asyncio.run(_serve(int(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
