"""One directed link between two nodes: credits, loss detection, delay, and the correction of stale reports.

The receiver grants each sender ``window`` slots for each entry layer and says, cumulatively, how many of the tasks sent
have left their slots; a lost acknowledgement costs nothing, since the next one repeats it. Features of one sender arrive
in order, so a jump in the sequence numbers is a loss; a loss at the tail is found by a probe. All on the sender's clock.

By the delays measured no more is on its way than the link carries in a tenth of a second, or in two round trips where these
are longer, but two tasks at least: what waits at the sender can still be run there or go elsewhere, what waits in a
radio's queue delays everything behind it.

A slow sample keeps work away, and with it newer samples: a probe is empty and says nothing of B. So a link that has carried
no task for a while is taken to be as good as its last probe, until one task has tried it.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct

from mdi_exit.wire import Ack, LinkLoad

__all__ = ["DelayModel", "Inbound", "Outbound", "Sent"]

_FORGET: Final = 0.98
_MISSING_KEPT: Final = 256
_FARTHEST: Final = 1 << 40  # no link is so far ahead: numbers are not used up by whoever writes in another's name
_AHEAD_S: Final = 0.1
_AHEAD_TRIPS: Final = 2
_AHEAD_BYTES: Final = 1 << 18
_AHEAD_TASKS: Final = 2
_DOUBT_AFTER_S: Final = 10.0
_DOUBT_AFTER_AT_MOST_S: Final = 320.0


@dataclass(slots=True)
class DelayModel:
    """D(b) = a + b/B seconds for b bytes, fitted to round trips less the receiver's hold time.

    A sample is one message of b bytes there and one small acknowledgement back, so its intercept holds both
    directions; half of it is a. That the two directions are alike is an assumption, and its error is half of their
    difference. Old samples are forgotten exponentially. ``least_s``: the shortest round trip of all, which no queue of the
    sender's own making has lengthened; ``empty_s``: that of the last empty message, None: there was none.
    """

    initial_s: float = 0.002
    least_s: float = math.inf
    empty_s: float | None = None
    _n: float = 0.0
    _b: float = 0.0
    _bb: float = 0.0
    _y: float = 0.0
    _by: float = 0.0
    _fitted: tuple[float, float] | None = None

    def add(self, size_bytes: int, round_trip_s: float) -> None:
        """One measured round trip, seconds, of a message of ``size_bytes``."""
        b, y = size_bytes / 1e6, max(round_trip_s, 0.0)
        self.least_s = min(self.least_s, y)
        self._n, self._b, self._bb = self._n * _FORGET + 1, self._b * _FORGET + b, self._bb * _FORGET + b * b
        self._y, self._by = self._y * _FORGET + y, self._by * _FORGET + b * y
        self._fitted = None
        if size_bytes == 0:
            self.empty_s = y

    def forget(self) -> None:
        """Keep nothing but ``least_s`` and the last empty message."""
        self._n = self._b = self._bb = self._y = self._by = 0.0
        self._fitted = None
        if self.empty_s is not None:
            self.add(0, self.empty_s)

    def _line(self) -> tuple[float, float]:
        """Intercept (s) and slope (s per megabyte), both at least 0."""
        if self._n == 0:
            return 2 * self.initial_s, 0.0
        mean_b, mean_y = self._b / self._n, self._y / self._n
        spread = self._bb / self._n - mean_b**2
        if spread < 1e-12:
            return mean_y, 0.0
        slope = max((self._by / self._n - mean_b * mean_y) / spread, 0.0)
        intercept = mean_y - slope * mean_b
        return (intercept, slope) if intercept >= 0 else (0.0, mean_y / mean_b)

    def delay_s(self, size_bytes: int) -> float:
        """Expected one-way seconds for ``size_bytes``."""
        if self._fitted is None:
            self._fitted = self._line()
        intercept, slope = self._fitted
        return intercept / 2 + slope * size_bytes / 1e6

    def expected_s(self, size_bytes: int) -> float:
        """Expected round trip, seconds, of a message of ``size_bytes``: there, and an empty one back."""
        return self.delay_s(size_bytes) + self.delay_s(0)

    def least_delay_s(self, size_bytes: int) -> float:
        """One-way seconds if nothing but the last empty message counts; no more than ``delay_s``."""
        empty_s = 2 * self.initial_s if self.empty_s is None else self.empty_s
        return min(empty_s / 2, self.delay_s(size_bytes))

    @property
    def bytes_per_s(self) -> float:
        """B as measured by messages of several sizes; 0: not known, or too fast to tell."""
        if self._fitted is None:
            self._fitted = self._line()
        _, slope = self._fitted
        return 1e6 / slope if slope > 0 else 0.0

    @property
    def round_trip_s(self) -> float:
        """Mean of the recent samples, whatever their size."""
        return self._y / self._n if self._n else 2 * self.initial_s


class Sent(Struct, frozen=True):
    """A task on its way, until the receiver says that it has it."""

    seq: int
    layer: int
    item: int
    size_bytes: int
    at: float


@dataclass(slots=True)
class Outbound:
    """The sender's view of a link to one incarnation of a neighbour.

    ``measured_from``: what was sent before says nothing of the delay, since the neighbour was away meanwhile.
    ``used_at``: when the last task was sent; ``doubt_after_s``: so much later the delay known is in doubt; ``trying``: a task
    was sent in doubt, and its round trip is not known yet.
    """

    incarnation: int
    window: int
    delay: DelayModel = field(default_factory=DelayModel)
    seq: int = 0
    used: Counter[int] = field(default_factory=Counter)
    unacknowledged: deque[Sent] = field(default_factory=deque)
    probe_number: int = 0
    probe_at: float | None = None
    probe_seq: int = 0
    inputs: int = 0
    backlog_s: float = 0.0
    reported_at: float = 0.0
    reported_seq: int = 0
    lost: int = 0
    sent_bytes: int = 0
    measured_from: float = float("-inf")
    used_at: float = float("-inf")
    doubt_after_s: float = _DOUBT_AFTER_S
    trying: bool = False
    on_way_bytes: int = 0
    _released: dict[int, int] = field(default_factory=dict)

    def room(self, layer: int) -> int:
        """Tasks that may be sent now for entry ``layer``."""
        return self.window - self.used.get(layer, 0)

    def is_open(self, layer: int) -> bool:
        """Whether a task for entry ``layer`` may be sent now: there is a slot for it, and the link is not full of others."""
        if self.used.get(layer, 0) >= self.window:
            return False
        if self.on_way_bytes < _AHEAD_BYTES >> 2 or len(self.unacknowledged) < _AHEAD_TASKS:
            return True  # most often
        known = self.delay.bytes_per_s
        return self.on_way_bytes < (known * max(_AHEAD_S, _AHEAD_TRIPS * self.delay.least_s) if known else _AHEAD_BYTES)

    def _in_doubt(self, now: float) -> bool:
        return not self.unacknowledged and now - max(self.used_at, self.measured_from) > self.doubt_after_s

    def delay_s(self, now: float, size_bytes: int) -> float:
        """D_nm: expected one-way seconds for a task of ``size_bytes``.

        Optimism in the face of uncertainty: what no task has measured for ten seconds is in doubt, and the last probe counts.
        While the one that tries the link is on its way, what was known holds for the others. Where no other has followed,
        the next trial waits twice as long, so that few items are late by a link that is slow in truth.
        """
        return self.delay.least_delay_s(size_bytes) if self._in_doubt(now) else self.delay.delay_s(size_bytes)

    def sent(self, now: float, layer: int, item: int, size_bytes: int) -> int:
        """Record a send; returns its sequence number."""
        if self._in_doubt(now):
            self.trying, self.doubt_after_s = True, min(2 * self.doubt_after_s, _DOUBT_AFTER_AT_MOST_S)
        else:
            self.doubt_after_s = _DOUBT_AFTER_S
        self.used_at = now
        self.seq += 1
        self.sent_bytes += size_bytes
        self.on_way_bytes += size_bytes
        self.used[layer] += 1
        self.unacknowledged.append(Sent(self.seq, layer, item, size_bytes, now))
        return self.seq

    def unsent(self, seq: int, item: int) -> None:
        """The transport did not take message ``seq``: give the credit back. The gap in the numbers does no harm.

        A number of an earlier start of the neighbour, told late, is known by its other ``item``.
        """
        for entry in self.unacknowledged:
            if (entry.seq, entry.item) == (seq, item):
                self.unacknowledged.remove(entry)
                self.on_way_bytes -= entry.size_bytes
                self.used[entry.layer] -= 1
                return

    def acknowledged(self, now: float, ack: Ack) -> None:
        """Take in an acknowledgement: credits, losses, delay and load of the receiver.

        One of a number that was never sent means that somebody wrote in this node's name: what is on its way may have been
        taken for old, and the next number is one that the receiver has not seen.
        """
        if ack.seq > self.seq:
            self.seq = ack.seq
            self._lose_all()
        missing = frozenset(ack.missing)
        answered = ack.probe is not None and ack.probe == self.probe_number and self.probe_at is not None
        newest: Sent | None = None
        while self.unacknowledged and self.unacknowledged[0].seq <= ack.seq:
            entry = self.unacknowledged.popleft()
            self.on_way_bytes -= entry.size_bytes
            if entry.seq in missing:
                self._lose(entry)
            else:
                newest = entry
        if newest is not None and newest.seq == ack.seq and not answered and newest.at >= self.measured_from:
            self._measured(newest.size_bytes, now - newest.at - ack.hold_s)
        if answered and self.probe_at is not None:
            if self.probe_at >= self.measured_from:
                self.delay.add(0, now - self.probe_at)
            while self.unacknowledged and self.unacknowledged[0].seq <= self.probe_seq:
                entry = self.unacknowledged.popleft()
                self.on_way_bytes -= entry.size_bytes
                self._lose(entry)
            self.probe_at = None
        for layer, total in ack.released.items():
            freed = total - self._released.get(layer, 0)
            if freed > 0:
                self._released[layer] = total
                self.used[layer] = max(self.used[layer] - freed, 0)
        self.reported(now, ack.inputs, ack.backlog_s, ack.seq)

    def _measured(self, size_bytes: int, round_trip_s: float) -> None:
        """A task's round trip. A trial that took less than half of what was expected ends all that was known before."""
        if self.trying and 2 * round_trip_s < self.delay.expected_s(size_bytes):
            self.delay.forget()
        self.trying = False
        self.delay.add(size_bytes, round_trip_s)

    def _lose_all(self) -> None:
        for entry in self.unacknowledged:
            self._lose(entry)
        self.unacknowledged.clear()
        self.on_way_bytes = 0

    def _lose(self, entry: Sent) -> None:
        self.lost += 1
        self.used[entry.layer] = max(self.used[entry.layer] - 1, 0)

    def reported(self, now: float, inputs: int, backlog_s: float, seq: int) -> None:
        """The receiver's own word on its input queue (tasks) and backlog (seconds), having seen up to ``seq``.

        A report need not say ``seq`` again; a number never sent is of an earlier start of this node.
        """
        self.inputs, self.backlog_s, self.reported_at = inputs, backlog_s, now
        if self.reported_seq < seq <= self.seq:
            self.reported_seq = seq

    def load(self, now: float, speed_s: dict[int, float], fallback_s: float) -> tuple[float, float]:
        """(I_m, I_m Γ_m) now: the last report, run down by the time since, plus what was sent and not yet seen."""
        left = max(self.backlog_s - (now - self.reported_at), 0.0)
        share = left / self.backlog_s if self.backlog_s > 0 else 0.0
        if not self.unacknowledged:
            return self.inputs * share, left
        unseen = [entry for entry in self.unacknowledged if entry.seq > self.reported_seq]
        on_the_way = sum(speed_s.get(entry.layer, fallback_s) for entry in unseen)
        return self.inputs * share + len(unseen), left + on_the_way

    def load_report(self, layers: Iterable[int]) -> LinkLoad:
        """What telemetry says of this link; ``layers``: those at which the neighbour takes tasks."""
        left = sum(max(self.room(layer), 0) for layer in layers)
        return LinkLoad(self.seq, self.sent_bytes, self.delay.delay_s(0), left, self.delay.bytes_per_s)

    def probe(self, now: float) -> int:
        """Start a probe; returns its number."""
        self.probe_number += 1
        self.probe_at, self.probe_seq = now, self.seq
        return self.probe_number


