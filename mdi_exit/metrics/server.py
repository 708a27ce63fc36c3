"""Serves ``/metrics``, ``/healthz`` and ``/readyz`` on one port, from a thread that asks the event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mdi_exit.driver import NodeDriver, Sample
from mdi_exit.errors import StartError
from mdi_exit.histogram import Histogram
from mdi_exit.metrics.catalogue import CATALOGUE, DEPLOYMENT, Row
from mdi_exit.metrics.samples import fleet_samples, node_samples, readiness, source_samples
from mdi_exit.source_state import SourceState
from mdi_exit.transport import Transport

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = ["MetricsServer", "families", "serve_metrics"]

log = logging.getLogger(__name__)

_ANSWER_S: Final = 2.0
_NO_ANSWER: Final = "the event loop does not answer"

T = TypeVar("T")


class _Loop:
    """Asks the event loop from another thread, so that state is never read while it changes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def ask(self, question: Callable[[], T]) -> T:
        """Raises ``TimeoutError`` if the loop does not answer, or has ended."""

        async def answer() -> T:
            return question()

        try:
            future = asyncio.run_coroutine_threadsafe(answer(), self._loop)
        except RuntimeError:
            raise TimeoutError(_NO_ANSWER) from None
        try:
            return future.result(_ANSWER_S)
        except FutureTimeoutError:
            future.cancel()
            raise TimeoutError(_NO_ANSWER) from None


def families(samples: Iterable[Sample], deployment: str) -> Iterator[Metric]:
    """The samples in the order and with the words of the catalogue. Raises ``KeyError`` for one that it does not have."""
    found: dict[str, Any] = {}  # each kind of family has an add_metric of its own
    for name, labels, value in samples:
        if name not in found:
            found[name] = _family(name, CATALOGUE[name])
        family = found[name]
        if isinstance(value, Histogram):
            family.add_metric((deployment, *labels), value.cumulative(), value.total)
        else:
            family.add_metric((deployment, *labels), value)
    yield from (found[name] for name in CATALOGUE if name in found)


def _family(name: str, row: Row) -> CounterMetricFamily | HistogramMetricFamily | GaugeMetricFamily:
    labels = (DEPLOYMENT, *row.labels)
    if row.kind == "counter":
        return CounterMetricFamily(name, row.help, labels=labels)
    if row.kind == "histogram":
        return HistogramMetricFamily(name, row.help, labels=labels)
    return GaugeMetricFamily(name, row.help, labels=labels)


class _FromState(Collector):
    def __init__(self, loop: _Loop, samples: Callable[[], list[Sample]], deployment: str) -> None:
        self._loop, self._samples, self._deployment = loop, samples, deployment

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        return families(self._loop.ask(self._samples), self._deployment)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a request from %s ended early", client_address)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # of a silent client

    def log_message(self, *_: object) -> None:
        return


class MetricsServer:
    """``address`` is where ``/metrics`` is. ``samples`` and ``unready`` (why not ready; empty: it is) are called in the loop
    that makes this object. Raises ``StartError`` if the port cannot be had.
    """

    def __init__(
        self, host: str, port: int, samples: Callable[[], list[Sample]], unready: Callable[[], str], deployment: str
    ) -> None:
        self._loop = _Loop(asyncio.get_running_loop())
        self._unready = unready
        registry = CollectorRegistry()
        registry.register(_FromState(self._loop, samples, deployment))
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        kind = _Server6 if ":" in host else _Server
        try:
            self._server: WSGIServer = make_server(host, port, self._answer, kind, _Handler)
        except (OSError, OverflowError) as error:
            raise StartError(f"metrics on {host}:{port}: expected a free port, got: {error}") from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self._server.server_port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            match environ["PATH_INFO"]:
                case "/metrics":
                    return self._metrics(environ, start_response)
                case "/healthz":
                    self._loop.ask(lambda: None)
                    return _line(start_response, "200 OK", "ok")
                case "/readyz":
                    why_not = self._loop.ask(self._unready)
                    return _line(start_response, "503 Service Unavailable" if why_not else "200 OK", why_not or "ready")
                case _:
                    return _line(start_response, "404 Not Found", "expected /metrics, /healthz or /readyz")
        except TimeoutError as error:
            return _line(start_response, "503 Service Unavailable", str(error))


def _line(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    body = text.encode() + b"\n"
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]


def serve_metrics(host: str, port: int, driver: NodeDriver, transport: Transport) -> MetricsServer:
    """Serve this node's metrics on ``host:port`` (0: a free one). Raises ``StartError``."""
    loop, state = asyncio.get_running_loop(), driver.state

    def samples() -> list[Sample]:
        now = loop.time()
        found = list(node_samples(driver, transport, now))
        if isinstance(state, SourceState):
            found += source_samples(state)
            found += fleet_samples(driver, now)
        for more in driver.more_samples:
            found += more()
        return found

    return MetricsServer(host, port, samples, lambda: readiness(driver, transport), driver.topics.deployment)
