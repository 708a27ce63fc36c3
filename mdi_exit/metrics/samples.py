"""What the metrics are at this moment, read from the state of a node. Nothing here is kept between two scrapes.

Labels are bounded: a node that is gone for a minute disappears, and of more nodes, links or reasons than the limits below
allow only the liveliest are shown.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from heapq import nlargest
from typing import Final

from mdi_exit.driver import NodeDriver, Sample
from mdi_exit.membership import Peer
from mdi_exit.source_state import SourceState
from mdi_exit.transport import Transport
from mdi_exit.wire import Board, LinkLoad, SourceReport, Status, Telemetry

__all__ = [
    "GONE_AFTER_S",
    "MAX_LINKS",
    "MAX_NODES",
    "MAX_REASONS",
    "fleet_samples",
    "node_samples",
    "readiness",
    "source_samples",
]

GONE_AFTER_S: Final = 60.0
MAX_NODES: Final = 2000
MAX_LINKS: Final = 1500
MAX_REASONS: Final = 50


def readiness(driver: NodeDriver, transport: Transport) -> str:
    """Why this node is not ready, in a line; empty if it is."""
    worker, state = driver.worker, driver.state
    if not transport.connected:
        return "not connected to the broker"
    if worker.state != "ready":
        return worker.state
    if isinstance(state, SourceState) and state.held:
        return state.held
    if isinstance(state, SourceState) and state.missing != ():
        layers = "some layers" if state.missing is None else f"layers {', '.join(map(str, state.missing))}"
        return f"no live node holds {layers}"
    return ""


def node_samples(driver: NodeDriver, transport: Transport, now: float) -> Iterator[Sample]:
    """What every node has to say of itself."""
    yield from _identity(driver, transport)
    yield from _tasks(driver, now)
    yield from _neighbours(driver, now)
    yield from _transport(driver, transport)
    yield from _board(driver.vitals.board)
    yield "mdi_exit_process_cpu_ratio", (), driver.cpu_percent() / 100
    yield "mdi_exit_process_tasks", (), len(asyncio.all_tasks())


def _identity(driver: NodeDriver, transport: Transport) -> Iterator[Sample]:
    config = driver.worker.config
    who = (config.role, str(driver.worker.holding.span or ""), config.engine, config.version, config.emulated)
    yield "mdi_exit_info", (config.name, *who), 1
    yield "mdi_exit_ready", (), float(not readiness(driver, transport))


def _tasks(driver: NodeDriver, now: float) -> Iterator[Sample]:
    worker, totals = driver.worker, driver.worker.totals
    report = worker.telemetry(now)
    yield "mdi_exit_queue_tasks", ("input",), report.inputs
    yield "mdi_exit_queue_tasks", ("output",), report.outputs
    yield "mdi_exit_backlog_seconds", (), report.backlog_s
    for layer, count in report.stranded.items():
        yield "mdi_exit_stranded_tasks", (str(layer),), count
    for entry, seconds in report.speed_s.items():
        yield "mdi_exit_segment_seconds", (str(entry),), seconds
    for entry, count in report.free_slots.items():
        yield "mdi_exit_free_slots", (str(entry),), count
    for entry, histogram in totals.run_s.items():
        yield "mdi_exit_segment_run_seconds", (str(entry),), histogram.copy()
    yield "mdi_exit_tasks_received", (), totals.received
    yield "mdi_exit_tasks_executed", (), totals.executed
    yield "mdi_exit_tasks_refused", (), totals.refused
    yield "mdi_exit_tasks_failed", (), totals.failed
    yield "mdi_exit_tasks_duplicate", (), totals.duplicates
    yield "mdi_exit_tasks_dropped", (), totals.dropped
    yield "mdi_exit_results_untold", (), totals.untold
    yield "mdi_exit_compute_seconds", (), totals.compute_s
    for number, count in totals.exits.items():
        yield "mdi_exit_exits", (str(number),), count
    if worker.control is not None:
        yield "mdi_exit_threshold", (), worker.threshold


def _neighbours(driver: NodeDriver, now: float) -> Iterator[Sample]:
    totals, flaps = driver.worker.totals, driver.worker.members.flaps
    for peer in _shown(driver.worker.members, now):
        yield "mdi_exit_neighbour_alive", (peer.name,), float(peer.alive)
        if penalty := flaps.penalty(now, peer.name):
            yield "mdi_exit_neighbour_penalty", (peer.name,), penalty
        if hold_s := flaps.hold_left_s(now, peer.name):
            yield "mdi_exit_neighbour_hold_seconds", (peer.name,), hold_s
        if peer.alive:
            yield "mdi_exit_neighbour_delay_seconds", (peer.name,), peer.out.delay.delay_s(0)
        if handed := totals.sent[peer.name] + totals.unsent[peer.name]:
            yield "mdi_exit_tasks_sent", (peer.name,), handed
        if peer.out.seq:
            yield from _link("mdi_exit_link", (peer.name,), peer.out.load_report(peer.status.entries))
            yield "mdi_exit_link_lost", (peer.name,), peer.out.lost


def _link(prefix: str, labels: tuple[str, ...], load: LinkLoad) -> Iterator[Sample]:
    yield f"{prefix}_tasks", labels, load.tasks
    yield f"{prefix}_bytes", labels, load.bytes
    yield f"{prefix}_delay_seconds", labels, load.delay_s
    yield f"{prefix}_credits", labels, load.credits


def _transport(driver: NodeDriver, transport: Transport) -> Iterator[Sample]:
    counters = transport.counters
    for reason, count in _bounded(driver.bad):
        yield "mdi_exit_bad_messages", (reason,), count
    yield "mdi_exit_broker_connected", (), float(transport.connected)
    yield "mdi_exit_broker_connects", (), counters.connects
    yield "mdi_exit_broker_reconnects", (), counters.reconnects
    yield "mdi_exit_transport_bytes", ("in",), counters.bytes_in
    yield "mdi_exit_transport_bytes", ("out",), counters.bytes_out
    yield "mdi_exit_transport_messages", ("in",), counters.messages_in
    yield "mdi_exit_transport_messages", ("out",), counters.messages_out
    yield "mdi_exit_transport_refused", (), counters.refused


def _board(board: Board) -> Iterator[Sample]:
    yield "mdi_exit_process_memory_bytes", (), board.memory_bytes
    if board.temperature_c is not None:
        yield "mdi_exit_board_temperature_celsius", (), board.temperature_c
    if board.power_w is not None:
        yield "mdi_exit_board_power_watts", (), board.power_w
    if board.energy_j is not None:
        yield "mdi_exit_energy_joules", (_method(board),), board.energy_j


def source_samples(state: SourceState, now: float) -> Iterator[Sample]:
    """What only the source knows."""
    if state.plan is not None:
        yield from _report(state.report(now, state.plan))
    for part, histogram in state.items.seconds.items():
        yield "mdi_exit_item_seconds", (part,), histogram.copy()
    for number, histogram in state.items.confidence.items():
        yield "mdi_exit_item_confidence", (str(number),), histogram.copy()
    yield "mdi_exit_requests_received", (), state.desk.received
    yield "mdi_exit_requests_waiting", (), state.desk.waiting
    for outcome, count in _bounded(state.desk.replies):
        yield "mdi_exit_replies", (outcome,), count
    yield "mdi_exit_reply_seconds", (), state.desk.labelled_s.copy()
    planning = state.planning
    yield "mdi_exit_plan_epoch", (), planning.epoch
    yield "mdi_exit_plan_moves", ("better",), planning.moves - planning.forced
    yield "mdi_exit_plan_moves", ("lost",), planning.forced
    if planning.epoch:
        yield "mdi_exit_plan_expected_per_second", (), planning.rate_per_s
    if state.missing is not None:
        yield "mdi_exit_missing_layers", (), len(state.missing)
    yield "mdi_exit_held", (), float(bool(state.held))
    for kind, count in _bounded(state.noticed):
        yield "mdi_exit_events", (kind,), count


def _report(report: SourceReport) -> Iterator[Sample]:
    yield "mdi_exit_items_offered", (), report.offered
    yield "mdi_exit_items_admitted", (), report.admitted
    yield "mdi_exit_items_completed", (), report.completed
    yield "mdi_exit_items_failed", (), report.errors
    yield "mdi_exit_items_refused", (), report.refused
    yield "mdi_exit_items_retried", (), report.retried
    yield "mdi_exit_items_pending", (), report.pending
    yield "mdi_exit_results_duplicate", (), report.duplicates
    yield "mdi_exit_items_judged", (), report.judged
    yield "mdi_exit_items_right", (), report.right
    for number, count in report.exits.items():
        yield "mdi_exit_item_exits", (str(number),), count
    if report.rate_per_s is not None:
        yield "mdi_exit_offered_per_second", (), report.rate_per_s
    yield "mdi_exit_threshold_floor", (), report.floor
    yield "mdi_exit_paused", (), float(report.paused)


def fleet_samples(driver: NodeDriver, now: float) -> Iterator[Sample]:
    """What the other nodes report, and this node beside them in the same terms."""
    worker = driver.worker
    config, span = worker.config, worker.holding.span
    own = Status(
        node=config.name,
        incarnation=config.incarnation,
        online=True,
        role=config.role,
        span=(span.first, span.stop) if span else None,
        engine=config.engine,
        emulated=config.emulated,
        version=config.version,
    )
    shown = _shown(worker.members, now)
    links = max(MAX_LINKS // (1 + len(shown)), 1)
    telemetry = driver.full_telemetry(worker.telemetry(now))
    yield from _fleet_node(own, telemetry, 0.0, up=True, state=worker.state)
    yield from _fleet_links(config.name, telemetry.links, links)
    for peer in shown:
        state = peer.status.state if peer.alive else "gone"
        yield from _fleet_node(peer.status, peer.telemetry, now - peer.heard_at, up=peer.alive, state=state)
        if peer.telemetry is not None:
            yield from _fleet_links(peer.name, peer.telemetry.links, links)


def _fleet_links(name: str, links: dict[str, LinkLoad], most: int) -> Iterator[Sample]:
    """A node's links; the busiest where there are too many."""
    for to, load in nlargest(most, links.items(), key=lambda link: link[1].tasks):
        yield from _link("mdi_exit_node_link", (name, to), load)


