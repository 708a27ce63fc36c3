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
from mdi_exit.policy.offloading import HERE, OFFLOADING, PLACING, OffloadPolicy
from mdi_exit.policy.shares import Routes
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

    ``set_aside``: it finishes what it holds and takes nothing new; ``policy``: by which it offers tasks now; ``routes``: the
    shares that it keeps to.
    """

    name: str
    own_offloading: str
    set_aside: bool = False
    policy: OffloadPolicy = field(init=False)
    in_force: str = field(init=False)
    routes: Routes = field(default_factory=Routes)
    book: OrderBook = field(default_factory=OrderBook)

    def __post_init__(self) -> None:
        self._use(self.own_offloading)

    def _use(self, offloading: str) -> None:
        self.in_force, self.policy = offloading, OFFLOADING[offloading]

    def places(self, now: float, layer: int) -> bool:
        """Whether the policy decides for each task once, when it is created, and not Alg. 1."""
        return self.in_force in PLACING and (self.in_force != "optimiser" or self.routes.hold(now, layer))

    def keeps_shares(self, now: float, layer: int) -> bool:
        """Whether tasks at this layer go by shares."""
        return self.in_force == "optimiser" and self.routes.hold(now, layer)

    def order(self, order: Order, *, retained: bool) -> list[Command]:
        """Take in an order; the first command is the line that says what became of it."""
        found = heard(self.book, order, retained=retained)
        if found is None or isinstance(found, Notice):
            return [found] if found else []
        told: list[Command] = [Notice("order", done(order, self._note(order)), order.number)]
        if order.node in ("", self.name):
            match found:
                case SetOffloading(name):
                    self._use(name)
                case DrainNode(drained):
                    self.set_aside = drained
                case SetLevel(level):
                    told.append(SetLogLevel(level))
                case _:
                    pass  # the source's business
        return told

    def _note(self, order: Order) -> str:
        return "" if ORDERS[order.what].of_nodes else "for the source"

    def control(self, now: float, before: Control | None, control: Control) -> list[Command]:
        """What was ordered for all nodes before this one was there, or while it did not listen; and the shares."""
        told: list[Command] = []
        if control.offloading != (before.offloading if before else ""):
            self._use(control.offloading if control.offloading in OFFLOADING else self.own_offloading)
        if control.shares:
            self.routes.told(now, {
                share.layer: {HERE if name == self.name else name: part for name, part in share.to.items()}
                for share in control.shares
                if share.node == self.name
            })  # fmt: skip
        level = control.log_level
        if level != (before.log_level if before else "") and level in LOG_LEVELS:
            told.append(SetLogLevel(level))
        return told
