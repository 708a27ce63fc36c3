"""Serves ``/metrics``, ``/healthz`` and ``/readyz`` on one port, from a thread that asks the event loop."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Final, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from mdi_exit.driver import NodeDriver, Sample
from mdi_exit.errors import StartError
from mdi_exit.metrics.exposition import CONTENT_TYPE, exposition
from mdi_exit.metrics.samples import fleet_samples, node_samples, readiness, source_samples
from mdi_exit.source_state import SourceState
from mdi_exit.transport import Transport

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

__all__ = ["MetricsServer", "serve_metrics"]

log = logging.getLogger(__name__)

_ANSWER_S: Final = 2.0
_POLL_S: Final = 0.1  # so long closing takes
_PLAIN: Final = "text/plain; charset=utf-8"
_NO_ANSWER: Final = "the event loop does not answer"

T = TypeVar("T")


class _Loop:
    """Asks the event loop from another thread, so that state is never read while it changes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def ask(self, question: Callable[[], T]) -> T:
        """Raises ``TimeoutError`` if the loop does not answer, or has ended."""
        future: Future[T] = Future()

        def answer() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(question())
                except Exception as error:  # noqa: BLE001 - raised where it was asked
                    future.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(answer)
        except RuntimeError as error:  # it is closed
            raise TimeoutError(_NO_ANSWER) from error
        try:
            return future.result(_ANSWER_S)
        except FutureTimeoutError as error:
            future.cancel()
            raise TimeoutError(_NO_ANSWER) from error


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
        self._samples, self._unready, self._deployment = samples, unready, deployment
        kind = _Server6 if ":" in host else _Server
        try:
            self._server: WSGIServer = make_server(host, port, self._answer, kind, _Handler)
        except (OSError, OverflowError) as error:
            raise StartError(f"metrics on {host}:{port}: expected a free port, got: {error}") from None
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self._server.server_port}/metrics"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(2.0)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            match environ["PATH_INFO"]:
                case "/metrics":
                    text = exposition(self._loop.ask(self._samples), self._deployment)
                    return _answer(start_response, "200 OK", text, CONTENT_TYPE)
                case "/healthz":
                    self._loop.ask(lambda: None)
                    return _answer(start_response, "200 OK", "ok\n")
                case "/readyz":
                    why_not = self._loop.ask(self._unready)
                    status = "503 Service Unavailable" if why_not else "200 OK"
                    return _answer(start_response, status, f"{why_not or 'ready'}\n")
                case _:
                    return _answer(start_response, "404 Not Found", "expected /metrics, /healthz or /readyz\n")
        except TimeoutError as error:
            return _answer(start_response, "503 Service Unavailable", f"{error}\n")
        except Exception:
            log.exception("answering %s failed", environ["PATH_INFO"][:80])
            return _answer(start_response, "500 Internal Server Error", "a defect; the log has more\n")


def _answer(start_response: StartResponse, status: str, text: str | bytes, content_type: str = _PLAIN) -> list[bytes]:
    body = text.encode() if isinstance(text, str) else text
    start_response(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return [body]


def serve_metrics(host: str, port: int, driver: NodeDriver, transport: Transport) -> MetricsServer:
    """Serve this node's metrics on ``host:port`` (0: a free one). Raises ``StartError``."""
    loop, state = asyncio.get_running_loop(), driver.state

    def samples() -> list[Sample]:
        now = loop.time()
        found = list(node_samples(driver, transport, now))
        if isinstance(state, SourceState):
            found += source_samples(state, now)
            found += fleet_samples(driver, now)
        for more in driver.more_samples:
            found += more()
        return found

    return MetricsServer(host, port, samples, lambda: readiness(driver, transport), driver.topics.deployment)
