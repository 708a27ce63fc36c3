"""Which broker a client connects to: the first of a list that answers, or one that is found."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Final

from mdi_exit import values
from mdi_exit.discovery import answers, look_for_broker
from mdi_exit.errors import TransportError, UsageError

__all__ = ["Choice"]

_TRIES_IN_PLACE: Final = 5  # of a broker that was found, before another is looked for
_LOOK_BACK_S: Final = 5.0  # between looks whether an earlier broker of the list answers again
_LOOK_BACK_MOST_S: Final = 300.0
_LOOKS_BACK: Final = 3  # in a row that must find it there

log = logging.getLogger(__name__)


class Choice:
    """``address``: the broker to connect to, or connected to. After a loss the first of all is tried first.

    A client on a later broker of the list returns to an earlier one that is back for good, so that all clients of one list
    come to be on the same one. Raises ``UsageError`` for a malformed ``url``.
    """

    def __init__(self, url: str | values.Brokers, *, has_password: bool) -> None:
        self.wanted = _brokers(url)
        self.address = self.wanted.addresses[0]
        self._has_password = has_password
        self._turn = self._tries = 0
        self._look_back_s = _LOOK_BACK_S

    async def find(self) -> None:
        """Settle on ``address``; a found broker is stayed with for as long as it is only away for a moment.

        Raises ``TransportError`` where there is none.
        """
        if self.wanted.is_auto:
            await self._look()
            return
        self.address = self.wanted.addresses[self._turn]
        if len(self.wanted.addresses) > 1 and not await answers(self.address):
            raise TransportError("does not answer")

    async def _look(self) -> None:
        self._tries += 1
        if not self.address.is_auto and self._tries <= _TRIES_IN_PLACE:
            return
        self._tries, self.address = 1, values.BROKER_AUTO
        self.address, how = await look_for_broker(has_password=self._has_password)
        log.info("broker %s: %s", self.address, how)

    def connected(self) -> None:
        """The connection is made."""
        self._tries = 0
        if self._turn == 0:
            self._look_back_s = _LOOK_BACK_S

    def ended(self, *, was_connected: bool) -> bool:
        """A connection, or an attempt, is over; True: all that there are were tried, or it is time to begin anew."""
        self._turn = 0 if was_connected else (self._turn + 1) % len(self.wanted.addresses)
        return self._turn == 0

    async def earlier_is_back(self) -> None:
        """Returns when a broker earlier in the list answers time and again; less soon each time that was in vain."""
        seen = 0
        while seen < _LOOKS_BACK:
            if self._turn == 0:
                await asyncio.Event().wait()
            await asyncio.sleep(random.uniform(0.8, 1.0) * self._look_back_s)
            found = [await answers(address) for address in self.wanted.addresses[: self._turn]]
            seen = seen + 1 if any(found) else 0
        self._look_back_s = min(2 * self._look_back_s, _LOOK_BACK_MOST_S)


def _brokers(url: str | values.Brokers) -> values.Brokers:
    if isinstance(url, values.Brokers):
        return url
    try:
        return values.brokers(url)
    except UsageError as error:
        raise UsageError("broker", error.expected, error.got) from None
