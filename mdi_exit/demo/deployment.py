"""A whole run in one TOML file: the source, the agents, who may send to whom.

    [source]
    layers = "0-4"
    neighbours = ["a", "b"]

    [[agents]]
    name = "a"
    layers = "5-8"
    neighbours = []

    [run]
    adapt = "threshold"

    [[run.phases]]
    name = "calm"
    rate = "15/s"
    duration = "10s"

``neighbours`` left out means every other node; agents answer the source whatever it says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdi_exit import orders, values
from mdi_exit.config import nearest, read_toml
from mdi_exit.errors import UsageError
from mdi_exit.span import LayerSpan, missing_layers

__all__ = ["Deployment", "NodeSpec", "PhaseSpec", "RunSpec", "read_deployment"]

ADAPTATIONS = tuple(name for name in orders.ADAPTATIONS if name != "latency")  # for which there is no target here


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node. ``layers`` None: runs none (the source only); ``neighbours`` None: every other node.

    ``join_at_s``: seconds after the start of the run.
    """

    name: str
    layers: LayerSpan | None
    neighbours: tuple[str, ...] | None = None
    profile: str | None = None
    join_at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PhaseSpec:
    """A named stretch of the run with an offered rate of its own."""

    name: str
    rate_per_s: float
    duration_s: float


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What the file says about the run; None: it says nothing. ``rate`` is items a second or ``"max"``.

    With ``phases``, which follow one another, ``rate`` is None and ``duration_s`` their sum.
    """

    rate: float | str | None = None
    duration_s: float | None = None
    adapt: str | None = None
    exit_threshold: float | None = None
    seed: int | None = None
    phases: tuple[PhaseSpec, ...] = ()

    def outranked(self, given: Collection[str]) -> RunSpec:
        """Less what is ``given`` elsewhere (settings of the demo, by name), which outranks the file."""
        keeps_rate = "rate" not in given
        return RunSpec(
            rate=self.rate if keeps_rate else None,
            duration_s=None if "duration" in given else self.duration_s,
            adapt=None if "adapt" in given else self.adapt,
            exit_threshold=None if "exit_threshold" in given else self.exit_threshold,
            seed=None if "seed" in given else self.seed,
            phases=self.phases if keeps_rate else (),
        )


@dataclass(frozen=True, slots=True)
class Deployment:
    """Checked: names are unique, neighbours exist, every layer is held, every task can reach its next layer."""

    source: NodeSpec
    agents: tuple[NodeSpec, ...]
    run: RunSpec = field(default_factory=RunSpec)

    @property
    def nodes(self) -> tuple[NodeSpec, ...]:
        return (self.source, *self.agents)

    def reachable(self, node: NodeSpec) -> tuple[NodeSpec, ...]:
        """The nodes that ``node`` may send tasks to."""
        return tuple(
            other
            for other in self.nodes
            if other.name != node.name and (node.neighbours is None or other.name in node.neighbours)
        )


def read_deployment(path: Path, layer_count: int = 9) -> Deployment:
    """Read and check a file for a model of ``layer_count`` layers. Raises ``UsageError``."""
    document = read_toml(path, "--topology")
    _check_keys(document, ("source", "agents", "run"), str(path))
    source = _node(_table(document.get("source", {}), f"{path} [source]"), f"{path} [source]", agent=False)
    rows = _rows(document, "agents", str(path))
    places = [f"{path} [[agents]] number {number}" for number in range(1, len(rows) + 1)]
    agents = tuple(_node(_table(row, place), place, agent=True) for row, place in zip(rows, places, strict=True))
    found = Deployment(source, agents, _run(_table(document.get("run", {}), f"{path} [run]"), f"{path} [run]"))
    _check_names(found, path)
    _check_layers(found, path, layer_count)
    _check_hops(found, path, layer_count)
    return found


# --- reading


def _table(content: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise UsageError(place, "a table", f"a TOML {type(content).__name__}")
    return content


def _rows(table: Mapping[str, Any], key: str, place: str) -> list[Any]:
    rows = table.get(key, [])
    if not isinstance(rows, list):
        raise UsageError(place, f"tables [[{key}]]", f"{key} = {rows!r}")
    return rows


def _check_keys(table: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(place, "the keys " + ", ".join(known), key + nearest(key, known))


def _read(table: Mapping[str, Any], key: str, place: str, parse: Callable[[str], Any], default: Any = None) -> Any:
    content = table.get(key)
    if content is None:
        return default
    if isinstance(content, bool) or not isinstance(content, str | int | float):
        raise UsageError(f"{place} {key}", "text or a number", f"a TOML {type(content).__name__}")
    try:
        return parse(str(content))
    except UsageError as error:
        raise UsageError(f"{place} {key}", error.expected, error.got) from None


def _needed(table: Mapping[str, Any], key: str, place: str, parse: Callable[[str], Any]) -> Any:
    if key not in table:
        raise UsageError(place, f"a key {key}", "none")
    return _read(table, key, place, parse)


def _node(table: Mapping[str, Any], place: str, *, agent: bool) -> NodeSpec:
    common = ("name", "layers", "neighbours", "profile")
    _check_keys(table, (*common, "join_at") if agent else common, place)
    if agent:
        name, layers = _needed(table, "name", place, values.name), _needed(table, "layers", place, LayerSpan.parse)
    else:
        name = _read(table, "name", place, values.name, "source")
        layers = _read(table, "layers", place, LayerSpan.parse)
    neighbours = table.get("neighbours")
    if neighbours is not None and not (
        isinstance(neighbours, list) and all(isinstance(entry, str) for entry in neighbours)
    ):
        raise UsageError(f"{place} neighbours", "a list of names", repr(neighbours))
    return NodeSpec(
        name=name,
        layers=layers,
        neighbours=None if neighbours is None else tuple(neighbours),
        profile=_read(table, "profile", place, values.device),
        join_at_s=_read(table, "join_at", place, _instant, 0.0),
    )


def _run(table: Mapping[str, Any], place: str) -> RunSpec:
    _check_keys(table, ("rate", "duration", "adapt", "exit_threshold", "seed", "phases"), place)
    phases = tuple(
        _phase(_table(row, where), where)
        for number, row in enumerate(_rows(table, "phases", place), start=1)
        for where in [f"{place} phase {number}"]
    )
    if phases and (both := next((key for key in ("rate", "duration") if key in table), None)):
        raise UsageError(place, "rate and duration in the phases only", f"{both} beside phases")
    duration_s = _read(table, "duration", place, values.duration)
    return RunSpec(
        rate=_read(table, "rate", place, _rate),
        duration_s=sum(phase.duration_s for phase in phases) if phases else duration_s,
        adapt=_read(table, "adapt", place, _adapt),
        exit_threshold=_read(table, "exit_threshold", place, values.fraction),
        seed=_read(table, "seed", place, values.integer(0)),
        phases=phases,
    )


def _phase(table: Mapping[str, Any], place: str) -> PhaseSpec:
    _check_keys(table, ("name", "rate", "duration"), place)
    return PhaseSpec(
        name=_needed(table, "name", place, _phase_name),
        rate_per_s=_needed(table, "rate", place, _phase_rate),
        duration_s=_needed(table, "duration", place, values.duration),
    )


def _rate(text: str) -> float | str:
    return values.rate(text) or "max"


def _phase_name(text: str) -> str:
    """As the source's ``--schedule`` takes it."""
    if not text.strip() or any(char in ",=@" or not char.isprintable() for char in text):
        raise UsageError("", "a name without , = @", repr(text))
    return text.strip()


