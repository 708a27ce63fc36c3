"""Orders: what a person or a program may ask of a running deployment, and how it is said in words.

An order is a ``wire.Order`` on ``commands/{client}``. ``parse`` makes an action of it or says why it cannot be one; the state
machines obey the action. ``OrderBook`` sees to it that none is obeyed twice.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from mdi_exit.errors import UsageError
from mdi_exit.policy.offloading import OFFLOADING
from mdi_exit.wire import Order

__all__ = [
    "ADAPTATIONS",
    "LOG_LEVELS",
    "ORDERS",
    "Action",
    "DrainNode",
    "OrderBook",
    "OrderKind",
    "PauseAdmission",
    "SetAdapt",
    "SetLevel",
    "SetOffloading",
    "SetRate",
    "SetThreshold",
    "done",
    "order_of",
    "parse",
    "refused",
    "sentence",
]

ADAPTATIONS: Final = ("none", "rate", "threshold", "drift-plus-penalty", "latency", "optimiser")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_CLIENTS: Final = 64
_RECENT: Final = 64
_NODE: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
_LONGEST: Final = 400


@dataclass(frozen=True, slots=True)
class PauseAdmission:
    """The source stops admitting, or starts again; what is under way is finished."""

    paused: bool


@dataclass(frozen=True, slots=True)
class SetRate:
    """Items offered a second; None: as fast as admission allows."""

    per_s: float | None


@dataclass(frozen=True, slots=True)
class SetThreshold:
    """``force``: also below the floor, which then falls with it."""

    threshold: float
    force: bool


@dataclass(frozen=True, slots=True)
class SetAdapt:
    """What follows the load from now on."""

    adapt: str


@dataclass(frozen=True, slots=True)
class SetOffloading:
    """The offloading policy, of all nodes or of the one that the order names."""

    name: str


@dataclass(frozen=True, slots=True)
class DrainNode:
    """A node finishes what it holds and takes nothing new, or takes part again."""

    drained: bool


@dataclass(frozen=True, slots=True)
class SetLevel:
    """What the nodes log."""

    level: str


Action = PauseAdmission | SetRate | SetThreshold | SetAdapt | SetOffloading | DrainNode | SetLevel


@dataclass(frozen=True, slots=True)
class OrderKind:
    """One row of the table of orders.

    ``usage``: the words after the order's name; ``of_nodes``: nodes obey it, not the source's admission;
    ``node``: whether an order may or must name one.
    """

    usage: str
    help: str
    read: Callable[[str], Action]
    of_nodes: bool = False
    node: Literal["never", "may", "must"] = "never"


def _nothing(action: Action) -> Callable[[str], Action]:
    def read(value: str) -> Action:
        if value:
            raise UsageError("", "no value", repr(value))
        return action

    return read


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _rate(value: str) -> Action:
    if value == "max":
        return SetRate(None)
    per_s = _number(value.removesuffix("/s"))
    if per_s is None or not 0 < per_s <= 1e6:
        raise UsageError("", "items a second such as 25/s, or max", value or "nothing")
    return SetRate(per_s)


def _threshold(value: str) -> Action:
    first, _, rest = value.partition(" ")
    found = _number(first)
    if found is None or not 0 <= found <= 1:
        raise UsageError("", "a number from 0 to 1", first or "nothing")
    if rest not in ("", "force"):
        raise UsageError("", "nothing or force after the number", rest)
    return SetThreshold(found, force=rest == "force")


def _one_of(names: Sequence[str], value: str) -> str:
    if value not in names:
        raise UsageError("", "one of " + ", ".join(names), value or "nothing")
    return value


def _adapt(value: str) -> Action:
    return SetAdapt(_one_of(ADAPTATIONS, value))


def _policy(value: str) -> Action:
    kind, _, name = value.partition(" ")
    _one_of(("offloading",), kind)
    return SetOffloading(_one_of(tuple(OFFLOADING), name))


def _level(value: str) -> Action:
    return SetLevel(_one_of(LOG_LEVELS, value))


# fmt: off
ORDERS: Final[dict[str, OrderKind]] = {
    "pause":     OrderKind("", "admit nothing; finish what is under way", _nothing(PauseAdmission(True))),
    "resume":    OrderKind("", "admit again", _nothing(PauseAdmission(False))),
    "rate":      OrderKind("N/s|max", "items offered a second", _rate),
    "threshold": OrderKind("T [force]", "the exit threshold; below the floor only with force", _threshold),
    "adapt":     OrderKind("|".join(ADAPTATIONS), "what follows the load", _adapt),
    "policy":    OrderKind("offloading NAME [NODE]", "the offloading policy: " + ", ".join(OFFLOADING), _policy,
                           of_nodes=True, node="may"),
    "drain":     OrderKind("NODE", "a node finishes what it holds and takes nothing new", _nothing(DrainNode(True)),
                           of_nodes=True, node="must"),
    "undrain":   OrderKind("NODE", "a drained node takes part again", _nothing(DrainNode(False)),
                           of_nodes=True, node="must"),
    "log-level": OrderKind("|".join(LOG_LEVELS) + " [NODE]", "what the nodes log", _level, of_nodes=True, node="may"),
}
# fmt: on
_VALUE_WORDS: Final = {"policy": 2, "log-level": 1}


def order_of(client: str, number: int, words: Sequence[str]) -> Order:
    """The order that these words make, checked. Raises ``UsageError``."""
    what, rest = (words[0], list(words[1:])) if words else ("", [])
    _known(what)
    takes = len(rest) if ORDERS[what].node == "never" else _VALUE_WORDS.get(what, 0)
    value, after = " ".join(rest[:takes]), rest[takes:]
    if len(after) > 1:
        raise UsageError(what, ORDERS[what].usage, " ".join(rest))
    if after and not _NODE.fullmatch(after[0]):
        raise UsageError(what, "the name of a node", repr(after[0]))
    if len(value) > 100:
        raise UsageError(what, ORDERS[what].usage, f"{len(value)} characters")
    order = Order(client, number, what, value, after[0] if after else "")
    parse(order)
    return order


def parse(order: Order) -> Action:
    """What the order asks for. Raises ``UsageError``."""
    kind = _known(order.what)
    if kind.node == "never" and order.node:
        raise UsageError(order.what, "no node", order.node)
    if kind.node == "must" and not order.node:
        raise UsageError(order.what, "the name of a node", "nothing")
    try:
        return kind.read(order.value)
    except UsageError as error:
        raise UsageError(order.what, error.expected, error.got) from None


def _known(what: str) -> OrderKind:
    if what not in ORDERS:
        raise UsageError("order", "one of " + ", ".join(ORDERS), what or "nothing")
    return ORDERS[what]


def sentence(order: Order) -> str:
    """The order in words, as it is given: ``threshold 0.7``."""
    return " ".join(part for part in (order.what, order.value, order.node) if part)


def done(order: Order, note: str = "") -> str:
    """The line of an order that is obeyed."""
    return f"{order.client}: {sentence(order)}{f' ({note})' if note else ''}"[:_LONGEST]


def refused(order: Order, error: UsageError) -> str:
    """The line of an order that is not."""
    return f"{order.client}: {sentence(order)} refused: expected {error.expected}, got {error.got}"[:_LONGEST]


@dataclass(slots=True)
class _Numbers:
    """Of one client: the last few numbers, and the greatest that is older than these."""

    recent: deque[int] = field(default_factory=deque)
    forgotten: int = -1

    def take(self, number: int) -> bool:
        if number <= self.forgotten or number in self.recent:
            return False
        self.recent.append(number)
        if len(self.recent) > _RECENT:
            self.forgotten = max(self.forgotten, self.recent.popleft())
        return True


@dataclass(slots=True)
class OrderBook:
    """Which orders were seen: 64 clients, of each the last 64 numbers and that all below the oldest of them are over."""

    _clients: OrderedDict[str, _Numbers] = field(default_factory=OrderedDict)

    def take(self, order: Order) -> bool:
        """Whether the order is new; from now on it is not."""
        numbers = self._clients.setdefault(order.client, _Numbers())
        self._clients.move_to_end(order.client)
        if len(self._clients) > _CLIENTS:
            self._clients.popitem(last=False)
        return numbers.take(order.number)
