"""``mdi-exit announce``: tells the network of a broker that does not do so itself."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from mdi_exit import logs, values
from mdi_exit.config import resolve, setting
from mdi_exit.discovery import announced, answers, own_addresses
from mdi_exit.program import stop_requested

__all__ = ["AnnounceSettings", "main"]

_MOST_NAME_BYTES = 63

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnounceSettings:
    """What to announce. ``address`` None: all of this machine's that others may reach."""

    port: int = setting(1883, help="where the broker listens", parse=values.integer(1, 65535), metavar="PORT")
    tls: bool = setting(False, help="the broker wants TLS there", parse=values.switch)
    title: str = setting(
        None, help="shown to people; default: from the machine's name", parse=values.text, metavar="TEXT",
        derive=lambda _: f"mdi-exit broker on {socket.gethostname().partition('.')[0]}",
    )  # fmt: skip
    address: str | None = setting(
        None, help="the broker's IP address; default: this machine's", parse=values.ip_address, metavar="IP"
    )
    log_format: str = setting("plain", help="lines for people or JSON", choices=logs.FORMATS)
    log_level: str = setting("info", help="what to log", choices=logs.LEVELS)


def main(argv: Sequence[str]) -> int:
    """Announce until SIGINT or SIGTERM. Raises ``MdiExitError``."""
    settings = resolve(
        AnnounceSettings, argv, os.environ, prog="mdi-exit announce", section="announce",
        description="Announces an MQTT broker by mDNS, so that agents and sources without --broker find it.",
    ).settings  # fmt: skip
    logs.configure(settings.log_level, settings.log_format)
    asyncio.run(_announce(settings))
    return 0


async def _announce(settings: AnnounceSettings) -> None:
    stop = stop_requested()
    addresses = [settings.address] if settings.address is not None else own_addresses()
    title = settings.title.encode()[:_MOST_NAME_BYTES].decode(errors="ignore")
    async with announced(title, settings.port, tls=settings.tls, addresses=addresses) as name:
        log.info("announcing %r: port %d of %s", name, settings.port, ", ".join(addresses))
        found = [values.BrokerAddress(address, settings.port, tls=settings.tls) for address in addresses]
        if not any([await answers(address) for address in found]):
            log.warning("nothing answers there yet: the broker must listen on more than the loopback address")
        await stop.wait()
    log.info("no longer announced")