def _fleet_node(status: Status, telemetry: Telemetry | None, age_s: float, *, up: bool, state: str) -> Iterator[Sample]:
    name = status.node
    span = f"{status.span[0]}-{status.span[1] - 1}" if status.span and status.span[0] < status.span[1] else ""
    yield "mdi_exit_node_up", (name,), float(up)
    who = (status.role, span, status.engine, status.version, status.emulated)
    yield "mdi_exit_node_info", (name, *who, state), 1
    yield "mdi_exit_node_report_age_seconds", (name,), age_s
    if telemetry is None:
        return
    yield "mdi_exit_node_queue_tasks", (name, "input"), telemetry.inputs
    yield "mdi_exit_node_queue_tasks", (name, "output"), telemetry.outputs
    yield "mdi_exit_node_stranded_tasks", (name,), sum(telemetry.stranded.values())
    yield "mdi_exit_node_backlog_seconds", (name,), telemetry.backlog_s
    for entry, seconds in telemetry.speed_s.items():
        yield "mdi_exit_node_segment_seconds", (name, str(entry)), seconds
    for entry, count in telemetry.free_slots.items():
        yield "mdi_exit_node_free_slots", (name, str(entry)), count
    yield "mdi_exit_node_tasks_executed", (name,), telemetry.counters.get("executed", 0)
    for number, count in telemetry.exits.items():
        yield "mdi_exit_node_exits", (name, str(number)), count
    yield "mdi_exit_node_sent_bytes", (name,), telemetry.sent_bytes
    yield "mdi_exit_node_cpu_ratio", (name,), telemetry.cpu_percent / 100
    if telemetry.board is not None:
        yield from _fleet_board(name, telemetry.board)


