"""The containers' health check asks the program of its container."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from broker.embedded import free_port
from mdi_exit.probe import main, probe


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        well = self.path == "/healthz"
        body = b"ok\n" if well else b"layers 4-8 are held by nobody\nmore\n"
        self.send_response(200 if well else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_an_address_that_listens_everywhere_is_asked_on_loopback(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], {"MDI_EXIT_METRICS": f"0.0.0.0:{port}"}) == 0
    assert capsys.readouterr().out == f"0.0.0.0:{port}/healthz: 200 ok\n"


def test_the_argument_is_a_path_or_an_address_and_a_path(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/readyz"], {"MDI_EXIT_METRICS": f"127.0.0.1:{port}"}) == 1
    assert main([f"127.0.0.1:{port}/healthz"], {}) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"127.0.0.1:{port}/readyz: 503 layers 4-8 are held by nobody"


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_not_well(address: str) -> None:
    assert probe(address, "/healthz")[0] is False


def test_nobody_there_is_not_well() -> None:
    well, line = probe(f"127.0.0.1:{free_port()}", "/healthz")
    assert not well
    assert "refused" in line
