"""The server of metrics and health: what it answers when all is well, and when it is not."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mdi_exit.driver import Sample
from mdi_exit.errors import StartError
from mdi_exit.metrics import MetricsServer, server


def _get(address: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 - http on loopback
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


@contextmanager
def _serving(host: str = "127.0.0.1", **changes: Any) -> Iterator[tuple[str, MetricsServer]]:
    samples: list[Sample] = [("mdi_exit_ready", (), 1.0)]
    given: dict[str, Any] = {"samples": lambda: samples, "unready": lambda: "", "deployment": "test"} | changes
    serving = MetricsServer(host, 0, **given)
    try:
        yield serving.address.removesuffix("/metrics"), serving
    finally:
        serving.close()


async def test_each_page_says_what_it_is_for() -> None:
    unready = ["no broker"]
    with _serving(unready=lambda: unready[0]) as (base, _):
        status, kind, text = await asyncio.to_thread(_get, f"{base}/metrics")
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert text.splitlines()[-1] == 'mdi_exit_ready{deployment="test"} 1.0'
        assert (await asyncio.to_thread(_get, f"{base}/healthz"))[::2] == (200, "ok\n")
        assert (await asyncio.to_thread(_get, f"{base}/readyz"))[::2] == (503, "no broker\n")
        unready[0] = ""
        assert (await asyncio.to_thread(_get, f"{base}/readyz"))[::2] == (200, "ready\n")
        assert (await asyncio.to_thread(_get, f"{base}/"))[0] == 404


@pytest.mark.parametrize("page", ["metrics", "healthz", "readyz"])
async def test_a_loop_that_does_not_answer_is_not_healthy(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ANSWER_S", 0.1)
    with _serving() as (base, _):
        asking = asyncio.get_running_loop().run_in_executor(None, _get, f"{base}/{page}")
        time.sleep(0.5)  # noqa: ASYNC251 - it is the loop that is held up
        status, _, text = await asking
        assert (status, text) == (503, "the event loop does not answer\n")


async def test_a_defect_is_logged_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with _serving(samples=lambda: [("mdi_exit_unheard_of", (), 1.0)]) as (base, _):
        assert (await asyncio.to_thread(_get, f"{base}/metrics"))[0] == 500
        assert "answering /metrics failed" in caplog.text
        assert (await asyncio.to_thread(_get, f"{base}/healthz"))[0] == 200


def test_a_loop_that_has_ended_is_not_healthy() -> None:
    async def start() -> MetricsServer:
        return MetricsServer("127.0.0.1", 0, list, str, "test")

    serving = asyncio.run(start())
    try:
        assert _get(serving.address)[0] == 503
    finally:
        serving.close()


async def test_a_port_that_cannot_be_had_is_a_plain_line() -> None:
    with _serving() as (base, _):
        port = int(base.rsplit(":", 1)[1])
        with pytest.raises(StartError, match=rf"metrics on 127.0.0.1:{port}: expected a free port, got"):
            MetricsServer("127.0.0.1", port, list, str, "test")


async def test_it_listens_on_ipv6_too() -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("needs IPv6 on loopback")
    with _serving("::1") as (base, _):
        assert base.startswith("http://[::1]:")
        assert (await asyncio.to_thread(_get, f"{base}/healthz"))[0] == 200
