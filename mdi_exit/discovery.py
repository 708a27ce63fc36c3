"""Zero configuration: a broker that announces itself by mDNS (DNS-SD types ``_mqtt._tcp`` and ``_secure-mqtt._tcp``).

The one file that imports zeroconf, and only once somebody looks or announces.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psutil

from mdi_exit import values
from mdi_exit.errors import StartError, TransportError

if TYPE_CHECKING:
    from zeroconf.asyncio import AsyncServiceInfo

__all__ = [
    "PLAIN_TYPE",
    "SECURE_TYPE",
    "Broker",
    "announced",
    "answers",
    "best",
    "find_brokers",
    "look_for_broker",
    "own_addresses",
]

PLAIN_TYPE: Final = "_mqtt._tcp.local."
SECURE_TYPE: Final = "_secure-mqtt._tcp.local."
_MARK: Final = {"app": "mdi-exit"}
_LOCAL: Final = values.BrokerAddress("127.0.0.1", 1883)
_LOOK_S: Final = 2.0
_LATE_S: Final = 0.3  # after the first answer: others are on their way
_PROBE_S: Final = 1.0
_INSIDE: Final = ("docker", "br-", "veth", "virbr", "cni", "lxc")  # bridges to containers, of no use to other machines


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that announces itself. ``marked``: by ``mdi-exit announce``; ``host``: its name in the local domain."""

    name: str
    host: str
    addresses: tuple[str, ...]
    port: int
    tls: bool
    marked: bool

    def candidates(self) -> list[values.BrokerAddress]:
        """Where to try. With TLS the name comes first, since the certificate is for it."""
        hosts = [self.host, *self.addresses] if self.tls else [*self.addresses, self.host]
        return [values.BrokerAddress(host, self.port, tls=self.tls) for host in hosts]


async def look_for_broker(*, has_password: bool, tls_only: bool = False) -> tuple[values.BrokerAddress, str]:
    """This machine's broker if one answers, else the best of those that announce themselves; and how it was found.

    A password is not sent in the clear to whoever says that he is a broker: with one, only TLS counts. With ``tls_only`` it
    counts on this machine too. Raises ``TransportError`` when there is none.
    """
    if not tls_only and await answers(_LOCAL):
        return _LOCAL, "it answers on this machine"
    found = await find_brokers(_LOOK_S)
    usable = [broker for broker in found if broker.tls or not (has_password or tls_only)]
    for broker in best(usable):
        for address in broker.candidates():
            if await answers(address):
                others = f", one of {len(usable)}" if len(usable) > 1 else ""
                return address, f"{broker.name!r} announces it by mDNS{others}"
    if found and not usable:
        seen = ", ".join(broker.name for broker in found)
        what = "--ca and --cert want" if tls_only else "a password goes to"
        raise TransportError(f"{what} a broker with TLS only, unless --broker names it; found {seen}")
    silent = "".join(f"; {broker.name} announces itself, but does not answer" for broker in usable[:1])
    raise TransportError(f"expected one on this machine (port 1883) or announced by mDNS, got none (--broker){silent}")


def best(found: Iterable[Broker]) -> list[Broker]:
    """Ours before others, encrypted before plain, then by name: all agents choose alike."""
    return sorted(found, key=lambda broker: (not broker.marked, not broker.tls, broker.name, broker.port))


async def find_brokers(timeout_s: float, *, interfaces: list[str] | None = None) -> list[Broker]:
    """Brokers that answer within ``timeout_s``, or a moment after the first. ``interfaces``: addresses, None: all."""
    from zeroconf import ServiceStateChange
    from zeroconf.asyncio import AsyncServiceBrowser

    heard: dict[str, str] = {}
    first = asyncio.Event()

    def on_change(service_type: str, name: str, state_change: ServiceStateChange, **_: Any) -> None:
        if state_change is not ServiceStateChange.Removed:
            heard[name] = service_type
            first.set()

    async with _multicast(interfaces) as zeroconf:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, [PLAIN_TYPE, SECURE_TYPE], handlers=[on_change])
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(first.wait(), timeout_s)
                await asyncio.sleep(_LATE_S)
            infos = [_asked(zeroconf, service_type, name) for name, service_type in heard.items()]
            answers = await asyncio.gather(*infos)
        finally:
            await browser.async_cancel()
    return [_broker(info) for info in answers if info is not None and info.port]


async def _asked(zeroconf: Any, service_type: str, name: str) -> AsyncServiceInfo | None:
    from zeroconf.asyncio import AsyncServiceInfo

    info = AsyncServiceInfo(service_type, name)
    return info if await info.async_request(zeroconf.zeroconf, 1000) else None


def _broker(info: AsyncServiceInfo) -> Broker:
    own = info.type
    addresses = sorted(info.parsed_scoped_addresses(), key=lambda text: ":" in text)  # IPv4 first
    return Broker(
        name=info.name.removesuffix(f".{own}"),
        host=(info.server or "").rstrip("."),
        addresses=tuple(addresses),
        port=info.port or 0,
        tls=own == SECURE_TYPE,
        marked=info.decoded_properties.get("app") == _MARK["app"],
    )


@contextlib.asynccontextmanager
async def announced(
    name: str, port: int, *, tls: bool, addresses: Iterable[str], interfaces: list[str] | None = None
) -> AsyncIterator[str]:
    """Announce a broker for as long as the context lasts; gives the name in force (another may have had it).

    Raises ``StartError`` when multicast does not work here.
    """
    from zeroconf import Error
    from zeroconf.asyncio import AsyncServiceInfo

    service_type = SECURE_TYPE if tls else PLAIN_TYPE
    async with _multicast(interfaces) as zeroconf:
        try:
            info = AsyncServiceInfo(
                service_type,
                f"{name}.{service_type}",
                port=port,
                properties=_MARK,
                server=f"{socket.gethostname().partition('.')[0]}.local.",
                parsed_addresses=list(addresses),
            )
            await (await zeroconf.async_register_service(info, allow_name_change=True))
        except (OSError, ValueError, Error) as error:
            raise StartError(f"mDNS: expected to announce {name!r}, got {error or type(error).__name__}") from None
        try:
            yield info.name.removesuffix(f".{service_type}")
        finally:
            await (await zeroconf.async_unregister_service(info))


@contextlib.asynccontextmanager
async def _multicast(interfaces: list[str] | None) -> AsyncIterator[Any]:
    from zeroconf import InterfaceChoice, IPVersion
    from zeroconf.asyncio import AsyncZeroconf

    try:
        zeroconf = AsyncZeroconf(interfaces=interfaces or InterfaceChoice.All, ip_version=IPVersion.V4Only)
    except OSError as error:
        raise TransportError(f"mDNS: {error.strerror or error}") from None
    try:
        yield zeroconf
    finally:
        await zeroconf.async_close()


def own_addresses() -> list[str]:
    """Addresses by which other machines may reach this one; the loopback address where there is no other."""
    state = psutil.net_if_stats()
    found = [
        address.address
        for interface, addresses in psutil.net_if_addrs().items()
        if not interface.startswith(_INSIDE) and interface in state and state[interface].isup
        for address in addresses
        if address.family == socket.AF_INET and not ipaddress.ip_address(address.address).is_loopback
    ]
    return found or [_LOCAL.host]


async def answers(address: values.BrokerAddress) -> bool:
    """Does anything accept connections there?"""
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
