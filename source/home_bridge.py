"""Keeps Home Assistant told of a running source; or takes back what earlier runs have told it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

from mdi_exit.events import Record
from mdi_exit.membership import Peer
from mdi_exit.snapshot import Rate
from mdi_exit.source_state import SourceState
from mdi_exit.topics import Topics
from mdi_exit.transport import Will
from mdi_exit.wire import Board
from mdi_exit.worker_config import WorkerConfig
from source.config import DEFAULT_PREFIX
from source.home_assistant import OFFLINE, ONLINE, LastResult, NodeFacts, SourceFacts, descriptions, states
from source.outside import OutsideLine

__all__ = ["HomeAssistant", "HomeCleaner", "home_will"]

_PERIOD_S: Final = 1.0
_AGAIN_S: Final = 30.0
_RATE_S: Final = 10.0
_CLEAN_S: Final = 5.0
_QUIET_S: Final = 0.5

log = logging.getLogger(__name__)


def home_will(topics: Topics, source: str) -> Will:
    """What tells Home Assistant that the source is gone."""
    return Will(topics.home_life(source), OFFLINE.encode(), qos=1, retain=True)


class HomeAssistant:
    """Descriptions, retained, as they change and whenever Home Assistant starts; states at most once a second.

    ``board``: the source's own, as last read.
    """

    def __init__(
        self,
        line: OutsideLine,
        topics: Topics,
        prefix: str,
        state: SourceState,
        model: str,
        labels: Sequence[str],
        *,
        board: Callable[[], Board | None] = lambda: None,
    ) -> None:
        self._line, self._topics, self._prefix, self._state = line, topics, prefix, state
        self._model, self._labels, self._board = model, tuple(labels), board
        self._last = LastResult()
        self._described: dict[str, bytes] = {}
        self._told: dict[str, bytes] = {}
        self._told_at = 0.0
        self._completed = Rate(window_s=_RATE_S)
        self._woken = asyncio.Event()
        line.when_up(self._afresh)
        for topic in dict.fromkeys((f"{prefix}/status", f"{DEFAULT_PREFIX}/status")):
            line.hear(topic, 0, self._on_home)

    def write(self, record: Record, label_names: Sequence[str] = ()) -> None:
        """A result: the label last seen."""
        row = record.row
        if row.error is None and row.label is not None:
            label = label_names[row.label] if row.label < len(label_names) else str(row.label)
            self._last = LastResult(record.sample, label, row.score, row.exit, record.latency_s * 1000, row.path)

    async def run(self) -> None:
        """Until cancelled. On a new connection at once; else once a second, whatever anybody publishes."""
        loop, told_at = asyncio.get_running_loop(), -math.inf
        while True:
            await asyncio.sleep(max(told_at + _PERIOD_S - loop.time(), 0.0))
            self._woken.clear()
            if self._line.connected:
                told_at = loop.time()
                self.tell(told_at)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _PERIOD_S)

    def tell(self, now: float) -> None:
        """Publish what is new: descriptions first, since nobody reads the states before."""
        facts = self.facts(now)
        if not self._described:
            self._line.publish(self._topics.home_life(facts.name), ONLINE.encode(), qos=1, retain=True)
        for topic, payload in descriptions(facts, self._topics, self._prefix).items():
            new = self._described.get(topic) != payload
            if new and self._line.publish(topic, payload, qos=1, retain=True):
                self._described[topic] = payload
        if now - self._told_at >= _AGAIN_S:
            self._told.clear()
            self._told_at = now
        for node, payload in states(facts).items():
            if self._told.get(node) != payload and self._line.publish(self._topics.home_state(node), payload):
                self._told[node] = payload

    async def goodbye(self) -> None:
        """Tell how it ended, and that the source is gone."""
        transport, topic = self._line.transport, self._topics.home_life(self._state.worker.name)
        if transport is not None and transport.connected:
            self.tell(asyncio.get_running_loop().time())
            await transport.publish_confirmed(topic, OFFLINE.encode(), qos=1, retain=True, timeout_s=2.0)

    def facts(self, now: float) -> SourceFacts:
        """The run as it is."""
        state = self._state
        worker = state.worker
        own = _own(worker.config, state.queue, self._board())
        peers = sorted(worker.members, key=lambda peer: peer.name)
        return SourceFacts(
            nodes=(own, *(_peer(peer) for peer in peers)),
            model=self._model,
            labels=self._labels,
            rate_per_s=self._completed.update(now, state.completed),
            threshold=state.threshold,
            accuracy=state.right / state.judged if state.judged else None,
            latency_p50_s=median(state.latencies_s) if state.latencies_s else None,
            last=self._last,
        )

    def _afresh(self) -> None:
        self._described.clear()
        self._told.clear()
        self._woken.set()

    def _on_home(self, _topic: str, payload: bytes, _retained: bool) -> None:
        """Home Assistant says that it has started: it may know nothing."""
        if payload == ONLINE.encode():
            self._afresh()


class HomeCleaner:
    """Takes every description of this deployment out of the broker's memory: Home Assistant then drops the entities."""

    def __init__(self, line: OutsideLine, topics: Topics, source: str) -> None:
        self.removed = 0
        self._line, self._topics, self._source = line, topics, source
        self._found: set[str] = set()
        line.hear(topics.home_config(DEFAULT_PREFIX, "+", "+"), 1, self._on_description)
        line.when_up(self._clean)

    def _on_description(self, topic: str, payload: bytes, _retained: bool) -> None:
        if payload:
            self._found.add(topic)
            self._clean()

    def _clean(self) -> None:
        """What the broker remembers comes before the connection counts as made: then it is kept for that moment."""
        for topic in sorted(self._found):
            if self._line.publish(topic, b"", qos=1, retain=True):
                self._found.discard(topic)
                self.removed += 1
        self._line.publish(self._topics.home_life(self._source), b"", qos=1, retain=True)

    async def goodbye(self) -> None:
        """When nothing more comes, say what was done."""
        loop = asyncio.get_running_loop()
        quiet_since, removed, deadline = loop.time(), -1, loop.time() + _CLEAN_S
        while loop.time() - quiet_since < _QUIET_S and loop.time() < deadline:
            if self.removed != removed or not self._line.connected:
                quiet_since, removed = loop.time(), self.removed
            await asyncio.sleep(0.02)
        log.info("home assistant: %d descriptions of earlier runs removed", self.removed)


def _own(config: WorkerConfig, queue: int, board: Board | None) -> NodeFacts:
    return NodeFacts(
        name=config.name,
        role="source",
        connected=True,
        queue=queue,
        span=str(config.span or ""),
        engine=config.engine,
        emulated=config.emulated,
        version=config.version,
        temperature_c=board.temperature_c if board is not None else None,
    )


def _peer(peer: Peer) -> NodeFacts:
    report, status = peer.telemetry, peer.status
    board = report.board if report is not None else None
    return NodeFacts(
        name=peer.name,
        role=status.role,
        connected=peer.alive and status.online,
        queue=report.inputs + report.outputs if report is not None and peer.alive else 0,
        span=str(peer.span or ""),
        engine=status.engine,
        emulated=status.emulated,
        version=status.version,
        temperature_c=board.temperature_c if board is not None else None,
    )
