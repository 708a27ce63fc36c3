from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mdi_exit.errors import TransportError, UsageError
from mdi_exit.events import Record
from mdi_exit.results import ResultsWriter, result_line
from mdi_exit.wire import ResultRow
from source.sinks import CSV_FIELDS, CsvWriter, TopicSink, results_file

NAMES = ("shirt", 'bag, "large"')


def record(item: int = 1, *, error: str | None = None, truth: int | None = 1) -> Record:
    label = None if error else 1
    row = ResultRow(item=item, attempt=0, path=("source", "a"), exit=3, label=label, score=0.75, error=error)
    return Record(sample=f"img-{item}", truth=truth, row=row, latency_s=0.25)


def test_the_suffix_decides_how_results_are_written(tmp_path: Path) -> None:
    with results_file(tmp_path / "a.jsonl") as lines, results_file(tmp_path / "a.CSV") as table:
        assert type(lines) is ResultsWriter
        assert type(table) is CsvWriter


def test_a_csv_has_a_header_and_the_fields_of_the_json_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with results_file(path) as writer:
        writer.write(record(), NAMES)
        writer.write(record(2, error="no node\nholds it", truth=None), NAMES)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "id": "img-1", "label": "1", "label_name": NAMES[1], "error": "", "confidence": "0.75", "exit": "3",
        "path": "source a", "latency_s": "0.25", "truth": "1",
    }  # fmt: skip
    assert (rows[1]["error"], rows[1]["label"], rows[1]["truth"]) == ("no node\nholds it", "", "")
    assert len(rows) == 2


def test_every_field_of_a_result_has_a_column() -> None:
    written = {*result_line(record(), NAMES), *result_line(record(error="x"), NAMES)}
    assert written == set(CSV_FIELDS)


def test_a_csv_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("precious\n")
    with pytest.raises(UsageError, match="--overwrite"):
        results_file(path)


class Broker:
    """Takes what it is given, until it is full."""

    def __init__(self) -> None:
        self.full = False
        self.taken: list[tuple[str, bytes, int, bool]] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        if b"too-large" in payload:
            raise TransportError("message to x: too large")
        if not self.full:
            self.taken.append((topic, payload, qos, retain))
        return not self.full


def test_a_result_is_published_as_its_json_line_and_not_retained() -> None:
    broker = Broker()
    TopicSink(broker, "house/labels", 1).write(record(), NAMES)
    ((topic, payload, qos, retain),) = broker.taken
    assert (topic, qos, retain) == ("house/labels", 1, False)
    assert json.loads(payload) == result_line(record(), NAMES)


def test_what_the_broker_does_not_take_waits_in_order_and_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    sink = TopicSink(broker, "t", 0)
    broker.full = True
    for item in range(1005):
        sink.write(record(item))
    assert (sink.published, sink.dropped) == (0, 5)
    assert [entry.getMessage() for entry in caplog.records] == [
        "--publish t: the broker takes no results; the oldest are dropped"
    ]
    broker.full = False
    sink.flush()
    assert sink.published == 1000
    assert [json.loads(payload)["id"] for _, payload, _, _ in broker.taken] == [f"img-{n}" for n in range(5, 1005)]
    sink.write(record(7, error="too-large"))
    assert sink.dropped == 6


async def test_what_waits_at_the_end_gets_a_moment_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("source.sinks._GOODBYE_S", 0.05)
    broker = Broker()
    sink = TopicSink(broker, "t", 0)
    sink.write(record(1))
    broker.full = True
    sink.write(record(2))
    await sink.goodbye()
    assert caplog.messages[-1] == "--publish t: 1 results published, 1 dropped"
