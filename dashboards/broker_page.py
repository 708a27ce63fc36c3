"""The page of the broker: what it says of itself, what its clients say of it, and what scraping costs."""

from __future__ import annotations

from typing import Final

from dashboards.board import Board
from dashboards.parts import HERE, MESSAGES_PER_S, lines, number, rate, states, text_value
from dashboards.sdk import models

__all__ = ["broker_page"]

_CONNECTED: Final = {"0": ("not connected", "red"), "1": ("connected", "green")}
_SCRAPED: Final = {"0": ("not answering", "red"), "1": ("answering", "green")}
_OUR_JOBS: Final = 'job=~"mdi-exit-.*"'
_P: Final = "mdi_exit_mosquitto"


def _now(name: str) -> str:
    return f"max({_P}_{name}{{{HERE}}})"


def _head(board: Board) -> None:
    seen = f"min(mdi_exit_broker_connected{{{HERE}}})"
    board.add("connected-now", number(
        "Connection", "Whether all nodes that are scraped are connected.", seen, "short", values=_CONNECTED, none="unknown",
    ), 4, 4, detail="connected")  # fmt: skip
    board.add("version", text_value(
        "Version", "What the broker says it is; empty unless it is Mosquitto.", f"{_P}_info", HERE, "version",
    ), 4, 4)  # fmt: skip
    board.add("uptime", number(
        "Up for", "Time since the broker started.", _now("uptime_seconds"), "s", ((None, "orange"), (60.0, "text")),
    ), 4, 4)  # fmt: skip
    board.add("clients-now", number(
        "Clients", "Clients connected now.", _now("clients_connected"), "suffix:clients",
    ), 4, 4, detail="clients")  # fmt: skip
    board.add("dropped-now", number(
        "Dropped", "Messages dropped each second: a client took them too slowly and its queue was full.",
        rate(f"{_P}_publish_dropped_total"), MESSAGES_PER_S, ((None, "green"), (0.01, "red")),
    ), 4, 4, detail="publish")  # fmt: skip
    board.add("heap-now", number(
        "Memory", "Memory that the broker has allocated.", _now("heap_bytes"), "bytes",
    ), 4, 4, detail="heap")  # fmt: skip


def _traffic(board: Board) -> None:
    board.row("Traffic")
    board.add("publish", lines(
        "Messages", "PUBLISH messages that came, went and were dropped. One that comes goes to every subscriber.",
        {name: rate(f"{_P}_publish_{name}_total") for name in ("received", "sent", "dropped")}, MESSAGES_PER_S,
    ), 8, 8)  # fmt: skip
    board.add("payload", lines(
        "Payload", "Payload bytes of these messages.",
        {name: rate(f"{_P}_publish_{name}_bytes_total") for name in ("received", "sent")}, "Bps",
    ), 8, 8)  # fmt: skip
    board.add("bytes", lines(
        "Bytes", "All bytes on its connections, with headers and acknowledgements.",
        {name: rate(f"{_P}_bytes_{name}_total") for name in ("received", "sent")}, "Bps",
    ), 8, 8)  # fmt: skip
    board.add("packets", lines(
        "Packets", "MQTT packets of any type: messages, acknowledgements, pings.",
        {name: rate(f"{_P}_messages_{name}_total") for name in ("received", "sent")}, "suffix:packets/s",
    ), 12, 8, detail="publish")  # fmt: skip
    board.add("clients", lines(
        "Clients", "Connected; most at once; away with their session kept; and sessions given up, in all.",
        {
            "connected": _now("clients_connected"),
            "most at once": _now("clients_maximum"),
            "away": _now("clients_disconnected"),
            "given up": _now("clients_expired_total"),
        }, "suffix:clients",
    ), 12, 8, detail="connected")  # fmt: skip


def _memory(board: Board) -> None:
    board.row("What it keeps")
    board.add("kept", lines(
        "Messages kept", "Retained messages (the model in chunks, statuses, its own statistics), and all that it keeps: "
        "these and those that wait for a client.",
        {"retained": _now("retained_messages"), "all": _now("stored_messages")}, "suffix:msg",
    ), 8, 8)  # fmt: skip
    board.add("kept-bytes", lines(
        "Bytes kept", "Payload of the messages kept.", {"payload": _now("stored_bytes")}, "bytes",
    ), 6, 8)  # fmt: skip
    board.add("heap", lines(
        "Memory", "Memory that the broker has allocated, and the most at once.",
        {"now": _now("heap_bytes"), "most": _now("heap_maximum_bytes")}, "bytes",
    ), 6, 8)  # fmt: skip
    board.add("subscriptions", lines(
        "Subscriptions", "Of all clients.", {"subscriptions": _now("subscriptions")}, "suffix:subscriptions",
    ), 4, 8)  # fmt: skip


def _clients(board: Board) -> None:
    board.row("As its clients see it")
    named = f"max by (job, instance, name) (mdi_exit_info{{{HERE}}})"
    connected = (
        f"max by (job, instance) (mdi_exit_broker_connected{{{HERE}}}) * on (job, instance) group_right () {named}"
    )
    rates = f"rate(mdi_exit_broker_reconnects_total{{{HERE}}}[$__rate_interval])"
    again = f"{rates} * on (job, instance) group_left (name) {named}"
    board.add("connected", states(
        "Connections", "Whether each node that is scraped is connected.", {"{{name}}": f"max by (name) ({connected})"},
        _CONNECTED,
    ), 12, 8)  # fmt: skip
    board.add("reconnects", lines(
        "Reconnects", "Connections made again, each minute, by the nodes that are scraped.",
        {"{{name}}": f"sum by (name) ({again}) * 60"}, "suffix:/min",
    ), 12, 8)  # fmt: skip


def _scraping(board: Board) -> None:
    board.row("Scraping (not of one deployment)")
    board.add("targets", states(
        "Targets", "Whether each target of Prometheus answers.", {"{{job}} {{instance}}": f"up{{{_OUR_JOBS}}}"}, _SCRAPED,
    ), 8, 7)  # fmt: skip
    board.add("scrape-seconds", lines(
        "Time of a scrape", "How long each target takes to answer.",
        {"{{job}} {{instance}}": f"scrape_duration_seconds{{{_OUR_JOBS}}}"}, "s",
    ), 8, 7)  # fmt: skip
    board.add("scrape-samples", lines(
        "Samples", "Samples that each target gives.",
        {"{{job}} {{instance}}": f"scrape_samples_scraped{{{_OUR_JOBS}}}"}, "suffix:samples",
    ), 8, 7)  # fmt: skip


def broker_page() -> models.Dashboard:
    """The page of the broker that the source is connected to."""
    board = Board(
        "mdi-exit-broker", "mdi-exit: broker", "The MQTT broker: what it says of itself and its clients of it."
    )
    board.row("Now")
    _head(board)
    _traffic(board)
    _memory(board)
    _clients(board)
    _scraping(board)
    return board.finish()
