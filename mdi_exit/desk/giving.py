"""Giving orders to a deployment that is watched, and knowing what became of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from mdi_exit import topics as kinds
from mdi_exit.observer import Observer
from mdi_exit.orders import order_of, sentence
from mdi_exit.wire import Order, encode

__all__ = ["Answer", "Desk"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the source said to an order: ``text`` is the line of its audit."""

    text: str
    refused: bool


@dataclass(slots=True)
class Desk:
    """Gives the orders of ``client``. Numbers are microseconds since 1970, so that a later start does not use them again."""

    observer: Observer
    client: str
    _number: int = field(default=0, init=False)

    def order(self, words: Sequence[str]) -> Order:
        """The order that these words make, with a number of its own; not yet given. Raises ``UsageError``."""
        order = order_of(self.client, max(self._number + 1, time.time_ns() // 1000), words)
        self._number = order.number
        return order

    def give(self, order: Order) -> bool:
        """Hand it to the broker; False while there is none."""
        topic = self.observer.topics.commands(self.client)
        kind = kinds.COMMANDS
        return self.observer.transport.publish(topic, encode(order), qos=kind.qos, retain=kind.retain)

    def answer(self, order: Order) -> Answer | None:
        """What the source has said to it, if it has."""
        said = f"{order.client}: {sentence(order)}"[:400]
        for happened in reversed(self.observer.watched.happened):
            if happened.order == order.number and happened.text.startswith(said):
                return Answer(happened.text, refused=happened.text.startswith(f"{said} refused: "))
        return None
