"""Who comes next at the source: a sample of its own input, or a request of a client, as room allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mdi_exit.requests import RequestDesk
from mdi_exit.source_config import SourceConfig

__all__ = ["Admission", "Room"]

_MAX_DRAWS: Final = 16


@dataclass(frozen=True, slots=True)
class Room:
    """How full it is. ``queue``: Q; ``pending``: items under way; ``busy``: so many keep every node busy;
    ``expected_s``: what one more will take; ``paced``: the own input comes by the clock.
    """

    queue: int
    pending: int
    busy: int
    expected_s: float
    paced: bool


class Admission:
    """``draws``: samples asked for and not there yet; ``due``: arrivals that have come and not been asked for.

    While clients wait, the own input's arrivals wait for their turn, at most ``max_queue`` of them; of those beyond
    that, ``overdrawn`` have been asked for only to be refused. ``most``: items that may be under way at once;
    ``batch``: so many the source would run at once, if they were there.
    """

    def __init__(self, config: SourceConfig, desk: RequestDesk) -> None:
        self.config, self.desk = config, desk
        self.draws = self.due = self.overdrawn = 0
        self.most = config.max_pending
        self.batch = 1

    def next_party(self, room: Room) -> str | None:
        """A client, ``OWN``, or None if nobody may come now."""
        if self._crowded(room):
            return None
        own = (
            self.config.own_input and (self.due > 0 or not room.paced) and self._room_for_own(room.queue, room.pending)
        )
        return self.desk.next_party(own=own, clients=self._clients_may(room))

    def own_may(self, queue: int, pending: int, *, paced: bool) -> bool:
        """Whether a sample is to be asked for while no client waits; one that is due by the clock may be refused."""
        if not self.config.own_input:
            return False
        return self.due > 0 and self.draws < _MAX_DRAWS if paced else self._room_for_own(queue, pending)

    @property
    def may_arrive(self) -> bool:
        """Whether an arrival of the own input is looked for."""
        return self.config.own_input and self.draws < _MAX_DRAWS

    def arrived(self) -> bool:
        """An arrival of the own input is due; True if its sample is to be asked for without a turn."""
        self.due += 1
        over = self.due > self.config.max_queue
        self.overdrawn += over
        return over or not self.desk.waiting

    def want(self, *, paced: bool) -> None:
        """A sample is asked for."""
        self.due -= paced
        self.draws += 1

    def offered(self) -> bool:
        """A sample has come; False if it was asked for only to be refused."""
        self.draws = max(self.draws - 1, 0)
        over = self.overdrawn > 0
        self.overdrawn -= over
        return not over

    def room_for_draw(self, pending: int) -> bool:
        under_way = pending + self.draws + len(self.desk.preparing)
        return self.draws < _MAX_DRAWS and under_way < self.most

    def _crowded(self, room: Room) -> bool:
        """Whether the items under way leave less than half of its time to a request that waits.

        Then all wait for them to become fewer, as long as enough is left to keep every node busy: what waits here is
        shared fairly and may be turned away, what is under way is not.
        """
        return room.expected_s > self.desk.hurry_s / 2 and room.pending + len(self.desk.preparing) >= room.busy

    def _room_for_own(self, queue: int, pending: int) -> bool:
        taken = self.draws + queue + len(self.desk.preparing)
        return taken < max(self.config.bands.high, self.batch) and self.room_for_draw(pending)

    def _clients_may(self, room: Room) -> bool:
        """Samples that were asked for do not count: a camera may be slow to give them."""
        preparing = len(self.desk.preparing)
        return (
            self.desk.waiting > 0
            and room.queue + preparing < self.config.bands.high
            and preparing < self.config.requests.preparing
            and room.pending + self.draws + preparing < self.most
        )
