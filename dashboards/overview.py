"""The overview: is it answering, how well, how fast, and who does the work."""

from __future__ import annotations

from typing import Final

from dashboards.board import Board
from dashboards.parts import (
    HERE,
    ITEMS_PER_S,
    TASKS,
    TASKS_PER_S,
    heat_map,
    lines,
    named_values,
    node_graph,
    node_link,
    number,
    rate,
    states,
    table_of,
)
from dashboards.sdk import Builder, models

__all__ = ["STATES", "UP", "overview", "part_means", "quantile"]

NODES: Final = f'{HERE},node=~"$node"'
UP: Final = {"0": ("silent", "red"), "1": ("up", "green")}
STATES: Final = {
    "ready": ("ready", "green"),
    "loading segments": ("loading segments", "orange"),
    "model not signed": ("model not signed", "orange"),
    "waiting for source": ("waiting for source", "orange"),
    "draining": ("draining", "blue"),
    "drained": ("drained", "blue"),
    "gone": ("gone", "red"),
}
_PAUSED: Final = {"0": ("open", "green"), "1": ("paused", "orange")}
_PENDING: Final = ((None, "text"), (256.0, "orange"), (480.0, "red"))


def quantile(share: float, metric: str, labels: str, by: str = "") -> str:
    """A quantile out of a histogram, over Grafana's interval."""
    grouped = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({grouped}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))"


def part_means() -> str:
    """Mean seconds of each part of an item's time but the total; in sum they are the mean of the total."""
    labels = f'{HERE},part!="total"'
    return (
        f"{rate('mdi_exit_item_seconds_sum', labels, 'part')} / {rate('mdi_exit_item_seconds_count', labels, 'part')}"
    )


def _accuracy() -> str:
    return f"{rate('mdi_exit_items_right_total')} / ({rate('mdi_exit_items_judged_total')} > 0)"


def _numbers(board: Board) -> None:
    total = f'{HERE},part="total"'
    board.add("answered", number(
        "Answered", "Items that got their label, each second.", rate("mdi_exit_items_completed_total"), ITEMS_PER_S,
    ), 3, 4, detail="items")  # fmt: skip
    board.add("right", number(
        "Accuracy", "Of the items whose truth the input knows, the share with the right label. Empty where it knows none.",
        _accuracy(), "percentunit", ((None, "text"),), decimals=1, none="truth unknown",
    ), 3, 4, detail="accuracy")  # fmt: skip
    board.add("p50", number(
        "Latency p50", "Half of the items were answered within this time of their admission.",
        quantile(0.5, "mdi_exit_item_seconds", total), "s",
    ), 3, 4, detail="latency")  # fmt: skip
    board.add("p99", number(
        "Latency p99", "99 of 100 items were answered within this time of their admission.",
        quantile(0.99, "mdi_exit_item_seconds", total), "s",
    ), 3, 4, detail="latency")  # fmt: skip
    board.add("threshold-now", number(
        "Exit threshold", "An item leaves at the first exit whose confidence reaches it.",
        f"max(mdi_exit_threshold{{{HERE}}})", "percentunit", decimals=1,
    ), 3, 4, detail="threshold")  # fmt: skip
    board.add("pending-now", number(
        "Under way", "Items admitted and not yet answered. The source admits no more than --max-pending (512).",
        f"sum(mdi_exit_items_pending{{{HERE}}})", "suffix:items", _PENDING,
    ), 3, 4, detail="admission")  # fmt: skip
    board.add("up-now", number(
        "Nodes up", "Nodes that give signs of life, the source among them.", f"sum(mdi_exit_node_up{{{HERE}}})",
        "suffix:nodes", ((None, "red"), (1.0, "text")),
    ), 3, 4, detail="map")  # fmt: skip
    board.add("missing", number(
        "Layers missing", "Layers that no live node holds: their items wait.", f"max(mdi_exit_missing_layers{{{HERE}}})",
        "suffix:layers", ((None, "green"), (1.0, "red")),
    ), 3, 4, detail="map")  # fmt: skip


