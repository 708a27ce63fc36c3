"""Snapshots of a run: rates over the last moments, running accuracy, every node's last report."""

from __future__ import annotations

from collections import Counter, deque
from statistics import median

from mdi_exit.events import Record
from mdi_exit.snapshot import NodeSnapshot, Rate, Snapshot
from mdi_exit.source_state import SourceState
from mdi_exit.wire import Telemetry

__all__ = ["Timeline"]

_WINDOW = 200


class Timeline:
    """Makes a ``Snapshot`` of a source's state whenever asked."""

    def __init__(self, state: SourceState) -> None:
        self.phase = ""
        self._state = state
        self._right: deque[bool] = deque(maxlen=_WINDOW)
        self._exits: Counter[int] = Counter()
        self._rates = {name: Rate() for name in ("offered", "admitted", "completed")}
        self._node_rates: dict[str, Rate] = {}
        self._notices: list[str] = []

    def add(self, record: Record) -> None:
        row = record.row
        if row.label is not None:
            self._exits[row.exit] += 1
            if record.truth is not None:
                self._right.append(row.label == record.truth)

    def notice(self, text: str) -> None:
        self._notices.append(text)

    def snapshot(self, now: float, elapsed_s: float, cpu_percent: float) -> Snapshot:
        """The state of things ``elapsed_s`` after the first admission."""
        state = self._state
        notices, self._notices = tuple(self._notices), []
        latencies = state.latencies_s
        return Snapshot(
            elapsed_s=elapsed_s,
            phase=self.phase,
            offered_per_s=self._rates["offered"].update(now, state.offered),
            admitted_per_s=self._rates["admitted"].update(now, state.admitted),
            completed_per_s=self._rates["completed"].update(now, state.completed),
            admitted=state.admitted,
            completed=state.completed,
            errors=state.errors,
            refused=state.refused,
            pending=len(state.pending),
            accuracy=sum(self._right) / len(self._right) if self._right else None,
            threshold=state.threshold,
            source_queue=state.queue,
            latency_p50_s=median(latencies) if latencies else None,
            exits=dict(self._exits),
            nodes=tuple(self._nodes(now, cpu_percent)),
            notices=notices,
        )

    def _nodes(self, now: float, cpu_percent: float) -> list[NodeSnapshot]:
        worker = self._state.worker
        own = worker.telemetry(now)
        span, emulated = str(worker.config.span or ""), worker.config.emulated
        nodes = [self._node(now, own, worker.state, span, emulated, cpu_percent)]
        for peer in sorted(worker.members, key=lambda peer: peer.name):
            state = peer.status.state if peer.alive else "gone"
            telemetry = peer.telemetry or Telemetry(0, 0, peer.name, 0, 0, 0.0)
            span = str(peer.span or "")
            nodes.append(self._node(now, telemetry, state, span, peer.status.emulated, telemetry.cpu_percent))
        return nodes

    def _node(
        self, now: float, report: Telemetry, state: str, span: str, emulated: str, cpu_percent: float
    ) -> NodeSnapshot:
        executed = self._node_rates.setdefault(report.node, Rate())
        return NodeSnapshot(
            name=report.node,
            state=state,
            span=span,
            inputs=report.inputs,
            outputs=report.outputs,
            backlog_s=report.backlog_s,
            executed_per_s=executed.update(now, report.counters.get("executed", 0)),
            cpu_percent=cpu_percent,
            exited=report.counters.get("exited", 0),
            sent=report.counters.get("sent", 0),
            emulated=emulated,
        )
