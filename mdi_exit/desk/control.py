"""``mdi-exit control``: one order, and what became of it; or the state of things, once."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

from rich.console import Console

from mdi_exit import values
from mdi_exit.config import nearest, resolve
from mdi_exit.desk.config import ControlSettings
from mdi_exit.desk.giving import Desk
from mdi_exit.desk.parts import printable
from mdi_exit.desk.plain import status
from mdi_exit.errors import MdiExitError, StartError, UsageError
from mdi_exit.observer import Observer
from mdi_exit.orders import ORDERS, order_of

__all__ = ["main", "seen", "watching"]

_SECOND_REPORT_S: Final = 1.2  # rates need two
_FOLLOWED: Final = {"drain": ("draining", "drained"), "undrain": ("ready", "loading segments")}


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status: 0 obeyed, 1 refused or unanswered. Raises ``MdiExitError``."""
    resolved = resolve(
        ControlSettings,
        argv,
        os.environ,
        prog="mdi-exit control",
        section="control",
        description="Gives a running deployment an order, waits for its answer and prints it.",
        words="ORDER",
        epilog=_orders(),
    )
    words = resolved.words
    if not words:
        raise UsageError("order", "one of status, " + ", ".join(ORDERS), "none (see --help)")
    logging.getLogger().addHandler(logging.NullHandler())
    if words[0] == "status":
        if len(words) > 1:
            raise UsageError("status", "nothing after it", " ".join(words[1:]))
        return asyncio.run(_status(resolved.settings))
    if words[0] not in ORDERS:
        known = ("status", *ORDERS)
        raise UsageError("order", "one of " + ", ".join(known), words[0] + nearest(words[0], known))
    order_of(resolved.settings.client, 0, words)  # a slip is told before anything is asked of the broker
    return asyncio.run(_give(resolved.settings, words))


def _orders() -> str:
    """The table of orders, for ``--help``."""
    rows = [(f"{what} {kind.usage}".rstrip(), kind.help) for what, kind in ORDERS.items()]
    rows.append(("status", "print the nodes and the run, once"))
    return "\n".join(["orders:", *(f"  {usage:<36}  {text}" for usage, text in rows)])


class Broker(Protocol):
    """The settings that watching a deployment takes."""

    @property
    def broker(self) -> values.Brokers: ...
    @property
    def deployment(self) -> str: ...
    @property
    def username(self) -> str | None: ...
    @property
    def password(self) -> str | None: ...
    @property
    def timeout(self) -> float: ...


@asynccontextmanager
async def watching(settings: Broker) -> AsyncIterator[Observer]:
    """An observer that is connected. Raises ``StartError`` when the broker cannot be had in time."""
    user, password = settings.username, settings.password
    async with Observer(settings.broker, settings.deployment, username=user, password=password) as observer:
        if not await seen(lambda: observer.transport.connected, settings.timeout):
            trouble = printable(observer.view().trouble)
            raise StartError(f"broker: expected a connection to {settings.broker}, got: {trouble}")
        yield observer


async def seen(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it comes true in time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def _give(settings: ControlSettings, words: Sequence[str]) -> int:
    async with watching(settings) as observer:
        desk = Desk(observer, settings.client)
        order = desk.order(words)
        if not desk.give(order):
            raise MdiExitError(f"order: the connection to {settings.broker} was lost")
        await seen(lambda: desk.answer(order) is not None, settings.timeout)
        answer = desk.answer(order)
        if answer is None:
            why = f"is one running in deployment {settings.deployment}, and may {settings.username or 'anybody'} give orders?"
            raise MdiExitError(f"order: no source answered in {settings.timeout:g} s; {why}")
        if not answer.refused and order.what in _FOLLOWED:
            followed = await seen(lambda: _state(observer, order.node) in _FOLLOWED[order.what], settings.timeout)
            if not followed:
                state = _state(observer, order.node) or "silent"
                raise MdiExitError(
                    f"{answer.text}: {order.node} has not followed in {settings.timeout:g} s, it is {state}"
                )
        (sys.stderr if answer.refused else sys.stdout).write(printable(answer.text) + "\n")
        return int(answer.refused)


def _state(observer: Observer, name: str) -> str:
    return next((node.state for node in observer.view().nodes if node.name == name), "")


async def _status(settings: ControlSettings) -> int:
    async with watching(settings) as observer:
        there = await seen(lambda: observer.watched.source is not None, settings.timeout)
        if not there:
            raise MdiExitError(printable(observer.view().trouble))
        await asyncio.sleep(_SECOND_REPORT_S)
        Console().print(status(observer.view()))
        return 0
