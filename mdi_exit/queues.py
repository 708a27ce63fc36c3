"""The tasks that a node holds: I_n and O_n by next layer, with reserved slots for each layer.

Deadlock is excluded by construction: a task that is to be produced for a layer takes one of that layer's own slots before
its segment starts, later layers go first, and no layer's slots can be used up by another's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from msgspec import Struct

from mdi_exit.events import Task
from mdi_exit.segments import ModelPlan, SegmentKey

__all__ = ["Held", "Origin", "Running", "TaskStore"]


class Origin(StrEnum):
    """How a task came to be here, hence whose slot it takes: a sender's, the node's own, or none (admission's bound)."""

    RECEIVED = "received"
    PRODUCED = "produced"
    INJECTED = "injected"


class Held(Struct, frozen=True):
    """A task in a queue. ``sender`` is set for received tasks."""

    task: Task
    origin: Origin
    sender: str = ""


@dataclass(slots=True)
class Running:
    """The batch that the engine is at work on; ``started_at`` and ``expected_s`` in seconds."""

    batch: int
    plan: ModelPlan
    key: SegmentKey
    tasks: tuple[Task, ...]
    started_at: float
    expected_s: float

    @property
    def last(self) -> bool:
        """The network ends here: the tasks have no followers, hence no slots."""
        return self.key.stop == self.plan.layer_count


class _Side:
    """One of the two queues: a FIFO for each next layer."""

    __slots__ = ("by_layer", "length")

    def __init__(self) -> None:
        self.by_layer: dict[int, deque[Held]] = {}
        self.length = 0

    def put(self, held: Held, *, front: bool = False) -> None:
        queue = self.by_layer.get(held.task.next_layer)
        if queue is None:
            queue = self.by_layer[held.task.next_layer] = deque()
        (queue.appendleft if front else queue.append)(held)
        self.length += 1

    def take(self, layer: int, count: int = 1) -> tuple[Held, ...]:
        queue = self.by_layer[layer]
        self.length -= count
        if count == 1:
            return (queue.popleft(),)
        return tuple([queue.popleft() for _ in range(count)])

    def withdraw(self, item: int, attempt: int) -> Held | None:
        for queue in self.by_layer.values():
            for place, held in enumerate(queue):
                if (held.task.item, held.task.attempt) == (item, attempt):
                    del queue[place]
                    self.length -= 1
                    return held
        return None

    def waiting(self, layer: int) -> int:
        queue = self.by_layer.get(layer)
        return len(queue) if queue else 0

    def latest_first(self) -> list[int]:
        """Layers for which something waits, the latest first."""
        if not self.length:  # most often, and asked several times an event
            return []
        found = [layer for layer, queue in self.by_layer.items() if queue]
        if len(found) > 1:
            found.sort(reverse=True)
        return found

    def __iter__(self) -> Iterator[Held]:
        for queue in self.by_layer.values():
            yield from queue


class TaskStore:
    """I_n (``inputs``), O_n (``outputs``), and the slots of what this node has produced or is producing."""

    __slots__ = ("_from_sender", "_keys", "_produced", "inputs", "outputs", "slots")

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.inputs = _Side()
        self.outputs = _Side()
        self._produced: Counter[int] = Counter()
        self._from_sender: Counter[tuple[str, int]] = Counter()
        self._keys: Counter[tuple[int, int]] = Counter()

    def room(self, layer: int) -> int:
        """Free slots of this node's own for tasks whose next layer is ``layer``."""
        return self.slots - self._produced.get(layer, 0)

    def reserve(self, layer: int, count: int) -> None:
        """Take slots for tasks about to be produced."""
        self._produced[layer] += count

    def release(self, layer: int, count: int = 1) -> None:
        self._produced[layer] -= count

    def holds(self, item: int, attempt: int) -> bool:
        return self._keys.get((item, attempt), 0) > 0

    def held_for(self, sender: str, layer: int) -> int:
        """Slots that ``sender`` has in use here for ``layer``."""
        return self._from_sender.get((sender, layer), 0)

    def add(self, held: Held, *, output: bool = False, front: bool = False) -> None:
        """Put a task in a queue. A produced one must have its slot already (``reserve``)."""
        task = held.task
        if held.origin is Origin.RECEIVED:
            self._from_sender[held.sender, task.next_layer] += 1
        self._keys[task.item, task.attempt] += 1
        (self.outputs if output else self.inputs).put(held, front=front)

    def take(self, layer: int, count: int = 1, *, output: bool = False) -> tuple[Held, ...]:
        """Take the oldest tasks for ``layer`` out of a queue; their slots become free."""
        taken = (self.outputs if output else self.inputs).take(layer, count)
        for held in taken:
            self._forget(held)
            if held.origin is Origin.PRODUCED:
                self.release(layer)
        return taken

    def reclaim(self, layer: int) -> None:
        """Move the head of O_n for ``layer`` to I_n; its slot stays taken."""
        self.inputs.put(*self.outputs.take(layer))

    def withdraw(self, item: int, attempt: int) -> Held | None:
        """Take one attempt out of whichever queue it waits in; its slot becomes free. None if it waits in none."""
        if not self.holds(item, attempt):
            return None
        held = self.inputs.withdraw(item, attempt) or self.outputs.withdraw(item, attempt)
        if held is not None:
            self._forget(held)
            if held.origin is Origin.PRODUCED:
                self.release(held.task.next_layer)
        return held

    def hand_over(self, layer: int) -> None:
        """Move all of I_n for ``layer`` to O_n: it is no longer run here. Slots stay taken."""
        if waiting := self.inputs.waiting(layer):
            for held in self.inputs.take(layer, waiting):
                self.outputs.put(held)

    def _forget(self, held: Held) -> None:
        key = held.task.item, held.task.attempt
        left = self._keys[key] - 1
        if left > 0:
            self._keys[key] = left
        else:
            del self._keys[key]
        if held.origin is Origin.RECEIVED:
            self._from_sender[held.sender, held.task.next_layer] -= 1

    def clear(self) -> tuple[Held, ...]:
        """Take everything out; slots reserved for a running segment stay."""
        dropped = [
            held
            for output, side in ((False, self.inputs), (True, self.outputs))
            for layer in side.latest_first()
            for held in self.take(layer, side.waiting(layer), output=output)
        ]
        return tuple(dropped)

    def problems(self, running_for: Counter[int]) -> list[str]:
        """Broken invariants, in words; ``running_for``: slots reserved by the running segment, by layer."""
        found = []
        for side_name, side in (("inputs", self.inputs), ("outputs", self.outputs)):
            if side.length != sum(1 for _ in side):
                found.append(f"{side_name}: length {side.length} but holds {sum(1 for _ in side)}")
        everything = [*self.inputs, *self.outputs]
        produced = Counter(held.task.next_layer for held in everything if held.origin is Origin.PRODUCED) + running_for
        if +self._produced != produced:
            found.append(f"slots taken {dict(+self._produced)} but produced or running {dict(produced)}")
        if any(count > self.slots for count in self._produced.values()):
            found.append(f"more than {self.slots} slots taken: {dict(self._produced)}")
        senders = Counter((h.sender, h.task.next_layer) for h in everything if h.origin is Origin.RECEIVED)
        if +self._from_sender != senders:
            found.append(f"slots of senders {dict(+self._from_sender)} but holds {dict(senders)}")
        if self._keys != Counter((held.task.item, held.task.attempt) for held in everything):
            found.append("the index of held attempts does not match the queues")
        return found
