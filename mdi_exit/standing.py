"""What a node has been ordered to do and obeys until told otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field

from mdi_exit.errors import UsageError
from mdi_exit.events import Command, Notice, SetLogLevel
from mdi_exit.orders import (
    LOG_LEVELS,
    ORDERS,
    Action,
    DrainNode,
    OrderBook,
    SetLevel,
    SetOffloading,
    done,
    parse,
    refused,
)
from mdi_exit.policy.offloading import OFFLOADING, OffloadPolicy
from mdi_exit.wire import Control, Order

__all__ = ["Standing", "heard"]


def heard(book: OrderBook, order: Order, *, retained: bool) -> Action | Notice | None:
    """What to do about an order: obey the action, say the line instead, or nothing."""
    if not book.take(order):
        again = f"{order.client}: order number {order.number} came again: not obeyed twice"
        return None if retained else Notice("order", again, order.number)
    if retained:
        line = refused(order, UsageError("", "an order of now", "one that the broker had retained"))
        return Notice("order", line, order.number)
    try:
        return parse(order)
    except UsageError as error:
        return Notice("order", refused(order, error), order.number)


@dataclass(slots=True)
class Standing:
    """The orders that ``name`` obeys. ``own_offloading``: its policy as long as nothing else is ordered.

    ``set_aside``: it finishes what it holds and takes nothing new; ``policy``: by which it offers tasks now.
    """

    name: str
    own_offloading: str
    set_aside: bool = False
    policy: OffloadPolicy = field(init=False)
    book: OrderBook = field(default_factory=OrderBook)

    def __post_init__(self) -> None:
        self.policy = OFFLOADING[self.own_offloading]

    def order(self, order: Order, *, retained: bool) -> list[Command]:
        """Take in an order; the first command is the line that says what became of it."""
        found = heard(self.book, order, retained=retained)
        if found is None or isinstance(found, Notice):
            return [found] if found else []
        told: list[Command] = [Notice("order", done(order, self._note(order)), order.number)]
        if order.node in ("", self.name):
            match found:
                case SetOffloading(name):
                    self.policy = OFFLOADING[name]
                case DrainNode(drained):
                    self.set_aside = drained
                case SetLevel(level):
                    told.append(SetLogLevel(level))
                case _:
                    pass  # the source's business
        return told

    def _note(self, order: Order) -> str:
        return "" if ORDERS[order.what].of_nodes else "for the source"

    def control(self, before: Control | None, control: Control) -> list[Command]:
        """What was ordered for all nodes before this one was there, or while it did not listen."""
        told: list[Command] = []
        if control.offloading != (before.offloading if before else ""):
            self.policy = OFFLOADING.get(control.offloading, OFFLOADING[self.own_offloading])
        level = control.log_level
        if level != (before.log_level if before else "") and level in LOG_LEVELS:
            told.append(SetLogLevel(level))
        return told
