"""Requests of other programs, from their arrival at the source to their one reply: queues, turns, deadlines, memory.

Pure, like all of the core. Each client has a queue of its own, and the clients and the source's own input take turns: the
next is who has had least, so that nobody gets more by asking for more. What does not fit is refused at once: a client's
request when its own queue is full, and when the room for all is used up, the newest of whoever has most. A request's
id is remembered for a while after its reply: asked again, it gets the same reply and is not worked on again.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mdi_exit.errors import IllegalEventError
from mdi_exit.events import (
    KeepReply,
    KeepRequest,
    PrepareRequest,
    ReplyFailed,
    RequestReceived,
    Restored,
    RestoredRequest,
    SendReply,
)
from mdi_exit.histogram import ITEM_BUCKETS_S, Histogram
from mdi_exit.wire import Reply, ResultRow

__all__ = ["OWN", "Request", "RequestDesk", "RequestLimits"]

OWN: Final = ""  # the source's own input among the clients, whose names are not empty
_HEAP_SLACK: Final = 64
_AGAIN_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What is kept at most; every constant is ours.

    ``per_client`` requests and ``client_bytes`` bytes of one client wait, ``waiting`` and ``waiting_bytes`` of all;
    ``credit``: turns that a client may make up for; ``preparing``: taken and not yet made a tensor; ``remembered``
    replies, ``remembered_per_client`` of one client; ``unsent``: replies that the transport has not taken.
    """

    per_client: int = 32
    client_bytes: int = 64 * 1024 * 1024
    waiting: int = 4096
    waiting_bytes: int = 256 * 1024 * 1024
    credit: int = 4
    preparing: int = 8
    remembered: int = 16384
    remembered_per_client: int = 256
    unsent: int = 4096


@dataclass(slots=True, eq=False)
class Request:
    """A request without a reply. ``item``: the number of the item that it has become; ``kept``: it is written down."""

    ticket: int
    client: str
    id: str
    payload: object
    size_bytes: int
    plain: bool
    received_at: float
    deadline_at: float
    answered: bool = False
    item: int | None = None
    kept: bool = False

    @property
    def sample(self) -> str:
        """Its name among the items of a run."""
        return f"{self.client}/{self.id}"

    def too_late(self, now: float) -> bool:
        return now >= self.deadline_at

    @property
    def patience_s(self) -> float:
        return self.deadline_at - self.received_at

    @property
    def deadline_passed(self) -> str:
        return f"the deadline of {self.patience_s:g} s has passed"