def _phase_rate(text: str) -> float:
    per_s = values.rate(text)
    if per_s is None:
        raise UsageError("", "items a second such as 25/s (max is for a whole run)", repr(text))
    return per_s


def _instant(text: str) -> float:
    return 0.0 if text.strip() in {"0", "0.0", "0s"} else values.duration(text)


def _adapt(text: str) -> str:
    if text not in ADAPTATIONS:
        raise UsageError("", "one of " + ", ".join(ADAPTATIONS), repr(text) + nearest(text, ADAPTATIONS))
    return text


# --- checking


def _check_names(found: Deployment, path: Path) -> None:
    names = [node.name for node in found.nodes]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UsageError(str(path), "each name once", f"{name} twice")
    for node in found.nodes:
        others = [name for name in names if name != node.name]
        for number, neighbour in enumerate(node.neighbours or ()):
            if neighbour not in others:
                got = "itself" if neighbour == node.name else repr(neighbour) + nearest(neighbour, others)
                raise UsageError(f"{path}: neighbours of {node.name}", "names of other nodes", got)
            if neighbour in (node.neighbours or ())[:number]:
                raise UsageError(f"{path}: neighbours of {node.name}", "each name once", f"{neighbour} twice")


def _check_layers(found: Deployment, path: Path, layer_count: int) -> None:
    for node in found.nodes:
        if node.layers and node.layers.stop > layer_count:
            raise UsageError(f"{path}: layers of {node.name}", f"layers from 0 to {layer_count - 1}", node.layers)
    missing = missing_layers(layer_count, (node.layers for node in found.nodes if node.layers))
    if missing:
        layers = "layer" + "s" * (len(missing) > 1)
        raise UsageError(str(path), f"all layers from 0 to {layer_count - 1} at some node", f"no node with {layers} "
                         + ", ".join(map(str, missing)))  # fmt: skip


def _check_hops(found: Deployment, path: Path, layer_count: int) -> None:
    """A task stands at a node with a next layer; where that lies beyond the node's span, a neighbour must hold it."""
    waiting = [(found.source, 0)]
    seen: set[tuple[str, int]] = set()
    while waiting:
        node, layer = waiting.pop()
        if (node.name, layer) in seen:
            continue
        seen.add((node.name, layer))
        # It may be sent on at any layer within the span, and must be at the span's end.
        stop = node.layers.stop if node.layers and layer in node.layers else layer
        for next_layer in range(layer, min(stop, layer_count - 1) + 1):
            takers = [other for other in found.reachable(node) if other.layers and next_layer in other.layers]
            if next_layer == stop and not takers:
                to = ", ".join(other.name for other in found.reachable(node)) or "nobody"
                raise UsageError(f"{path}: neighbours of {node.name}", f"one that holds layer {next_layer}", to)
            waiting += [(taker, next_layer) for taker in takers]
