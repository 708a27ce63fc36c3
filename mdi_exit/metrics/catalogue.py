"""The catalogue: every metric of the system, with its kind, unit, labels and meaning.

A counter is exposed with ``_total`` at its end, a histogram as ``_bucket``, ``_sum`` and ``_count``; every sample carries
the label ``deployment`` beside those named here. ``docs/metrics.md`` is made of this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from mdi_exit.broker_stats import BROKER_METRICS
from mdi_exit.histogram import CONFIDENCE_BUCKETS, ITEM_BUCKETS_S, RUN_BUCKETS_S

__all__ = ["CATALOGUE", "DEPLOYMENT", "SCOPES", "Kind", "Row", "Scope", "exposed"]

Kind = Literal["counter", "gauge", "histogram"]
Scope = Literal["node", "source", "fleet", "broker"]

DEPLOYMENT: Final = "deployment"

SCOPES: Final[dict[Scope, str]] = {
    "node": "Every node, of itself",
    "source": "The source, of its run",
    "fleet": "The source, of every node as that node's telemetry says",
    "broker": "The source, of the broker",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. ``unit``: a base unit, or what is counted; ``buckets``: of a histogram; ``scope``: who exposes it."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    scope: Scope = "node"
    buckets: tuple[float, ...] = ()


def exposed(name: str) -> tuple[str, ...]:
    """The names under which a metric of the catalogue is scraped."""
    row = CATALOGUE[name]
    if row.kind == "counter":
        return (f"{name}_total",)
    if row.kind == "histogram":
        return (f"{name}_bucket", f"{name}_sum", f"{name}_count")
    return (name,)


_INFO = ("role", "span", "engine", "version", "emulated")


def _node(kind: Kind, text: str, unit: str, *labels: str, buckets: tuple[float, ...] = ()) -> Row:
    return Row(kind, text, labels, unit, "node", buckets)


def _source(kind: Kind, text: str, unit: str, *labels: str, buckets: tuple[float, ...] = ()) -> Row:
    return Row(kind, text, labels, unit, "source", buckets)


def _fleet(kind: Kind, text: str, unit: str, *labels: str) -> Row:
    return Row(kind, text, ("node", *labels), unit, "fleet")


_OF_NODES: Final[dict[str, Row]] = {
    "mdi_exit_info": _node("gauge", "1; the labels say who this node is.", "", "name", *_INFO),
    "mdi_exit_ready": _node("gauge", "1 while /readyz says so: tasks are taken, or all layers are held.", ""),
    "mdi_exit_queue_tasks": _node("gauge", "Tasks waiting at this node.", "tasks", "queue"),
    "mdi_exit_stranded_tasks": _node("gauge", "Tasks waiting here for a layer that no live node holds.", "tasks", "layer"),
    "mdi_exit_backlog_seconds": _node("gauge", "Expected seconds of work waiting in the input queue.", "seconds"),
    "mdi_exit_free_slots": _node("gauge", "Places left for this node's own products.", "tasks", "entry"),
    "mdi_exit_segment_seconds": _node("gauge", "Expected seconds a task, by entry layer.", "seconds", "entry"),
    "mdi_exit_segment_run_seconds": _node(
        "histogram", "Seconds of a segment's runs, each a batch, by entry layer.", "seconds", "entry",
        buckets=RUN_BUCKETS_S,
    ),
    "mdi_exit_tasks_received": _node("counter", "Tasks received from other nodes.", "tasks"),
    "mdi_exit_tasks_executed": _node("counter", "Tasks whose segment was run here.", "tasks"),
    "mdi_exit_tasks_sent": _node("counter", "Tasks handed to another node.", "tasks", "to"),
    "mdi_exit_tasks_refused": _node("counter", "Received tasks given back to the source.", "tasks"),
    "mdi_exit_tasks_failed": _node("counter", "Tasks whose segment failed here.", "tasks"),
    "mdi_exit_tasks_duplicate": _node("counter", "Tasks received a second time and put aside.", "tasks"),
    "mdi_exit_tasks_dropped": _node("counter", "Tasks of an earlier run or model, put aside.", "tasks"),
    "mdi_exit_results_untold": _node(
        "counter", "Results and hand-overs dropped since too many waited to be sent; their items are done again.",
        "results",
    ),
    "mdi_exit_exits": _node("counter", "Items that left the network here, by exit.", "items", "exit"),
    "mdi_exit_compute_seconds": _node("counter", "Seconds spent in segments.", "seconds"),
    "mdi_exit_threshold": _node("gauge", "Exit threshold in force; absent until a source has said it.", "ratio"),
    "mdi_exit_neighbour_alive": _node("gauge", "1 while the other node gives signs of life.", "", "node"),
    "mdi_exit_neighbour_penalty": _node(
        "gauge", "Recent deaths of the other node, decaying; absent when there are none.", "deaths", "node"
    ),
    "mdi_exit_neighbour_hold_seconds": _node(
        "gauge", "Seconds until a node that came and went gets work again; absent when it does.", "seconds", "node"
    ),
    "mdi_exit_neighbour_delay_seconds": _node("gauge", "Measured delay of an empty message.", "seconds", "to"),
    "mdi_exit_link_tasks": _node("counter", "Tasks sent over the link, from the start of the neighbour.", "tasks", "to"),
    "mdi_exit_link_bytes": _node(
        "counter", "Bytes of features sent over the link; of compressed ones, what the last of its cut took.", "bytes", "to"
    ),
    "mdi_exit_link_lost": _node("counter", "Tasks that got lost on the link, as far as known.", "tasks", "to"),
    "mdi_exit_link_delay_seconds": _node("gauge", "Measured delay of an empty message over the link.", "seconds", "to"),
    "mdi_exit_link_credits": _node("gauge", "Tasks that may be sent over the link now, all layers together.", "tasks", "to"),
    "mdi_exit_bad_messages": _node("counter", "Messages put aside, by reason.", "messages", "reason"),
    "mdi_exit_broker_connected": _node("gauge", "1 while connected to the broker.", ""),
    "mdi_exit_broker_connects": _node("counter", "Connections made to the broker.", "connections"),
    "mdi_exit_broker_reconnects": _node("counter", "Connections made to the broker after the first.", "connections"),
    "mdi_exit_transport_bytes": _node("counter", "Payload bytes, by direction.", "bytes", "direction"),
    "mdi_exit_transport_messages": _node("counter", "Messages, by direction.", "messages", "direction"),
    "mdi_exit_transport_refused": _node("counter", "Messages not taken: not connected, or the buffer full.", "messages"),
    "mdi_exit_process_cpu_ratio": _node("gauge", "Cores kept busy by this process over the last moments.", "cores"),
    "mdi_exit_process_memory_bytes": _node("gauge", "Resident memory of this process.", "bytes"),
    "mdi_exit_process_tasks": _node("gauge", "Coroutines under way in this process; steady unless something leaks.", "tasks"),
    "mdi_exit_board_temperature_celsius": _node("gauge", "The hottest sensor of the board's processors.", "°C"),
    "mdi_exit_board_power_watts": _node("gauge", "Power by the board's sensor; absent without one.", "watts"),
    "mdi_exit_energy_joules": _node(
        "counter", "Energy since the start: of the whole board by its sensor, or our estimate for a named device.",
        "joules", "method",
    ),
}  # fmt: skip

_OF_SOURCE: Final[dict[str, Row]] = {
    "mdi_exit_items_offered": _source("counter", "Items offered by the input.", "items"),
    "mdi_exit_items_admitted": _source("counter", "Items admitted by the source.", "items"),
    "mdi_exit_items_completed": _source("counter", "Items with a label.", "items"),
    "mdi_exit_items_failed": _source("counter", "Items that ended with an error.", "items"),
    "mdi_exit_items_refused": _source("counter", "Items turned away before admission.", "items"),
    "mdi_exit_items_retried": _source("counter", "Attempts made again.", "attempts"),
    "mdi_exit_items_pending": _source("gauge", "Items admitted and not yet answered.", "items"),
    "mdi_exit_results_duplicate": _source("counter", "Results received and discarded.", "results"),
    "mdi_exit_requests_received": _source("counter", "Requests of other programs.", "requests"),
    "mdi_exit_requests_waiting": _source("gauge", "Requests that wait for their turn.", "requests"),
    "mdi_exit_replies": _source("counter", "Replies, by outcome: label, refused, deadline, failed.", "replies", "outcome"),
    "mdi_exit_reply_seconds": _source(
        "histogram", "Seconds from a request to its reply, of those with a label.", "seconds", buckets=ITEM_BUCKETS_S
    ),
    "mdi_exit_item_exits": _source("counter", "Completed items, by the exit of their label.", "items", "exit"),
    "mdi_exit_items_judged": _source("counter", "Completed items whose truth is known.", "items"),
    "mdi_exit_items_right": _source("counter", "Completed items whose label is the truth.", "items"),
    "mdi_exit_item_seconds": _source(
        "histogram",
        "Seconds of completed items from admission to result, by part: total; compute and queue, as the answering attempt "
        "found them at all its nodes; transfer, which is the rest: coding, messages, and attempts that came to nothing.",
        "seconds", "part", buckets=ITEM_BUCKETS_S,
    ),
    "mdi_exit_item_confidence": _source(
        "histogram", "Confidence of the recorded labels, by exit.", "ratio", "exit", buckets=CONFIDENCE_BUCKETS
    ),
    "mdi_exit_offered_per_second": _source("gauge", "Items offered a second; absent when unpaced.", "items/second"),
    "mdi_exit_threshold_floor": _source("gauge", "The lowest that the threshold may go.", "ratio"),
    "mdi_exit_paused": _source("gauge", "1 while admission is paused.", ""),
    "mdi_exit_plan_epoch": _source("gauge", "Number of the placement in force; 0: none was made.", ""),
    "mdi_exit_plan_moves": _source(
        "counter", "Spans given to nodes that held others, by reason: better, or lost (layers that nobody held).", "moves",
        "reason",
    ),
    "mdi_exit_plan_expected_per_second": _source(
        "gauge", "What the placement promises at most; absent without one.", "items/second"
    ),
    "mdi_exit_missing_layers": _source("gauge", "Layers that no live node holds.", "layers"),
    "mdi_exit_held": _source("gauge", "1 while nothing is admitted because nothing can be recorded: a full disk.", ""),
    "mdi_exit_results_unwritten": _source("gauge", "Results that wait to be recorded.", "results"),
    "mdi_exit_journal_bytes": _source("gauge", "Size of the journal and its log.", "bytes"),
    "mdi_exit_journal_backlog": _source("gauge", "Rows that wait to be written to the journal.", "rows"),
    "mdi_exit_journal_commit_seconds": _source(
        "histogram", "Seconds of the journal's transactions.", "seconds", buckets=RUN_BUCKETS_S
    ),
    "mdi_exit_events": _source("counter", "Joins, deaths, gaps, orders and the like, by kind.", "events", "kind"),
}  # fmt: skip

_OF_FLEET: Final[dict[str, Row]] = {
    "mdi_exit_node_up": _fleet("gauge", "1 while the node gives signs of life; absent when gone for a minute.", ""),
    "mdi_exit_node_info": _fleet("gauge", "1; the labels say who the node is.", "", *_INFO, "state"),
    "mdi_exit_node_report_age_seconds": _fleet("gauge", "Seconds since the node was last heard.", "seconds"),
    "mdi_exit_node_queue_tasks": _fleet("gauge", "Tasks waiting at the node.", "tasks", "queue"),
    "mdi_exit_node_stranded_tasks": _fleet("gauge", "Tasks waiting there for a layer that no live node holds.", "tasks"),
    "mdi_exit_node_backlog_seconds": _fleet("gauge", "Expected seconds of work in its input queue.", "seconds"),
    "mdi_exit_node_segment_seconds": _fleet("gauge", "Expected seconds a task there.", "seconds", "entry"),
    "mdi_exit_node_free_slots": _fleet("gauge", "Places left for the node's own products.", "tasks", "entry"),
    "mdi_exit_node_tasks_executed": _fleet("counter", "Tasks whose segment the node ran.", "tasks"),
    "mdi_exit_node_exits": _fleet("counter", "Items that left the network there.", "items", "exit"),
    "mdi_exit_node_sent_bytes": _fleet("counter", "Payload bytes that the node sent.", "bytes"),
    "mdi_exit_node_cpu_ratio": _fleet("gauge", "Cores kept busy by the node's process.", "cores"),
    "mdi_exit_node_memory_bytes": _fleet("gauge", "Resident memory of the node's process.", "bytes"),
    "mdi_exit_node_temperature_celsius": _fleet("gauge", "The hottest sensor of its board's processors.", "°C"),
    "mdi_exit_node_power_watts": _fleet("gauge", "Power by its board's sensor; absent without one.", "watts"),
    "mdi_exit_node_energy_joules": _fleet("counter", "Energy since the node's start.", "joules", "method"),
    "mdi_exit_node_link_tasks": _fleet("counter", "Tasks that the node sent over the link.", "tasks", "to"),
    "mdi_exit_node_link_bytes": _fleet("counter", "Bytes of features that it sent over the link.", "bytes", "to"),
    "mdi_exit_node_link_delay_seconds": _fleet("gauge", "Its measured delay of an empty message.", "seconds", "to"),
    "mdi_exit_node_link_credits": _fleet("gauge", "Tasks that it may send over the link now.", "tasks", "to"),
}  # fmt: skip

_OF_BROKER: Final[dict[str, Row]] = {
    name: Row(metric.kind, metric.help, metric.labels, metric.unit, "broker") for name, metric in BROKER_METRICS.items()
}

CATALOGUE: Final[dict[str, Row]] = {**_OF_NODES, **_OF_SOURCE, **_OF_FLEET, **_OF_BROKER}
