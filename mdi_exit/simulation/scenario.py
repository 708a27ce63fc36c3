"""A scenario: model, nodes, links, load and what changes over time, in one TOML file.

It is the demo's file (``mdi_exit.demo.deployment``) with more said: every topology of the demo is a scenario.

    [model]                     # or nothing: the shipped artifact
    costs = "models/resnet50.toml"
    trace = "traces/resnet.npz" # outcomes; without it the artifact's own images are run once

    [links]                     # what every node's link is unless the node says otherwise
    bandwidth = "20Mbit/s"
    delay = "2ms"
    medium = "wifi"             # nodes of one medium share its airtime

    [[media]]
    name = "wifi"
    bandwidth = "20Mbit/s"

    [source]
    layers = "0-1"
    profile = "jetson-nano"

    [[agents]]
    name = "edge"               # edge-1 … edge-3
    count = 3
    layers = "2-8"              # auto: as the source's placement gives
    profile = "raspberry-pi-4x0.5"
    neighbours = ["next"]       # the next number of the group; a group's name means all its members

    [run]
    rate = "20/s"
    duration = "60s"

    [[changes]]
    at = "30s"
    node = "edge-2"
    alive = false
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mdi_exit import values
from mdi_exit.config import nearest
from mdi_exit.engine.profile import parse_profile
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL
from mdi_exit.orders import ADAPTATIONS
from mdi_exit.policy.offloading import OFFLOADING
from mdi_exit.segments import SegmentKey
from mdi_exit.simulation.arrivals import Arrivals, read_arrivals
from mdi_exit.simulation.costs import ModelCosts, costs_of_artifact, costs_of_table
from mdi_exit.span import LayerSpan, missing_layers
from mdi_exit.tables import Table, open_table
from mdi_exit.tensors import CODECS
from mdi_exit.trace import Trace

__all__ = [
    "BrokerLimits",
    "Change",
    "Link",
    "Medium",
    "Node",
    "Policy",
    "Scenario",
    "Speed",
    "bandwidth",
    "read_scenario",
]

_USUAL_DEVICE: Final = "jetson-nano"
_BANDWIDTH = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kMG]?)(bit|B)/s")
_LINK_KEYS: Final = ("bandwidth", "up", "down", "delay", "loss", "medium")
_UNIT: Final = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True)
class Link:
    """A node's link to the broker. Bytes a second up and down (None: no limit); ``delay_s`` one way.

    ``loss``: share of the features, acknowledgements and probes that vanish in each direction. ``medium``: a shared
    channel on which every transfer of this node, up or down, takes airtime as well: between two stations, twice.
    """

    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None
    delay_s: float = 0.001
    loss: float = 0.0
    medium: str | None = None


@dataclass(frozen=True, slots=True)
class Medium:
    """A shared channel: one transfer at a time, of ``frame_s`` + bytes / ``bytes_per_s`` seconds."""

    name: str
    bytes_per_s: float
    frame_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """The most that the broker forwards; None: no limit. A message counts once for each receiver."""

    messages_per_s: float | None = None
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of one sample by layer and by exit number, and a fixed part for each layer and batch."""

    layer_s: tuple[float, ...]
    exit_s: tuple[float, ...]
    overhead_s: float

    def seconds(self, key: SegmentKey, batch: int, exit_layers: tuple[int, ...]) -> float:
        """Of one batch of a segment; batching saves only the fixed part."""
        one = sum(self.layer_s[key.entry : key.stop])
        if key.head:
            one += self.exit_s[exit_layers.index(key.stop - 1)]
        return batch * one + (key.stop - key.entry) * self.overhead_s