def _traffic(board: Board) -> None:
    board.row("Items")
    board.add("items", lines(
        "Items", "What became of the items, each second. Refused ones were turned away before admission; a retry is another "
        "attempt at an item that is under way; of an item that is answered twice the second answer is dropped.",
        {
            "admitted": rate("mdi_exit_items_admitted_total"),
            "completed": rate("mdi_exit_items_completed_total"),
            "refused": rate("mdi_exit_items_refused_total"),
            "failed": rate("mdi_exit_items_failed_total"),
            "retried": rate("mdi_exit_items_retried_total"),
            "answered twice": rate("mdi_exit_results_duplicate_total"),
        }, ITEMS_PER_S,
    ), 12, 8)  # fmt: skip
    board.add("latency", lines(
        "Latency", "From admission to result, out of the histogram: as exact as its buckets.",
        {f"p{share:g}": quantile(share / 100, "mdi_exit_item_seconds", f'{HERE},part="total"') for share in (50, 90, 99)},
        "s",
    ), 12, 8, detail="parts")  # fmt: skip
    board.add("exits", lines(
        "Exits", "Where completed items left the network: the share of each exit. More early exits, less work.",
        {"exit {{exit}}": rate("mdi_exit_item_exits_total", by="exit")}, ITEMS_PER_S, stacked=True,
    ), 8, 8, detail="confidence")  # fmt: skip
    board.add("accuracy", lines(
        "Accuracy", "Share of right labels, where the input knows the truth; beside it the mean of the last hour, against "
        "which the alert on a drop compares. Empty where no truth is known.",
        {"now": _accuracy(), "last hour": f"max(deployment:mdi_exit_accuracy:ratio1h{{{HERE}}})"}, "percentunit", most=1,
    ), 8, 8)  # fmt: skip
    board.add("parts", lines(
        "Where the time goes", "Mean time of an item by part: computing, waiting in queues, and the rest, which is transfer.",
        {"{{part}}": part_means()}, "s", stacked=True,
    ), 8, 8)  # fmt: skip


def _control(board: Board) -> None:
    board.row("Threshold and admission")
    board.add("threshold", lines(
        "Exit threshold", "The threshold in force and the floor below which it is not moved, since a promised accuracy "
        "outranks throughput.",
        {"threshold": f"max(mdi_exit_threshold{{{HERE}}})", "floor": f"max(mdi_exit_threshold_floor{{{HERE}}})"},
        "percentunit", most=1,
    ), 8, 8, detail="confidence")  # fmt: skip
    board.add("admission", lines(
        "Admission", "Items offered and admitted each second. Offered is empty when the source takes as many as admission "
        "allows.",
        {
            "offered": f"sum(mdi_exit_offered_per_second{{{HERE}}})",
            "admitted": rate("mdi_exit_items_admitted_total"),
        }, ITEMS_PER_S,
    ), 6, 8, detail="items")  # fmt: skip
    board.add("pending", lines(
        "Under way", "Items admitted and not yet answered.", {"items": f"sum(mdi_exit_items_pending{{{HERE}}})"},
        "suffix:items",
    ), 4, 8)  # fmt: skip
    board.add("confidence", heat_map(
        "Confidence", "Confidence of recorded labels. What lies below the threshold went through to the last exit.",
        f"sum by (le) (increase(mdi_exit_item_confidence_bucket{{{HERE}}}[$__rate_interval]))", "percentunit",
    ), 6, 8)  # fmt: skip


def _nodes(board: Board) -> None:
    board.row("Nodes")
    board.add("flow", node_graph(
        "Flow of tasks", "Who hands tasks to whom: on a node the tasks that it runs each second, on an arrow those that go "
        "that way. Under a name: its layers and its state.",
        _graph_nodes(), _graph_edges(), "tasks/s",
    ), 10, 12)  # fmt: skip
    board.add("table", _table(), 14, 12)
    board.add("map", states(
        "Signs of life", "Green while the node is heard. A node that is gone for a minute is no longer listed.",
        {"{{node}}": f"max by (node) (mdi_exit_node_up{{{NODES}}})"}, UP, [node_link("__field.labels.node")],
    ), 12, 8)  # fmt: skip
    to_node = [node_link("__field.labels.node")]
    board.add("work", lines(
        "Tasks run", "Tasks whose segment the node ran, each second.",
        {"{{node}}": rate("mdi_exit_node_tasks_executed_total", NODES, "node")}, TASKS_PER_S, stacked=True, links=to_node,
    ), 12, 8)  # fmt: skip
    board.add("queues", lines(
        "Queues", "Tasks waiting at each node.",
        {"{{node}} {{queue}}": f"sum by (node, queue) (mdi_exit_node_queue_tasks{{{NODES}}})"}, TASKS, links=to_node,
    ), 12, 8)  # fmt: skip
    board.add("backlog", lines(
        "Backlog", "Expected time until a task that arrives now is begun.",
        {"{{node}}": f"max by (node) (mdi_exit_node_backlog_seconds{{{NODES}}})"}, "s", links=to_node,
    ), 12, 8)  # fmt: skip


def _placement(board: Board) -> None:
    board.add("placement", lines(
        "Placement", "Moves of layers between nodes so far, to do better or because layers were lost, and the number of the "
        "placement in force. Flat where every agent has its layers fixed.",
        {
            "moves: {{reason}}": f"sum by (reason) (mdi_exit_plan_moves_total{{{HERE}}})",
            "placement": f"max(mdi_exit_plan_epoch{{{HERE}}})",
        }, "short",
    ), 12, 8, detail="placement-rate")  # fmt: skip
    board.add("placement-rate", lines(
        "Placement's promise", "Items a second that the placement promises at most, and those completed. Empty without one.",
        {
            "promised": f"max(mdi_exit_plan_expected_per_second{{{HERE}}})",
            "completed": rate("mdi_exit_items_completed_total"),
        }, ITEMS_PER_S,
    ), 12, 8)  # fmt: skip


