"""Plain numbers of a deployment: what each node can run, what each transfer costs, where an item comes in.

A **boundary** b is the place before layer b: a task there has layers 0 to b-1 behind it. A node turns tasks at one
boundary into tasks at a later one (``Work``); groups of nodes hand tasks at a boundary to each other (``Group``), which
takes of every ``Medium`` that they use on the way. MQTT is a star: a transfer takes of the sender's uplink, of the broker
and of the receiver's downlink; where both radios are on one channel it takes of this twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Group", "Medium", "Node", "Problem", "Work", "mesh"]


@dataclass(frozen=True, slots=True)
class Work:
    """Layers ``entry`` to ``stop - 1`` in one go: seconds an item at the best batch size, min over b of t(b)/b.

    ``head_s``: of the exit head behind the last of them; not spent on items for which this exit is switched off. The
    head of the network's last exit is in ``seconds``.
    """

    entry: int
    stop: int
    seconds: float
    head_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.entry < self.stop or not 0 <= self.seconds < math.inf or not 0 <= self.head_s < math.inf:
            raise ValueError(f"expected layers in order and seconds of at least 0, got {self}")


@dataclass(frozen=True, slots=True)
class Node:
    """A device, or ``count`` equal ones that are used alike. One second of each is to be had a second.

    ``memory_bytes``: what its layers may take, where placement is free (``Problem.layer_bytes``).
    """

    name: str
    works: tuple[Work, ...] = ()
    count: float = 1.0
    memory_bytes: float = math.inf


@dataclass(frozen=True, slots=True)
class Medium:
    """Something with a limit that transfers share: an uplink, a downlink, the broker, a radio channel.

    A transfer takes of it once if its sender is in ``senders``, and once if its receiver is in ``receivers``.
    ``overhead_bytes``: of each message, beside the tensor, or the airtime of a frame as bytes. ``answer_bytes``: for an item
    that ends elsewhere than at the source, its part of the message that says so.
    """

    name: str
    senders: frozenset[str] = frozenset()
    receivers: frozenset[str] = frozenset()
    bytes_per_s: float = math.inf
    messages_per_s: float = math.inf
    overhead_bytes: float = 0.0
    answer_bytes: float = 0.0

    def __post_init__(self) -> None:
        if self.bytes_per_s <= 0 or self.messages_per_s <= 0:
            raise ValueError(f"expected a capacity above 0, got {self}")


@dataclass(frozen=True, slots=True)
class Group:
    """Any of ``senders`` may send to any of ``receivers``; tasks of a group are pooled, which keeps the programme small.

    ``only_raw``: nothing but items that no layer has run yet.
    """

    senders: frozenset[str]
    receivers: frozenset[str]
    only_raw: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """A deployment in steady state. ``cut_bytes``: of the task at each boundary 0…L-1 as it crosses a link.

    ``exits``: the layers that end in an exit, rising; the last is L-1. ``layer_bytes``: memory that each layer takes;
    when it is given, which layers a node holds is free within its ``memory_bytes`` (layers may then even be held in part).
    """

    source: str
    exits: tuple[int, ...]
    cut_bytes: tuple[float, ...]
    nodes: tuple[Node, ...]
    groups: tuple[Group, ...] = ()
    media: tuple[Medium, ...] = ()
    layer_bytes: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        layers = len(self.cut_bytes)
        if len(set(names)) != len(names) or self.source not in names:
            raise ValueError(f"expected nodes of different names, {self.source!r} among them, got {names}")
        if tuple(sorted(set(self.exits))) != self.exits or self.exits[-1:] != (layers - 1,):
            raise ValueError(f"expected rising exits that end at layer {layers - 1}, got {self.exits}")
        for node in self.nodes:
            for work in node.works:
                inside = [layer for layer in self.exits if work.entry <= layer < work.stop - 1]
                if work.stop > layers or inside:
                    raise ValueError(f"expected work within layers 0-{layers - 1} up to the first exit, got {work}")
        if self.layer_bytes and len(self.layer_bytes) != layers:
            raise ValueError(f"expected the bytes of {layers} layers, got {len(self.layer_bytes)}")

    @property
    def layers(self) -> int:
        return len(self.cut_bytes)

    def block(self, boundary: int) -> int:
        """How many exits lie before the boundary: which share of items comes so far."""
        return sum(layer < boundary for layer in self.exits)

    def exit_at(self, boundary: int) -> int | None:
        """The exit that ends the layer before the boundary; None if none does."""
        return self.exits.index(boundary - 1) if boundary - 1 in self.exits else None


def mesh(names: Iterable[str]) -> Group:
    """Every node may send to every other."""
    everyone = frozenset(names)
    return Group(everyone, everyone)