@dataclass(frozen=True, slots=True)
class Node:
    """``span`` None: runs nothing (the source), or what the source's placement gives it (``auto``).

    ``neighbours`` None: every other node of its cell. ``window``: slots for each (sender, entry layer). ``memory_bytes``
    None: enough. ``profile``: in words, None if the seconds are the file's own.
    """

    name: str
    span: LayerSpan | None
    speed: Speed
    link: Link = Link()
    neighbours: tuple[str, ...] | None = None
    window: int = 16
    memory_bytes: int | None = None
    join_at_s: float = 0.0
    profile: str | None = None
    auto: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """At ``at_s`` a node becomes what is not None: ``speed`` is a factor on its first one (0.25: four times slower)."""

    at_s: float
    node: str
    speed: float | None = None
    alive: bool | None = None
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules by name, and what the source is told. ``outcomes``: whether an optimiser knows recorded ones."""

    offloading: str = "paper"
    adapt: str = "none"
    threshold: float = 0.8
    floor: float = 0.5
    max_queue: int = 40
    max_pending: int = 512
    telemetry_period_s: float = 0.5
    target_p99_s: float | None = None
    deadline_s: float | None = None
    outcomes: bool = True


@dataclass(frozen=True, slots=True)
class Scenario:
    """Checked: names are unique, neighbours exist, every layer is held, spans fit the memory.

    ``source`` and ``agents`` are one cell; there are ``cells`` alike, each a deployment of its own with its own media, on one
    broker. ``artifact``: what runs live; None: only costs are known.
    """

    name: str
    note: str
    model: ModelCosts
    artifact: str | None
    codec: str
    source: Node
    agents: tuple[Node, ...]
    media: Mapping[str, Medium]
    broker: BrokerLimits
    arrivals: Arrivals
    policy: Policy
    changes: tuple[Change, ...]
    duration_s: float
    seed: int
    cells: int = 1
    trace: Trace | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.source, *self.agents)

    def reachable(self, node: Node) -> tuple[Node, ...]:
        """The nodes of its cell that ``node`` may send tasks to."""
        allowed = None if node.neighbours is None else set(node.neighbours)
        return tuple(
            other for other in self.nodes if other.name != node.name and (allowed is None or other.name in allowed)
        )

    def outranked(
        self,
        *,
        seed: int | None = None,
        duration_s: float | None = None,
        threshold: float | None = None,
        offloading: str | None = None,
        adapt: str | None = None,
    ) -> Scenario:
        """With what is given elsewhere (flags) in place of the file's."""
        policy = replace(
            self.policy,
            threshold=self.policy.threshold if threshold is None else threshold,
            offloading=offloading or self.policy.offloading,
            adapt=adapt or self.policy.adapt,
        )
        return replace(
            self,
            policy=policy,
            seed=self.seed if seed is None else seed,
            duration_s=self.duration_s if duration_s is None else duration_s,
        )


def bandwidth(text: str) -> float | None:
    """``20Mbit/s`` or ``2MB/s``: bytes a second; ``unlimited``: None. Raises ``UsageError``."""
    if text.strip() == "unlimited":
        return None
    match = _BANDWIDTH.fullmatch(text.strip())
    rate = float(match[1]) * _UNIT[match[2]] / (8 if match[3] == "bit" else 1) if match else 0.0
    if rate <= 0:
        raise UsageError("", "a bandwidth such as 20Mbit/s or 2MB/s, or unlimited", repr(text))
    return rate


def read_scenario(path: Path) -> Scenario:
    """Read and check a file; files that it names lie beside it. Raises ``UsageError``."""
    document = open_table(path, "scenario")
    note = document.get("note", values.text, "")
    run = document.table("run")
    codec = run.get("codec", _choice(CODECS), "float32")
    model, artifact, trace = _model(document.table("model"), path.parent, codec)
    usual = _link(document.table("links"), Link())
    source, *_ = _nodes(document.table("source"), model, usual, agent=False)
    rows = document.rows("agents")
    groups = [_nodes(row, model, usual, agent=True) for row in rows]
    agents = tuple(node for group in groups for node in group)
    members = {
        row.content["name"]: tuple(node.name for node in group)
        for row, group in zip(rows, groups, strict=True)
        if "count" in row.content
    }
    links = {node.name: node.link for node in (source, *agents)}
    found = Scenario(
        name=path.stem,
        note=note.strip(),
        model=model,
        artifact=artifact,
        codec=codec,
        source=source,
        agents=agents,
        media=_media(document),
        broker=_broker(document.table("broker")),
        arrivals=read_arrivals(run, path.parent),
        policy=_policy(run),
        changes=tuple(sorted((_change(row, links) for row in document.rows("changes")), key=lambda one: one.at_s)),
        duration_s=run.get("duration", values.duration, 0.0),
        seed=run.get("seed", values.integer(0), 0),
        cells=run.get("cells", values.integer(1, 10_000), 1),
        trace=trace,
    )
    run.done()
    document.done()
    if not found.duration_s:
        found = replace(found, duration_s=found.arrivals.end_s or 60.0)
    found = _with_groups(found, members, path)
    _check(found, path)
    return found


# --- reading