@dataclass(slots=True)
class Inbound:
    """The receiver's view of a link from one incarnation of a sender."""

    incarnation: int
    seq: int = 0
    received_at: float = 0.0
    released: Counter[int] = field(default_factory=Counter)
    missing: deque[int] = field(default_factory=lambda: deque(maxlen=_MISSING_KEPT))
    unreported: int = 0
    due_at: float | None = None
    probe: int | None = None

    def receive(self, now: float, seq: int) -> bool:
        """Note message ``seq``; False if it was seen before, or cannot be."""
        if seq > self.seq + _FARTHEST:
            return False
        if seq <= self.seq:
            if seq not in self.missing:
                return False
            self.missing.remove(seq)
            return True
        self.missing.extend(range(max(self.seq + 1, seq - _MISSING_KEPT), seq))
        self.seq, self.received_at = seq, now
        return True

    def owe(self, now: float, delay_s: float) -> None:
        """Something to report: an acknowledgement is due within ``delay_s``."""
        self.unreported += 1
        if self.due_at is None:
            self.due_at = now + delay_s

    def ack(self, now: float, incarnation: int, inputs: int, backlog_s: float) -> Ack:
        """The acknowledgement that is due; clears the debt."""
        self.unreported, self.due_at = 0, None
        probe, self.probe = self.probe, None
        hold_s = now - self.received_at if self.seq else 0.0
        return Ack(
            incarnation=incarnation,
            to_incarnation=self.incarnation,
            seq=self.seq,
            hold_s=max(hold_s, 0.0),
            released=dict(self.released),
            missing=tuple(self.missing),
            inputs=inputs,
            backlog_s=backlog_s,
            probe=probe,
        )