def _fleet_board(name: str, board: Board) -> Iterator[Sample]:
    yield "mdi_exit_node_memory_bytes", (name,), board.memory_bytes
    if board.temperature_c is not None:
        yield "mdi_exit_node_temperature_celsius", (name,), board.temperature_c
    if board.power_w is not None:
        yield "mdi_exit_node_power_watts", (name,), board.power_w
    if board.energy_j is not None:
        yield "mdi_exit_node_energy_joules", (name, _method(board)), board.energy_j


def _method(board: Board) -> str:
    return "sensor" if board.measured else "estimate"


def _shown(members: Iterable[Peer], now: float) -> list[Peer]:
    """The nodes to show: those alive, and those gone for less than a minute, the last heard where there are too many."""
    shown = [peer for peer in members if peer.alive or now - peer.heard_at <= GONE_AFTER_S]
    if len(shown) > MAX_NODES:
        shown.sort(key=lambda peer: (peer.alive, peer.heard_at), reverse=True)
    return shown[:MAX_NODES]


def _bounded(counts: Counter[str]) -> list[tuple[str, int]]:
    """The first so many kinds, and ``other`` for the rest. A kind keeps its own sample once it has one."""
    kinds = list(counts.items())
    if len(kinds) <= MAX_REASONS:
        return kinds
    return [*kinds[:MAX_REASONS], ("other", sum(count for _, count in kinds[MAX_REASONS:]))]