def _choice(known: Collection[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in known:
            raise UsageError("", "one of " + ", ".join(known), repr(text) + nearest(text, known))
        return text

    return parse


def _adapt(text: str) -> str:
    for known in ADAPTATIONS:
        if text == known:
            return known
    raise UsageError("", "one of " + ", ".join(ADAPTATIONS), repr(text) + nearest(text, ADAPTATIONS))


def _model(table: Table, folder: Path, codec: str) -> tuple[ModelCosts, str | None, Trace | None]:
    table.at_most_one(("artifact", "costs"))
    costs_file = table.get("costs", values.path)
    artifact = table.get("artifact", values.text, None if costs_file else DEFAULT_MODEL)
    trace_file = table.get("trace", values.path)
    table.done()
    if artifact is None and costs_file is not None:
        if trace_file is None:
            raise UsageError(table.place, "a trace beside costs", "none")
        model = costs_of_table(folder / costs_file, codec)
    else:
        beside = folder / str(artifact)
        artifact = str(beside) if beside.is_dir() else str(artifact)
        model = costs_of_artifact(artifact, codec)
    trace = None if trace_file is None else _trace(folder / trace_file, len(model.plan.exit_layers))
    return model, artifact, trace


def _trace(path: Path, exits: int) -> Trace:
    """A narrow model's may stand beside a wide one's costs: only the exits must be as many."""
    trace = Trace.load(path)
    if trace.exits != exits:
        raise UsageError(f"trace {path}: exits", f"{exits}, as the model has", trace.exits)
    return trace


def _link(table: Table, usual: Link) -> Link:
    table.at_most_one(("bandwidth", "up"))
    table.at_most_one(("bandwidth", "down"))
    both = table.get("bandwidth", bandwidth, "")
    up = usual.up_bytes_per_s if both == "" else both
    down = usual.down_bytes_per_s if both == "" else both
    return Link(
        up_bytes_per_s=table.get("up", bandwidth, up),  # type: ignore[arg-type] # "" stands for no bandwidth given
        down_bytes_per_s=table.get("down", bandwidth, down),  # type: ignore[arg-type]
        delay_s=table.get("delay", _instant, usual.delay_s),
        loss=table.get("loss", values.fraction, usual.loss),
        medium=table.get("medium", values.name, usual.medium),
    )


def _media(document: Table) -> dict[str, Medium]:
    media: dict[str, Medium] = {}
    for row in document.rows("media"):
        name = row.needed("name", values.name)
        rate = row.needed("bandwidth", bandwidth)
        if rate is None:
            raise row.wrong("bandwidth", "a bandwidth such as 20Mbit/s", "unlimited")
        if name in media:
            raise row.wrong("name", "each name once", f"{name} twice")
        media[name] = Medium(name, rate, row.get("frame", _instant, 0.0))
        row.done()
    return media


def _broker(table: Table) -> BrokerLimits:
    found = BrokerLimits(table.get("messages", values.rate), table.get("bandwidth", bandwidth))
    table.done()
    return found


def _policy(run: Table) -> Policy:
    usual = Policy()
    found = Policy(
        offloading=run.get("offloading", _choice(OFFLOADING), usual.offloading),
        adapt=run.get("adapt", _adapt, usual.adapt),
        threshold=run.get("exit_threshold", values.fraction, usual.threshold),
        floor=run.get("min_threshold", values.fraction, usual.floor),
        max_queue=run.get("max_queue", values.positive_int, usual.max_queue),
        max_pending=run.get("max_pending", values.positive_int, usual.max_pending),
        telemetry_period_s=run.get("telemetry_period", values.duration, usual.telemetry_period_s),
        target_p99_s=run.get("target_p99", values.duration),
        deadline_s=run.get("deadline", values.duration),
    )
    if found.adapt == "latency" and found.target_p99_s is None:
        raise UsageError(run.place, "target_p99 with adapt = latency", "none")
    return found


def _nodes(table: Table, model: ModelCosts, usual: Link, *, agent: bool) -> list[Node]:
    """One node, or with ``count`` so many alike."""
    if agent:
        name, span = table.needed("name", values.name), table.needed("layers", _layers)
    else:
        name = table.get("name", values.name, "source")
        span = table.get("layers", LayerSpan.parse)  # a source may have none
    count = table.get("count", values.integer(1, 100_000)) if agent else None
    node = Node(
        name=name,
        span=span,
        speed=_speed(table, model),
        link=_link(table, usual),
        neighbours=table.all("neighbours", values.text),
        window=table.get("window", values.integer(1, 4096), 16),
        memory_bytes=table.get("memory", values.memory),
        join_at_s=table.get("join_at", _instant, 0.0) if agent else 0.0,
        profile=table.get("profile", values.device, None if "layer_seconds" in table.content else _USUAL_DEVICE),
        auto=agent and span is None,
    )
    table.done()
    return [node] if count is None else [replace(node, name=f"{name}-{number}") for number in range(1, count + 1)]


def _layers(text: str) -> LayerSpan | None:
    return None if text.strip() == "auto" else LayerSpan.parse(text)


def _speed(table: Table, model: ModelCosts) -> Speed:
    """Of a device profile, or the table's own seconds; a node that says nothing is a Jetson Nano."""
    table.at_most_one(("profile", "layer_seconds"))
    layer_s = table.all("layer_seconds", values.positive_float)
    exit_s = table.all("exit_seconds", values.positive_float)
    overhead_s = table.get("overhead", _instant)
    if layer_s is None:
        device = parse_profile(table.get("profile", values.device, _USUAL_DEVICE))
        return Speed(
            tuple(macs / device.macs_per_s for macs in model.layer_macs),
            tuple(macs / device.macs_per_s for macs in model.exit_macs),
            device.layer_overhead_s if overhead_s is None else overhead_s,
        )
    exit_s = (0.0,) * len(model.exit_macs) if exit_s is None else exit_s
    for key, row, macs in (("layer_seconds", layer_s, model.layer_macs), ("exit_seconds", exit_s, model.exit_macs)):
        if len(row) != len(macs):
            raise table.wrong(key, f"{len(macs)} numbers", len(row))
    return Speed(layer_s, exit_s, overhead_s or 0.0)


def _change(row: Table, links: Mapping[str, Link]) -> Change:
    node = row.needed("node", values.name)
    if node not in links:
        raise row.wrong("node", "the name of a node", repr(node) + nearest(node, links))
    at_s = row.needed("at", _instant)
    speed = row.get("speed", values.positive_float)
    alive = row.get("alive", values.switch)
    link = _link(row, links[node])  # perhaps the one of the beginning, which an earlier change has taken away
    row.done()
    is_of_link = not row.content.keys().isdisjoint(_LINK_KEYS)
    if speed is None and alive is None and not is_of_link:
        raise UsageError(row.place, "a change: speed, alive, bandwidth, delay or loss", "none")
    return Change(at_s, node, speed, alive, link if is_of_link else None)


def _instant(text: str) -> float:
    return 0.0 if text.strip() in {"0", "0.0", "0s", "0ms"} else values.duration(text)


# --- neighbours by group


def _with_groups(found: Scenario, members: Mapping[str, tuple[str, ...]], path: Path) -> Scenario:
    """Neighbours by name: ``next`` and ``previous`` of a group, and groups, become their members."""
    names = {node.name for node in found.nodes}
    groups = {name: group for group in members.values() for name in group}

    def expanded(node: Node) -> Node:
        if node.neighbours is None:
            return node
        group = groups.get(node.name, (node.name,))
        wanted = dict.fromkeys(_neighbours(node, group, members, names, path))
        return replace(node, neighbours=tuple(name for name in wanted if name != node.name))

    return replace(found, source=expanded(found.source), agents=tuple(map(expanded, found.agents)))


def _neighbours(
    node: Node, group: tuple[str, ...], members: Mapping[str, tuple[str, ...]], names: set[str], path: Path
) -> Iterator[str]:
    place = group.index(node.name)
    for wanted in node.neighbours or ():
        if wanted == node.name:
            raise UsageError(f"{path}: neighbours of {node.name}", "names of other nodes", "itself")
        if wanted in names:
            yield wanted
        elif wanted in members:
            yield from members[wanted]
        elif wanted in ("next", "previous"):
            yield group[(place + (1 if wanted == "next" else -1)) % len(group)]
        else:
            got = repr(wanted) + nearest(wanted, [*names, *members])
            raise UsageError(
                f"{path}: neighbours of {node.name}", "names of other nodes or groups, next or previous", got
            )


# --- checking


def _check(found: Scenario, path: Path) -> None:
    seen: set[str] = set()
    for node in found.nodes:
        if node.name in seen:
            raise UsageError(str(path), "each name once", f"{node.name} twice")
        seen.add(node.name)
    count = found.model.plan.layer_count
    for node in found.nodes:
        _check_node(found, node, count, path)
    for change in found.changes:
        _check_medium(found, change.link, f"{path}: change of {change.node}")
    missing = missing_layers(count, (node.span for node in found.nodes if node.span))
    if missing and not any(node.auto for node in found.agents):
        layers = ", ".join(map(str, missing))
        raise UsageError(str(path), f"all layers from 0 to {count - 1} at some node", f"no node with layer {layers}")


def _check_node(found: Scenario, node: Node, count: int, path: Path) -> None:
    if node.span and node.span.stop > count:
        raise UsageError(f"{path}: layers of {node.name}", f"layers from 0 to {count - 1}", node.span)
    _check_medium(found, node.link, f"{path}: link of {node.name}")
    needed = sum(found.model.layer_bytes[layer] for layer in node.span) if node.span else 0
    if node.span:
        exits = found.model.plan.exit_layers
        needed += sum(size for layer, size in zip(exits, found.model.exit_bytes, strict=True) if layer in node.span)
    if node.memory_bytes is not None and needed > node.memory_bytes:
        raise UsageError(f"{path}: layers of {node.name}", f"weights of at most {node.memory_bytes} bytes", needed)


def _check_medium(found: Scenario, link: Link | None, place: str) -> None:
    if link is not None and link.medium is not None and link.medium not in found.media:
        raise UsageError(place, "a medium of [[media]]", repr(link.medium) + nearest(link.medium, found.media))