class RequestDesk:
    """All requests of a source that have no reply, and the last replies. Replies to send come out of ``outgoing``.

    With ``journalled``, what is to be written down of them comes out of ``to_keep``.
    """

    def __init__(self, limits: RequestLimits, *, journalled: bool = False) -> None:
        self.limits, self.journalled = limits, journalled
        self.to_keep: list[KeepRequest | KeepReply] = []
        self.received = 0
        self.turned_away = 0
        self.waiting = 0
        self.waiting_bytes = 0
        self.preparing: dict[int, Request] = {}
        self.replies: Counter[str] = Counter()
        self.labelled_s = Histogram(ITEM_BUCKETS_S)
        self._queues: dict[str, deque[Request]] = {}
        self._bytes: Counter[str] = Counter()
        self._had: dict[str, int] = {}
        self._turn = 0
        self._open: dict[tuple[str, str], Request] = {}
        self._deadlines: list[tuple[float, int, Request]] = []
        self._remembered: OrderedDict[tuple[str, str], SendReply] = OrderedDict()
        self._remembered_of: dict[str, deque[str]] = {}
        self._outgoing: deque[SendReply] = deque(maxlen=limits.unsent)
        self._untaken: deque[SendReply] = deque(maxlen=limits.unsent)
        self._again_at = math.inf
        self.tickets = 0

    # --- arrival

    def receive(self, now: float, event: RequestReceived, refused: str = "") -> None:
        """Take in a request; with ``refused``, only to say so.

        One under way is not taken twice, and one that was answered gets the same reply again.
        """
        key = event.client, event.id
        if key in self._open:
            return
        if (told := self._remembered.get(key)) is not None:
            self._outgoing.append(SendReply(told.reply, event.plain, told.kept))
            return
        self.received += 1
        self.tickets += 1
        identity = event.id or f"#{self.tickets}"  # no client can give such a one itself
        deadline_at = math.inf if event.deadline_s is None else now + event.deadline_s
        request = Request(
            self.tickets, event.client, identity, event.payload, event.size_bytes, event.plain, now, deadline_at
        )
        self._open[event.client, identity] = request
        refused = refused or self._no_room_for(request)
        if refused:
            self.reply(now, request, error="refused", reason=refused)
            return
        if self.journalled:
            request.kept = True
            self.to_keep.append(KeepRequest(request.client, identity, event.payload, event.deadline_s, event.plain))
        self._enqueue(request)
        while self.waiting > self.limits.waiting or self.waiting_bytes > self.limits.waiting_bytes:
            self._refuse_newest(now)

    def _forget_turns(self) -> None:
        """Of clients of whom nothing waits, the turns that they have had count only while they are few."""
        if len(self._had) > 2 * self.limits.waiting:
            self._had = {name: had for name, had in self._had.items() if name in self._queues or name == OWN}

    def _no_room_for(self, request: Request) -> str:
        limits, client = self.limits, request.client
        queued = len(self._queues.get(client, ()))
        if queued >= limits.per_client:
            return f"overloaded: {queued} requests of {client} wait already"
        if queued and self._bytes[client] + request.size_bytes > limits.client_bytes:
            return f"overloaded: {self._bytes[client]:,} bytes of {client} wait already"
        return ""

    def _enqueue(self, request: Request) -> None:
        queue = self._queues.get(request.client)
        if queue is None:
            queue = self._queues[request.client] = deque()
            self._forget_turns()
            self._catch_up(request.client)
        queue.append(request)
        self.waiting += 1
        self.waiting_bytes += request.size_bytes
        self._bytes[request.client] += request.size_bytes
        self._watch(request)

    def _watch(self, request: Request) -> None:
        if request.deadline_at < math.inf:
            heapq.heappush(self._deadlines, (request.deadline_at, request.ticket, request))

    def _refuse_newest(self, now: float) -> None:
        """No room for all: whoever has most gives way, so that others' requests never push out a modest client's."""
        full = self.waiting_bytes > self.limits.waiting_bytes
        client = max(self._queues, key=lambda name: self._bytes[name] if full else len(self._queues[name]))
        request = self._queues[client][-1]
        text = f"overloaded: {self.waiting - 1} requests of {len(self._queues)} clients wait already"
        self.reply(now, request, error="refused", reason=text)

    # --- from one life to the next

    def restore(self, now: float, event: Restored) -> None:
        """Go on where an earlier life stopped, once its items are reopened."""
        self.tickets = max(self.tickets, event.totals.tickets)
        self.turned_away, self.replies = event.totals.turned_away, Counter(event.totals.replies)
        for left in event.requests:
            self._enqueue(self.reopen(now, left, None))
        for told in event.replies:
            self._remember(told)
        self._outgoing.extend(event.unsent)
        self.received = len(self._open) + self.replies.total()

    def reopen(self, now: float, left: RestoredRequest, item: int | None) -> Request:
        """A request of an earlier life, still without a reply; with ``item`` it has had its turn."""
        self.tickets += 1
        begin = now - left.age_s
        deadline_at = math.inf if left.deadline_s is None else begin + left.deadline_s
        request = Request(
            self.tickets, left.client, left.id, left.payload, left.size_bytes, left.plain, begin, deadline_at,
            item=item, kept=True,
        )  # fmt: skip
        self._open[left.client, left.id] = request
        if item is not None:
            request.payload = None
            self._watch(request)
        return request

    # --- turns

    def next_party(self, *, own: bool, clients: bool) -> str | None:
        """Whose turn it is among those who may: a client, ``OWN`` for the source's own input, or None if nobody may.

        It is the one who has had least; who was away is let off with a few turns that it did not take.
        """
        if own:
            self._catch_up(OWN)
        parties = [OWN] * own + [*self._queues] * clients
        return min(parties, key=self._had.__getitem__, default=None)

    @property
    def hurry_s(self) -> float:
        """The shortest deadline among the requests that are next of their clients; infinity without any."""
        return min((queue[0].patience_s for queue in self._queues.values()), default=math.inf)

    def take(self, client: str) -> Request:
        """The oldest request of this client, out of its queue."""
        request = self._queues[client][0]
        self._leave_queue(request)
        return request

    def count_turn(self, name: str) -> None:
        """It has had its turn."""
        self._turn = max(self._turn, self._had[name])
        self._had[name] += 1

    def _catch_up(self, name: str) -> None:
        self._had[name] = max(self._had.get(name, 0), self._turn - self.limits.credit)

    def prepare(self, request: Request) -> PrepareRequest:
        """Have its tensor made; that is what a turn is for."""
        self.count_turn(request.client)
        self.preparing[request.ticket] = request
        payload, request.payload = request.payload, None
        return PrepareRequest(request.ticket, payload)

    def prepared(self, ticket: int) -> Request | None:
        """The request whose tensor is there; None if it has been answered meanwhile."""
        request = self.preparing.pop(ticket, None)
        return None if request is None or request.answered else request

    def _leave_queue(self, request: Request) -> None:
        queue = self._queues.get(request.client)
        if queue is None or request not in queue:
            return
        queue.remove(request)
        self.waiting -= 1
        self.waiting_bytes -= request.size_bytes
        self._bytes[request.client] -= request.size_bytes
        if not queue:
            del self._queues[request.client], self._bytes[request.client]

    def refuse_all(self, now: float, reason: str) -> None:
        """None of those that are not items yet will become one."""
        for request in [*self, *self.preparing.values()]:
            if not request.answered:
                self.reply(now, request, error="refused", reason=reason)

    @property
    def unadmitted(self) -> int:
        """Requests that wait or are prepared."""
        return self.waiting + sum(not request.answered for request in self.preparing.values())

    def __iter__(self) -> Iterator[Request]:
        """The requests that wait for their turn."""
        for queue in self._queues.values():
            yield from queue

    # --- deadlines

    def next_deadline(self) -> float:
        """When the next one passes, monotonic seconds; infinity if none will."""
        heap = self._deadlines
        if len(heap) > 2 * len(self._open) + _HEAP_SLACK:
            heap[:] = [entry for entry in heap if not entry[2].answered]
            heapq.heapify(heap)
        while heap and heap[0][2].answered:
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def expired(self, now: float) -> list[Request]:
        """Requests without a reply whose deadline has passed; each is named once."""
        found = []
        while self.next_deadline() <= now:
            found.append(heapq.heappop(self._deadlines)[2])
        return found

    # --- replies

    def reply(self, now: float, request: Request, *, error: str, reason: str) -> None:
        """Answer without a label."""
        self._answer(request, Reply(
            request.client, request.id, latency_s=max(now - request.received_at, 0.0), error=error, reason=reason[:400]
        ))  # fmt: skip

    def result(self, now: float, request: Request, row: ResultRow) -> None:
        """Answer with what became of its item."""
        if row.label is None:
            error = "deadline" if request.too_late(now) else "failed"
            self.reply(now, request, error=error, reason=row.error or "no label")
            return
        self._answer(request, Reply(
            request.client, request.id, row.label, confidence=row.score, exit=row.exit, path=row.path,
            latency_s=max(now - request.received_at, 0.0),
        ))  # fmt: skip

    def _answer(self, request: Request, reply: Reply) -> None:
        if request.answered:
            raise IllegalEventError(f"a second reply to {request.sample}", ())
        self._leave_queue(request)
        self.turned_away += request.item is None
        request.answered, request.payload = True, None
        del self._open[request.client, request.id]
        self.replies[reply.error or "label"] += 1
        if not reply.error:
            self.labelled_s.add(reply.latency_s)
        if request.kept:
            self.to_keep.append(KeepReply(reply, request.plain))
        command = SendReply(reply, request.plain, request.kept)
        self._outgoing.append(command)
        self._remember(command)

    def _remember(self, command: SendReply) -> None:
        client = command.reply.client
        self._remembered[client, command.reply.id] = command
        ids = self._remembered_of.setdefault(client, deque())
        ids.append(command.reply.id)
        if len(ids) > self.limits.remembered_per_client:
            del self._remembered[client, ids.popleft()]
        if len(self._remembered) > self.limits.remembered:
            (oldest, _), _ = self._remembered.popitem(last=False)
            theirs = self._remembered_of[oldest]
            theirs.popleft()
            if not theirs:
                del self._remembered_of[oldest]

    def failed(self, now: float, event: ReplyFailed) -> None:
        """The transport did not take it: it is sent again a little later, unless too many wait."""
        self._untaken.append(event.command)
        self._again_at = min(self._again_at, now + _AGAIN_S)

    def outgoing(self, now: float) -> list[SendReply]:
        """The replies to send now."""
        out = list(self._outgoing)
        self._outgoing.clear()
        if now >= self._again_at:
            out = [*self._untaken, *out]
            self._untaken.clear()
            self._again_at = math.inf
        return out

    def next_wakeup(self, *, connected: bool) -> float:
        """When a deadline passes or a reply is to be sent again, monotonic seconds; infinity if never."""
        return min(self.next_deadline(), self._again_at) if connected else self.next_deadline()

    # --- invariants

    def problems(self, admitted: int) -> list[str]:
        """Broken invariants, in words; ``admitted``: items under way that are requests."""
        found = []
        limits = self.limits
        waiting = list(self)
        if self.waiting != len(waiting) or self.waiting_bytes != sum(request.size_bytes for request in waiting):
            found.append(f"requests: {self.waiting} ({self.waiting_bytes} bytes) wait, the queues hold {len(waiting)}")
        if len(self._open) != self.unadmitted + admitted:
            found.append(f"requests: {len(self._open)} open, {self.unadmitted} wait or are prepared, {admitted} run")
        if self.received != len(self._open) + self.replies.total():
            found.append(f"requests: {self.received} came, {len(self._open)} open, {self.replies.total()} answered")
        if not self._queues.keys() <= self._had.keys() or len(self._had) > 2 * limits.waiting + 2:
            found.append(f"requests: turns of {len(self._had)} clients are counted, {len(self._queues)} wait")
        if len(waiting) > limits.waiting or self.waiting_bytes > limits.waiting_bytes:
            found.append(f"requests: {len(waiting)} wait, more than {limits.waiting}")
        if len(self._remembered) > limits.remembered or len(self.preparing) > limits.preparing:
            found.append(f"requests: {len(self._remembered)} replies remembered, {len(self.preparing)} prepared")
        return found
