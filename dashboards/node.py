"""The page of one node: its load, its links, its board; and, where Prometheus scrapes it, what only it knows."""

from __future__ import annotations

from typing import Final

from dashboards.board import Board
from dashboards.overview import UP
from dashboards.parts import (
    HERE,
    MESSAGES_PER_S,
    TASKS,
    TASKS_PER_S,
    lines,
    node_link,
    number,
    rate,
    states,
    text_value,
)
from dashboards.sdk import models

__all__ = ["node_page"]

NODE: Final = f'{HERE},node="$node"'
_INTO: Final = f'{HERE},to="$node"'
_HOT: Final = ((None, "text"), (70.0, "orange"), (80.0, "red"))
_CONNECTED: Final = {"0": ("not connected", "red"), "1": ("connected", "green")}


def _own(series: str) -> str:
    """Only those series that the process named $node exposes of itself; ``series`` keeps job and instance."""
    return f'{series} * on (job, instance) group_left () max by (job, instance) (mdi_exit_info{{{HERE},name="$node"}})'


def _own_rate(metric: str, by: str = "") -> str:
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} ({_own(f'rate({metric}{{{HERE}}}[$__rate_interval])')})"


def _head(board: Board) -> None:
    board.add("up", number(
        "Signs of life", "Whether the source hears the node.", f"max(mdi_exit_node_up{{{NODE}}})", "short", values=UP,
        none="gone",
    ), 3, 4, detail="life")  # fmt: skip
    for label, title, text in (
        ("state", "State", "What it does, by its own status."),
        ("span", "Layers", "The layers that it holds."),
        ("engine", "Engine", "What runs its segments."),
        ("emulated", "Emulated", "The device whose speed it imitates; empty for its own speed."),
    ):
        board.add(label, text_value(title, text, "mdi_exit_node_info", NODE, label), 3, 4)
    board.add("age", number(
        "Last heard", "Time since its last report.", f"max(mdi_exit_node_report_age_seconds{{{NODE}}})", "s",
        ((None, "text"), (3.0, "orange"), (10.0, "red")),
    ), 3, 4, detail="life")  # fmt: skip
    board.add("run-now", number(
        "Tasks run", "Tasks whose segment it ran, each second.",
        rate("mdi_exit_node_tasks_executed_total", NODE), TASKS_PER_S,
    ), 3, 4, detail="run")  # fmt: skip
    board.add("temperature-now", number(
        "Temperature", "The hottest sensor of its processors. Boards throttle from about 80 °C.",
        f"max(mdi_exit_node_temperature_celsius{{{NODE}}})", "celsius", _HOT, none="no sensor",
    ), 3, 4, detail="temperature")  # fmt: skip


def _load(board: Board) -> None:
    board.row("Load")
    board.add("life", states(
        "Signs of life", "Green while the source hears it.", {"{{node}}": f"max by (node) (mdi_exit_node_up{{{NODE}}})"}, UP
    ), 24, 4)  # fmt: skip
    board.add("run", lines(
        "Tasks run and items finished", "Tasks whose segment it ran, and items that left the network here, by exit.",
        {
            "tasks": rate("mdi_exit_node_tasks_executed_total", NODE),
            "exit {{exit}}": rate("mdi_exit_node_exits_total", NODE, "exit"),
        }, TASKS_PER_S,
    ), 8, 8)  # fmt: skip
    board.add("queues", lines(
        "Queues", "Tasks waiting to be run (input) and to be handed on (output), and those that wait for a layer that no "
        "live node holds.",
        {
            "{{queue}}": f"sum by (queue) (mdi_exit_node_queue_tasks{{{NODE}}})",
            "stranded": f"sum(mdi_exit_node_stranded_tasks{{{NODE}}})",
        }, TASKS,
    ), 8, 8)  # fmt: skip
    board.add("backlog", lines(
        "Backlog", "Expected time until a task that arrives now is begun.",
        {"backlog": f"max(mdi_exit_node_backlog_seconds{{{NODE}}})"}, "s",
    ), 8, 8)  # fmt: skip
    board.add("seconds", lines(
        "Time of a task", "Expected time of one task, by the layer at which it enters.",
        {"from layer {{entry}}": f"max by (entry) (mdi_exit_node_segment_seconds{{{NODE}}})"}, "s",
    ), 8, 8, detail="runs")  # fmt: skip
    board.add("slots", lines(
        "Free places", "Places left for its own products, by entry layer. At none it stops making more, and that pushes back "
        "to admission.",
        {"for layer {{entry}}": f"min by (entry) (mdi_exit_node_free_slots{{{NODE}}})"}, TASKS,
    ), 8, 8)  # fmt: skip
    board.add("sent", lines(
        "Sent", "Payload bytes that it gave to the broker.", {"all": rate("mdi_exit_node_sent_bytes_total", NODE)}, "Bps",
    ), 8, 8)  # fmt: skip


def _links(board: Board) -> None:
    board.row("Links")
    out, into = [node_link("__field.labels.to")], [node_link("__field.labels.node")]
    board.add("to", lines(
        "Tasks handed on", "To each neighbour.", {"to {{to}}": rate("mdi_exit_node_link_tasks_total", NODE, "to")},
        TASKS_PER_S, links=out,
    ), 8, 8)  # fmt: skip
    board.add("from", lines(
        "Tasks received", "From each neighbour, by what that neighbour says.",
        {"from {{node}}": rate("mdi_exit_node_link_tasks_total", _INTO, "node")}, TASKS_PER_S, links=into,
    ), 8, 8)  # fmt: skip
    board.add("bytes", lines(
        "Bytes handed on", "Features sent to each neighbour.",
        {"to {{to}}": rate("mdi_exit_node_link_bytes_total", NODE, "to")}, "Bps", links=out,
    ), 8, 8)  # fmt: skip
    board.add("delay", lines(
        "Delay", "Measured delay of an empty message to each neighbour.",
        {"to {{to}}": f"max by (to) (mdi_exit_node_link_delay_seconds{{{NODE}}})"}, "s", links=out,
    ), 12, 8)  # fmt: skip
    board.add("credits", lines(
        "Credits", "Tasks that it may send to each neighbour now. At none the neighbour is full.",
        {"to {{to}}": f"min by (to) (mdi_exit_node_link_credits{{{NODE}}})"}, TASKS, links=out,
    ), 12, 8)  # fmt: skip


