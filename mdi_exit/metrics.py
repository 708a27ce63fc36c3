"""All metrics in one catalogue, read from state at scrape time, on a registry of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Final, Literal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mdi_exit.broker_stats import BROKER_METRICS, broker_samples
from mdi_exit.driver import NodeDriver
from mdi_exit.errors import StartError
from mdi_exit.source_state import SourceState
from mdi_exit.transport import Transport

__all__ = ["CATALOGUE", "MetricsServer", "serve_metrics"]

Kind = Literal["counter", "gauge"]
Sample = tuple[str, tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: its kind, help and label names."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


CATALOGUE: Final[dict[str, Row]] = {
    "mdi_exit_queue_tasks": Row("gauge", "Tasks waiting at this node.", ("queue",)),
    "mdi_exit_backlog_seconds": Row("gauge", "Expected seconds of work waiting in the input queue."),
    "mdi_exit_segment_seconds": Row("gauge", "Expected seconds a task, by entry layer.", ("entry",)),
    "mdi_exit_tasks_received": Row("counter", "Tasks received from other nodes."),
    "mdi_exit_tasks_executed": Row("counter", "Segment runs, one for each task."),
    "mdi_exit_tasks_sent": Row("counter", "Tasks handed to another node.", ("to",)),
    "mdi_exit_tasks_failed": Row("counter", "Tasks whose segment failed here."),
    "mdi_exit_exits": Row("counter", "Items that left the network here, by exit.", ("exit",)),
    "mdi_exit_compute_seconds": Row("counter", "Seconds spent in segments."),
    "mdi_exit_threshold": Row("gauge", "Exit threshold in force."),
    "mdi_exit_neighbour_delay_seconds": Row("gauge", "Measured delay of an empty message.", ("to",)),
    "mdi_exit_neighbour_alive": Row("gauge", "1 while the other node gives signs of life.", ("node",)),
    "mdi_exit_bad_messages": Row("counter", "Messages put aside.", ("reason",)),
    "mdi_exit_broker_connected": Row("gauge", "1 while connected to the broker."),
    "mdi_exit_broker_connects": Row("counter", "Connections made to the broker."),
    "mdi_exit_transport_bytes": Row("counter", "Payload bytes.", ("direction",)),
    "mdi_exit_items_admitted": Row("counter", "Items admitted by the source."),
    "mdi_exit_items_completed": Row("counter", "Items with a label."),
    "mdi_exit_items_failed": Row("counter", "Items that ended with an error."),
    "mdi_exit_items_refused": Row("counter", "Items turned away before admission."),
    "mdi_exit_items_retried": Row("counter", "Attempts made again."),
    "mdi_exit_results_duplicate": Row("counter", "Results received and discarded."),
    "mdi_exit_items_pending": Row("gauge", "Items admitted and not yet answered."),
    **{name: Row(metric.kind, metric.help, metric.labels) for name, metric in BROKER_METRICS.items()},
}


def node_samples(driver: NodeDriver, transport: Transport, now: float) -> Iterator[Sample]:
    """What every node has to say."""
    worker, totals, counters = driver.worker, driver.worker.totals, transport.counters
    yield "mdi_exit_queue_tasks", ("input",), worker.inputs
    yield "mdi_exit_queue_tasks", ("output",), worker.outputs
    yield "mdi_exit_backlog_seconds", (), worker.backlog_s(now)
    for entry in worker.entries:
        yield "mdi_exit_segment_seconds", (str(entry),), worker.seconds(entry)
    yield "mdi_exit_tasks_received", (), totals.received
    yield "mdi_exit_tasks_executed", (), totals.executed
    for to, count in totals.sent.items():
        yield "mdi_exit_tasks_sent", (to,), count
    yield "mdi_exit_tasks_failed", (), totals.failed
    for number, count in totals.exits.items():
        yield "mdi_exit_exits", (str(number),), count
    yield "mdi_exit_compute_seconds", (), totals.compute_s
    yield "mdi_exit_threshold", (), worker.threshold
    for peer in worker.members:
        yield "mdi_exit_neighbour_alive", (peer.name,), float(peer.alive)
        if peer.alive:
            yield "mdi_exit_neighbour_delay_seconds", (peer.name,), peer.out.delay.delay_s(0)
    for reason, count in driver.bad.items():
        yield "mdi_exit_bad_messages", (reason,), count
    yield "mdi_exit_broker_connected", (), float(transport.connected)
    yield "mdi_exit_broker_connects", (), counters.connects
    yield "mdi_exit_transport_bytes", ("in",), counters.bytes_in
    yield "mdi_exit_transport_bytes", ("out",), counters.bytes_out


def source_samples(state: SourceState) -> Iterator[Sample]:
    """What only the source knows."""
    yield "mdi_exit_items_admitted", (), state.admitted
    yield "mdi_exit_items_completed", (), state.completed
    yield "mdi_exit_items_failed", (), state.errors
    yield "mdi_exit_items_refused", (), state.refused
    yield "mdi_exit_items_retried", (), state.retried
    yield "mdi_exit_results_duplicate", (), state.duplicates
    yield "mdi_exit_items_pending", (), len(state.pending)


class _FromState(Collector):
    """Asks the event loop for the samples, so that state is never read while it changes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, samples: Callable[[], list[Sample]]) -> None:
        self._loop, self._samples = loop, samples

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        async def ask() -> list[Sample]:
            return self._samples()

        try:
            samples = asyncio.run_coroutine_threadsafe(ask(), self._loop).result(2.0)
        except (FutureTimeoutError, RuntimeError):
            return
        families: dict[str, Metric] = {}
        for name, labels, value in samples:
            row = CATALOGUE[name]
            family = families.get(name)
            if family is None:
                maker = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
                family = families[name] = maker(name, row.help, labels=row.labels)
            family.add_metric(labels, value)  # type: ignore[attr-defined]
        yield from families.values()


class MetricsServer:
    """Serves ``/metrics``; ``address`` is where."""

    def __init__(self, host: str, port: int, samples: Callable[[], list[Sample]]) -> None:
        registry = CollectorRegistry()
        registry.register(_FromState(asyncio.get_running_loop(), samples))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise StartError(f"metrics on {host}:{port}: expected a free port, got: {error}") from None
        self.address = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)


def serve_metrics(host: str, port: int, driver: NodeDriver, transport: Transport) -> MetricsServer:
    """Serve this node's metrics on ``host:port`` (0: a free port). Raises ``StartError``."""
    loop, state = asyncio.get_running_loop(), driver.state

    def samples() -> list[Sample]:
        found = list(node_samples(driver, transport, loop.time()))
        if driver.broker_stats is not None:
            found += broker_samples(driver.broker_stats)
        return [*found, *source_samples(state)] if isinstance(state, SourceState) else found

    return MetricsServer(host, port, samples)