def _graph_nodes() -> str:
    """A series for each node: its tasks a second, with what the node graph shows of it as labels."""
    work = rate("mdi_exit_node_tasks_executed_total", by="node")
    work = f"({work} or 0 * max by (node) (mdi_exit_node_up{{{HERE}}}))"
    who = f"max by (node, role, span, state) (mdi_exit_node_info{{{HERE}}})"
    series = f"{who} * on (node) group_left () {work}"
    named = f'label_replace(label_replace({series}, "id", "$1", "node", "(.*)"), "title", "$1", "node", "(.*)")'
    return f'label_join({named}, "subtitle", " · ", "span", "state")'


def _graph_edges() -> str:
    """A series for each link in use between nodes that are listed."""
    known = f"max by (node) (mdi_exit_node_info{{{HERE}}})"
    flow = f"{rate('mdi_exit_node_link_tasks_total', by='node, to')} > 0 and on (node) {known}"
    flow = f'{flow} and on (to) label_replace({known}, "to", "$1", "node", "(.*)")'
    ends = f'label_replace(label_replace({flow}, "source", "$1", "node", "(.*)"), "target", "$1", "to", "(.*)")'
    return f'label_join({ends}, "id", " to ", "node", "to")'


def _table() -> Builder[models.Panel]:
    who = f"max by (node, role, span, state, engine, emulated) (mdi_exit_node_info{{{NODES}}})"
    exprs = {
        "is": who,
        "tasks run": rate("mdi_exit_node_tasks_executed_total", NODES, "node"),
        "waiting": f"sum by (node) (mdi_exit_node_queue_tasks{{{NODES}}})",
        "backlog": f"max by (node) (mdi_exit_node_backlog_seconds{{{NODES}}})",
        "CPU": f"max by (node) (mdi_exit_node_cpu_ratio{{{NODES}}})",
        "memory": f"max by (node) (mdi_exit_node_memory_bytes{{{NODES}}})",
        "sent": rate("mdi_exit_node_sent_bytes_total", NODES, "node"),
        "heard": f"max by (node) (mdi_exit_node_report_age_seconds{{{NODES}}})",
    }
    units = {
        "tasks run": TASKS_PER_S, "waiting": TASKS, "backlog": "s", "CPU": "percentunit", "memory": "bytes", "sent": "Bps",
        "heard": "s",
    }  # fmt: skip
    page = [models.DynamicConfigValue(id_val="links", value=[node_link("__data.fields.node").build()])]
    state = [
        models.DynamicConfigValue(id_val="mappings", value=named_values(STATES)),
        models.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
    ]
    return table_of(
        "Nodes", "Every node as its last report says; a click on a name opens its page. A device under 'emulated' means that "
        "its speed is imitated. 'heard': time since its last report.",
        exprs, "node", units, {"node": page, "state": state}, hidden=["is"],
    )  # fmt: skip


def _energy(board: Board) -> None:
    board.row("Energy")
    labels = f'{NODES},method!=""'
    board.add("watts", lines(
        "Power", "Joules each second by node, and how they are known: by the board's sensor, or estimated from a table of "
        "idle and busy watts of its device.",
        {"{{node}} ({{method}})": rate("mdi_exit_node_energy_joules_total", labels, "node, method")}, "watt", stacked=True,
        links=[node_link("__field.labels.node")],
    ), 12, 8)  # fmt: skip
    board.add("joules", lines(
        "Energy for an item", "Joules of all nodes that report energy, divided by the items answered in the same time.",
        {"all nodes": f"{rate('mdi_exit_node_energy_joules_total')} / ({rate('mdi_exit_items_completed_total')} > 0)"},
        "joule",
    ), 8, 8)  # fmt: skip
    board.add("joules-total", number(
        "Energy so far", "Joules since the start of the nodes that report now.",
        f"sum(mdi_exit_node_energy_joules_total{{{HERE}}})", "joule",
    ), 4, 8)  # fmt: skip


def _alerts(board: Board) -> None:
    board.row("Alerts")
    board.add("alerts", table_of(
        "Alerts", "Alerts of Prometheus that are pending or firing, of this deployment and of the scraping itself. "
        "docs/dashboards.md says what to do about each.",
        {"on": 'sum by (alertname, severity, alertstate, node, name) (ALERTS{deployment=~"$deployment|"})'},
        "alertname", {}, hidden=["on"],
    ), 24, 6)  # fmt: skip


def overview() -> models.Dashboard:
    """The dashboard to open first."""
    board = Board(
        "mdi-exit-overview", "mdi-exit: overview", "Rate, accuracy, latency, exits and nodes of one deployment."
    )
    names = f"label_values(mdi_exit_node_info{{{HERE}}}, node)"
    board.variable("node", "Node", "Which nodes the panels on nodes show.", names, several=True)
    board.row("Now")
    _numbers(board)
    _traffic(board)
    _control(board)
    _nodes(board)
    _placement(board)
    _energy(board)
    _alerts(board)
    return board.finish()
