"""The links between edges and the broker on one machine: their rate, and their outage on purpose.

The rate is the kernel's (network namespaces, htb) where that can be, else a relay in user space paces what passes. An outage
closes the edges' connections, and nobody is let in before it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from mdi_exit.chaos.packets import Trouble
from mdi_exit.chaos.proxy import FaultProxy
from mdi_exit.errors import StartError
from mdi_exit.hierarchical.config import Outage
from mdi_exit.simulation.scenario import BrokerLimits, Link
from mdi_exit.simulation.star import Wires
from mdi_exit.trial.kernel import kernel_links, unavailable
from mdi_exit.trial.relay import relays

__all__ = ["EdgeLinks", "edge_links"]

_DELAY_S = 0.001


@dataclass(frozen=True, slots=True)
class EdgeLinks:
    """``urls``: the broker as each edge sees it; ``by``: in words; ``inside``: what to put before an edge's command."""

    by: str
    urls: dict[str, str]
    inside: Callable[[str], Sequence[str]]
    proxy: FaultProxy

    async def out(self, outage: Outage, begun: asyncio.Event) -> None:
        """The outage, from now: wait, cut, which ``begun`` tells, wait, mend."""
        await asyncio.sleep(outage.at_s)
        begun.set()
        self.proxy.trouble("*", Trouble(refuse=True))
        try:
            await asyncio.sleep(outage.for_s)
        finally:
            self.proxy.calm("*")


@contextlib.asynccontextmanager
async def edge_links(
    names: Sequence[str], bytes_per_s: float | None, how: str, broker: tuple[str, int]
) -> AsyncIterator[EdgeLinks]:
    """Links of that rate (None: as it is) for each of ``names``. Raises ``StartError`` if the kernel is wanted and cannot."""
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(broker))
        if bytes_per_s is None:
            yield EdgeLinks("not shaped", dict.fromkeys(names, proxy.url), _anywhere, proxy)
            return
        links = {name: Link(bytes_per_s, bytes_per_s, _DELAY_S) for name in names}
        why = "" if how == "relay" else unavailable()
        if why is not None and how == "kernel":
            raise StartError(f"--shaping kernel: expected a kernel that shapes links, got: {why}")
        if why is not None:
            wires = Wires(links, {}, Wires.broker_pipe(BrokerLimits()))
            ports = await stack.enter_async_context(relays(wires, list(names), proxy.port))
            urls = {name: f"mqtt://127.0.0.1:{port}" for name, port in ports.items()}
            by = "paced by relays in user space" + (f" (the kernel {why})" if why else "")
            yield EdgeLinks(by, urls, _anywhere, proxy)
            return
        kernel = stack.enter_context(kernel_links(links, {}))
        wires = Wires(dict.fromkeys(names, Link(delay_s=_DELAY_S)), {}, Wires.broker_pipe(BrokerLimits()))
        ports = await stack.enter_async_context(relays(wires, list(names), proxy.port, kernel.listener))
        urls = {name: f"mqtt://{kernel.hub_address(name)}:{ports[name]}" for name in names}
        yield EdgeLinks("shaped by the kernel (network namespaces, htb)", urls, kernel.inside, proxy)


def _anywhere(_: str) -> Sequence[str]:
    return ()
