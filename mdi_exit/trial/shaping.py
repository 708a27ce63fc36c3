"""How the links of an emulated testbed are shaped: by the kernel where it can, otherwise by relays, or not at all.

The kernel does rates, shared media and lost packets. Relays in user space, which pace what passes by the rules of the
simulator, do all but lost packets; beside the kernel they are left with delays, the time that a medium takes for each
message, and the broker's limits.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from mdi_exit import values
from mdi_exit.errors import StartError
from mdi_exit.simulation.scenario import Link, Medium, Scenario
from mdi_exit.simulation.star import Wires
from mdi_exit.trial.kernel import KernelLinks, kernel_links, unavailable
from mdi_exit.trial.relay import relays

__all__ = ["SHAPINGS", "Shaped", "shaped"]

SHAPINGS: Final = ("auto", "kernel", "relay", "none")


@dataclass(frozen=True, slots=True)
class Shaped:
    """Links in force. ``urls``: the broker as each node sees it; ``by``: what shapes them; ``text``: the same for people.

    ``inside``: what to put before a command so that it runs at a node; ``change``: a node's link from now on.
    """

    by: str
    text: str
    urls: dict[str, str]
    inside: Callable[[str], Sequence[str]]
    change: Callable[[str, Link], None]


@contextlib.asynccontextmanager
async def shaped(scenario: Scenario, how: str, broker: str) -> AsyncIterator[Shaped]:
    """Links between the scenario's nodes and the broker at the URL ``broker`` as long as the context lasts.

    ``how``: one of ``SHAPINGS``. Raises ``StartError`` if the kernel is wanted and cannot.
    """
    names = [node.name for node in scenario.nodes]
    if how == "none":
        yield Shaped("none", "not shaped", dict.fromkeys(names, broker), _anywhere, lambda name, link: None)
        return
    why = unavailable() if how in ("auto", "kernel") else ""
    if how == "kernel" and why:
        raise StartError(f"--shaping kernel: expected a kernel that shapes links, got: {why}")
    async with contextlib.AsyncExitStack() as stack:
        port = values.broker_address(broker).port
        links = {node.name: node.link for node in scenario.nodes}
        if why is not None:
            wires = Wires(links, scenario.media, Wires.broker_pipe(scenario.broker))
            ports = await stack.enter_async_context(relays(wires, names, port))
            yield Shaped("relay", _relay_text(scenario, why), _urls(ports), _anywhere, wires.change)
            return
        kernel = stack.enter_context(kernel_links(links, scenario.media))
        wires = _rest(scenario)
        ports = await stack.enter_async_context(relays(wires, names, port, kernel.listener))
        urls = {name: f"mqtt://{kernel.hub_address(name)}:{ports[name]}" for name in names}
        yield Shaped("kernel", _kernel_text(scenario), urls, kernel.inside, _changer(kernel, wires))


def _anywhere(_: str) -> Sequence[str]:
    return ()


def _urls(ports: dict[str, int]) -> dict[str, str]:
    return {name: f"mqtt://127.0.0.1:{port}" for name, port in ports.items()}


def _rest(scenario: Scenario) -> Wires:
    """What the kernel leaves to the relays."""
    media = {name: Medium(name, float("inf"), medium.frame_s) for name, medium in scenario.media.items()}
    links = {node.name: _left(node.link) for node in scenario.nodes}
    return Wires(links, media, Wires.broker_pipe(scenario.broker))


def _left(link: Link) -> Link:
    return replace(link, up_bytes_per_s=None, down_bytes_per_s=None, loss=0.0)


def _changer(kernel: KernelLinks, wires: Wires) -> Callable[[str, Link], None]:
    def change(name: str, link: Link) -> None:
        kernel.change(name, link)
        wires.change(name, _left(link))

    return change


def _relay_text(scenario: Scenario, why: str) -> str:
    lossless = "no packet is lost" + (", although the scenario says so" if _loses(scenario) else "")
    text = f"paced by relays in user space: rates, delays, shared media; {lossless}"
    return f"{text}; not by the kernel: {why}" if why else text


def _kernel_text(scenario: Scenario) -> str:
    kernel = ["rates", *(["shared media"] if scenario.media else []), *(["lost packets"] if _loses(scenario) else [])]
    return f"shaped by the kernel (network namespaces, htb): {', '.join(kernel)}; delays by relays in user space"


def _loses(scenario: Scenario) -> bool:
    changed = (change.link for change in scenario.changes if change.link is not None)
    return any(link.loss for link in (*(node.link for node in scenario.nodes), *changed))
