"""The list of what a Prometheus answers: what is data, what is an error, and what is said when there is no Prometheus."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from broker.embedded import free_port
from dashboards.expressions import Expression, expressions
from dashboards.report import Answer, Prometheus, ask, either, main, markdown


class _Handler(BaseHTTPRequestHandler):
    """Answers as Prometheus does: by the words of the query."""

    def do_GET(self) -> None:
        path = urlparse(self.path)
        asked = parse_qs(path.query).get("query", [""])[0]
        if "not a server" in asked:
            self._answer(200, b"<html>")
        elif "starting" in asked:
            self._answer(503, b"Service Unavailable")
        elif "unknown_function" in asked:
            self._answer(400, json.dumps({"status": "error", "error": "parse error"}).encode())
        elif path.path.endswith("/values"):
            self._data(["a", "b"])
        else:
            row = {
                "metric": {"__name__": "m", "node": "a", "job": "x"},
                "value": [1, "NaN"],
                "values": [[1, "2"], [2, "3.5"], [3, "NaN"]],
            }
            self._data({"result": [row]})

    def _data(self, data: object) -> None:
        self._answer(200, json.dumps({"status": "success", "data": data}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_last_number_of_a_series_counts_and_one_without_is_no_data(url: str) -> None:
    api = Prometheus(url)
    assert api.course("m", 0.0, 10.0, 1.0) == [("node=a", 3.5)]
    assert api.now("m") == []
    assert api.values_of("m", "node") == ["a", "b"]


def test_a_query_that_is_not_liked_and_a_server_that_is_none_are_told_apart(url: str) -> None:
    api = Prometheus(url)
    with pytest.raises(ValueError, match="parse error"):
        api.now("unknown_function(m)")
    for query in ("starting", "not a server"):
        with pytest.raises(OSError, match=r"503|not JSON"):
            api.now(query)


def test_every_query_is_asked_with_the_variables_filled_in(url: str) -> None:
    answers = ask(Prometheus(url), "here", "pi", since_s=0.0, interval_s=15.0, scrape_s=5.0)
    assert [answer.expression for answer in answers] == expressions()
    assert not [
        answer.query for answer in answers if "$d" in answer.query or "$n" in answer.query or "$_" in answer.query
    ]
    assert any('node="pi"' in answer.query and "[20000ms]" in answer.query for answer in answers)
    assert any("offset 15000ms" in answer.query for answer in answers)


def test_the_list_has_each_query_with_its_value_or_why_there_is_none(url: str) -> None:
    kinds = [Expression("panel", "page", title, "", "m", "suffix:items/s") for title in ("full", "empty", "wrong")]
    answers = [
        Answer(kinds[0], "m", series=tuple((f"node={name}", 1.0) for name in "abcde")),
        Answer(kinds[1], "m"),
        Answer(kinds[2], "m", error="parse | error"),
    ]
    text = markdown(answers, "Title", "How it was made.", {"page / empty": "no sensor"})
    assert text.startswith("# Title\n\nHow it was made.\n\n3 queries,")
    assert "3 queries, 1 with data, 1 with an error." in text
    assert "| panel | full |  | items/s | 1 node=a; 1 node=b; 1 node=c; 2 more |" in text
    assert "| (none): no sensor |" in text
    assert "**error**: parse \\| error" in text


def test_of_two_rounds_the_one_with_data_counts_and_no_error_is_lost() -> None:
    panel = Expression("panel", "page", "title", "", "m")
    full, other, empty, wrong = (
        Answer(panel, "m", (("", 1.0),)),
        Answer(panel, "m", (("", 2.0),)),
        Answer(panel, "m"),
        Answer(panel, "m", error="x"),
    )
    assert either([full, empty, full], [other, other, wrong]) == [full, other, wrong]


def test_without_a_server_the_command_says_so_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prometheus", f"http://127.0.0.1:{free_port()}"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--prometheus: expected an answer of http://127.0.0.1:")
