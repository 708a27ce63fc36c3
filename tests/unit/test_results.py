from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import mdi_exit.results
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.events import Record
from mdi_exit.results import ResultsWriter, Summary, SummaryBuilder
from mdi_exit.run_energy import RunEnergy
from mdi_exit.wire import ResultRow

NAMES = ("shirt", "bag")


def record(item: int = 1, *, label: int | None = 1, truth: int | None = 1, exit: int = 3, error: str | None = None,  # noqa: A002
           latency_s: float = 0.25) -> Record:  # fmt: skip
    row = ResultRow(item=item, attempt=0, path=("source", "a"), exit=exit, label=label, score=0.75, error=error)
    return Record(sample=f"img-{item}", truth=truth, row=row, latency_s=latency_s)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_for_each_item_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsWriter(path) as writer:
        writer.write(record(), NAMES)
        assert lines(path) == [
            {
                "id": "img-1", "label": 1, "label_name": "bag", "confidence": 0.75, "exit": 3,
                "path": ["source", "a"], "latency_s": 0.25, "truth": 1,
            }
        ]  # fmt: skip
        writer.write(record(2, truth=None))
        writer.write(record(3, label=None, error="no agent holds layer 6"))
    assert lines(path)[1] == {
        "id": "img-2", "label": 1, "confidence": 0.75, "exit": 3, "path": ["source", "a"], "latency_s": 0.25,
    }  # fmt: skip
    assert lines(path)[2] == {
        "id": "img-3", "error": "no agent holds layer 6", "confidence": None, "exit": None, "path": ["source", "a"],
        "latency_s": 0.25, "truth": 1,
    }  # fmt: skip


def test_existing_results_are_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("precious\n")
    with pytest.raises(UsageError, match=r"--results: expected a new or empty file \(or --overwrite\)"):
        ResultsWriter(path)
    assert path.read_text() == "precious\n"
    with ResultsWriter(path, overwrite=True) as writer:
        writer.write(record())
    assert len(lines(path)) == 1
    (tmp_path / "empty").touch()
    ResultsWriter(tmp_path / "empty").close()


def test_a_place_that_cannot_be_written_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"):
        ResultsWriter(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        ResultsWriter(tmp_path / "no" / "such")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_plain_error() -> None:
    with (
        ResultsWriter(Path("/dev/full")) as writer,
        pytest.raises(MdiExitError, match="No space left on device") as caught,
    ):
        writer.write(record())
    assert caught.value.exit_status == 1


def test_a_disk_that_fills_within_a_line_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    with ResultsWriter(path) as writer:
        writer.write(record())

        def half(file: Any, line: bytes) -> None:
            file.write(line[:20])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(mdi_exit.results, "_write_all", half)
            with pytest.raises(MdiExitError, match="No space left"):
                writer.write(record(2))
        assert [line["id"] for line in lines(path)] == ["img-1"]
        writer.write(record(3))
    assert [line["id"] for line in lines(path)] == ["img-1", "img-3"], "no hole where the half line was"


def test_dash_is_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with ResultsWriter(Path("-")) as writer:
        writer.write(record())
    assert json.loads(capsys.readouterr().out)["id"] == "img-1"


def finished(builder: SummaryBuilder, **changes: Any) -> Summary:
    arguments: dict[str, Any] = {
        "admitted": builder.completed + builder.errors, "pending": 0, "refused": 4, "duplicates": 2, "retried": 1,
        "elapsed_s": 10.0, "bytes_sent": {"source": 12_345, "a": 10},
    }  # fmt: skip
    return builder.finish(**(arguments | changes))


def builder() -> SummaryBuilder:
    made = SummaryBuilder()
    for number in range(100):
        made.add(record(number, label=number % 2, truth=1 if number < 50 else None, exit=1 if number < 75 else 8,
                        latency_s=(number + 1) / 100))  # fmt: skip
    made.add(record(label=None, error="deadline passed"))
    return made


def test_summary_totals() -> None:
    summary = finished(builder())
    assert (summary.admitted, summary.completed, summary.errors, summary.pending) == (101, 100, 1, 0)
    assert summary.balanced
    assert summary.accuracy == 0.5
    assert summary.rate_per_s == 10
    assert summary.exits == {1: 75, 8: 25}
    assert summary.latency_s is not None
    assert summary.latency_s.p50 == pytest.approx(0.505)
    assert summary.latency_s.p90 == pytest.approx(0.901)
    assert not finished(builder(), admitted=200).balanced


def test_summary_of_nothing_has_no_invented_figures() -> None:
    summary = finished(SummaryBuilder(), elapsed_s=0.0)
    assert (summary.accuracy, summary.latency_s, summary.rate_per_s) == (None, None, 0.0)


def test_percentiles_beyond_the_exact_limit_are_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdi_exit.results, "_EXACT_LATENCIES", 500)
    made = SummaryBuilder()
    for number in range(5000):
        made.add(record(number, latency_s=number / 5000))
    summary = finished(made)
    assert summary.latency_s is not None
    assert summary.latency_s.p50 == pytest.approx(0.5, abs=0.1)


def test_summary_file_has_the_documented_fields(tmp_path: Path) -> None:
    finished(builder()).write(tmp_path / "summary.json")
    row = json.loads((tmp_path / "summary.json").read_text())
    documented = "admitted completed errors pending refused duplicates accuracy rate_per_s latency_s exits bytes_sent"
    assert set(documented.split()) <= set(row)
    assert set(row["latency_s"]) == {"p50", "p90", "p99"}
    assert row["exits"] == {"1": 75, "8": 25}
    assert row["admitted"] == row["completed"] + row["errors"] + row["pending"]
    with pytest.raises(MdiExitError, match="could not write"):
        finished(builder()).write(tmp_path / "no" / "summary.json")


def test_energy_is_by_node_and_by_item_only_where_all_that_worked_is_known() -> None:
    energy = RunEnergy({"a": 30.0, "b": 20.0}, {"a": "estimate", "b": "estimate"}, 50.0)
    summary = finished(builder(), energy=energy, worked={"a", "b"})
    assert (summary.energy_j, summary.joules_per_item) == ({"a": 30.0, "b": 20.0}, 0.5)
    assert summary.energy_method == {"a": "estimate", "b": "estimate"}
    shown = [row for row in summary.rows() if "energy" in row[0]]
    assert [amount for _, amount, _ in shown] == ["30 J", "20 J", "0.5 J"]
    assert all("estimate" in meaning for _, _, meaning in shown)
    assert finished(builder(), energy=energy, worked={"a", "c"}).joules_per_item is None
    assert finished(SummaryBuilder(), energy=energy, worked={"a"}).joules_per_item is None
    nothing = finished(builder(), energy=RunEnergy({}, {}, 0.0), worked=set())
    assert (nothing.energy_j, nothing.joules_per_item) == ({}, None)


@pytest.mark.parametrize("terminal", [True, False])
def test_people_can_read_it(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system="standard" if terminal else None)
    finished(builder(), emulated="jetson-nano", single_process_per_s=2500.0).render(console)
    text = out.getvalue()
    for part in ("admitted", "1 x deadline passed", "50.0 %", "exit 8", "12.3 kB", "jetson-nano", "2500/s"):
        assert part in text
    assert ("\x1b" in text) == terminal