def _board_panels(board: Board) -> None:
    board.row("Board")
    board.add("cpu", lines(
        "Processor", "Cores that its process keeps busy; 100 % is one core.",
        {"process": f"max(mdi_exit_node_cpu_ratio{{{NODE}}})"}, "percentunit",
    ), 6, 8)  # fmt: skip
    board.add("memory", lines(
        "Memory", "Resident memory of its process.", {"process": f"max(mdi_exit_node_memory_bytes{{{NODE}}})"}, "bytes",
    ), 6, 8)  # fmt: skip
    board.add("temperature", lines(
        "Temperature", "The hottest sensor of its processors. Empty without a sensor.",
        {"hottest": f"max(mdi_exit_node_temperature_celsius{{{NODE}}})"}, "celsius", least=None, steps=_HOT,
    ), 6, 8)  # fmt: skip
    board.add("power", lines(
        "Power", "By the board's sensor where it has one, and as the mean of its energy, which is an estimate without a "
        "sensor.",
        {
            "sensor": f"max(mdi_exit_node_power_watts{{{NODE}}})",
            "mean ({{method}})": rate("mdi_exit_node_energy_joules_total", NODE, "method"),
        }, "watt",
    ), 6, 8)  # fmt: skip


def _process(board: Board) -> None:
    board.row("What its process says of itself (empty unless Prometheus scrapes it)")
    runs = f"rate(mdi_exit_segment_run_seconds_bucket{{{HERE}}}[$__rate_interval])"
    own = f"sum by (le, entry) ({_own(runs)})"
    board.add("runs", lines(
        "Runs of segments", "Time of a run, which is a batch of tasks, by entry layer.",
        {f"p{share:g} from layer {{{{entry}}}}": f"histogram_quantile({share / 100:g}, {own})" for share in (50, 99)}, "s",
    ), 8, 8)  # fmt: skip
    board.add("busy", lines(
        "Time in segments", "Share of its time that it computes.", {"computing": _own_rate("mdi_exit_compute_seconds_total")},
        "percentunit",
    ), 8, 8)  # fmt: skip
    board.add("fates", lines(
        "Tasks", "What became of tasks here. Refused ones went back to the source; dropped ones were of an earlier run.",
        {
            "received": _own_rate("mdi_exit_tasks_received_total"),
            "to {{to}}": _own_rate("mdi_exit_tasks_sent_total", "to"),
            "refused": _own_rate("mdi_exit_tasks_refused_total"),
            "failed": _own_rate("mdi_exit_tasks_failed_total"),
            "duplicate": _own_rate("mdi_exit_tasks_duplicate_total"),
            "dropped": _own_rate("mdi_exit_tasks_dropped_total"),
        }, TASKS_PER_S,
    ), 8, 8)  # fmt: skip
    board.add("traffic", lines(
        "Messages", "Messages to (out) and from (in) the broker, and those that the transport did not take.",
        {
            "{{direction}}": _own_rate("mdi_exit_transport_messages_total", "direction"),
            "not taken": _own_rate("mdi_exit_transport_refused_total"),
        }, MESSAGES_PER_S,
    ), 8, 8)  # fmt: skip
    board.add("payload", lines(
        "Bytes", "Payload bytes to (out) and from (in) the broker.",
        {"{{direction}}": _own_rate("mdi_exit_transport_bytes_total", "direction")}, "Bps",
    ), 8, 8)  # fmt: skip
    board.add("bad", lines(
        "Bad messages", "Messages put aside, by reason.",
        {"{{reason}}": _own_rate("mdi_exit_bad_messages_total", "reason")}, MESSAGES_PER_S,
    ), 8, 8)  # fmt: skip
    board.add("connected", states(
        "Connection", "Whether it is connected to the broker.",
        {"{{instance}}": f"max by (instance) ({_own(f'mdi_exit_broker_connected{{{HERE}}}')})"}, _CONNECTED,
    ), 12, 5)  # fmt: skip
    board.add("sees", states(
        "Whom it hears", "Which other nodes give it signs of life.",
        {"{{node}}": f"max by (node) ({_own(f'mdi_exit_neighbour_alive{{{HERE}}}')})"}, UP,
    ), 12, 5)  # fmt: skip
    board.add("lost", lines(
        "Lost on links", "Tasks that got lost on the way to a neighbour, as far as it knows; the source sends them again.",
        {"to {{to}}": _own_rate("mdi_exit_link_lost_total", "to")}, TASKS_PER_S,
    ), 24, 6)  # fmt: skip


def node_page() -> models.Dashboard:
    """The page of the node ``$node``."""
    board = Board("mdi-exit-node", "mdi-exit: node", "Load, links and board of one node.")
    board.variable("node", "Node", "Which node.", f"label_values(mdi_exit_node_info{{{HERE}}}, node)")
    board.row("$node")
    _head(board)
    _load(board)
    _links(board)
    _board_panels(board)
    _process(board)
    return board.finish()
