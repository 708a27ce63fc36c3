"""The journal and the file of results are made one again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdi_exit.errors import UsageError
from mdi_exit.events import Record
from mdi_exit.journal import AdmittedRow, FinishedRow, Identity, Journal, Left
from mdi_exit.results import ResultsWriter
from mdi_exit.wire import ResultRow
from source.restart import mended, reconcile
from source.sinks import results_file

IDENTITY = Identity("home", "source", "ab" * 16, "shipped", "", "r")
LABELS = ("shirt", "bag")


def record(item: int, error: str | None = None, sample: str = "") -> Record:
    row = ResultRow(item, 0, ("a", "b"), 1, item % 2, 0.5) if error is None else ResultRow(item, 0, ("a",), error=error)
    return Record(sample or f"img/{item}", item % 2, row, 0.125)


def admitted(item: int) -> AdmittedRow:
    return AdmittedRow(item, f"img/{item}", item % 2, item - 1, 0.0, None, "", "", 4)


def lines_of(path: Path, records: list[Record]) -> bytes:
    other = path.with_name("expected" + path.suffix)
    with results_file(other, overwrite=True) as writer:
        writer.write_all(records, LABELS)
    return other.read_bytes()


class Crashed:
    """A journal of an earlier life with ``finished`` items, one that is unfinished, and a file as the crash left it."""

    def __init__(self, folder: Path, suffix: str, finished: list[Record]) -> None:
        self.results = folder / f"results{suffix}"
        self.path = folder / "journal.db"
        journal = Journal(self.path, IDENTITY)
        journal.begin()
        journal.commit([admitted(item) for item in range(1, 10)])
        journal.commit([FinishedRow(one) for one in finished])
        journal.close()

    def goes_on(self) -> Left:
        journal = Journal(self.path, IDENTITY)
        left, writer = reconcile(journal, self.results, LABELS, overwrite=False)
        assert writer is not None
        writer.close()
        journal.close()
        return left


FINISHED = [record(1), record(3, 'no answer, "really"\nnot'), record(2)]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_wherever_the_file_breaks_off_it_holds_each_item_once_after(tmp_path: Path, suffix: str) -> None:
    whole = lines_of(tmp_path / f"x{suffix}", FINISHED)
    for stop in range(len(whole) + 1):
        folder = tmp_path / str(stop)
        folder.mkdir()
        crashed = Crashed(folder, suffix, FINISHED)
        crashed.results.write_bytes(whole[:stop])
        left = crashed.goes_on()
        assert sorted(crashed.results.read_bytes().splitlines()) == sorted(whole.splitlines()), stop
        assert (left.finished, left.counts.finished, left.had) == ((), 3, frozenset())
        assert left.counts.results_bytes == crashed.results.stat().st_size
        assert [row.item for row in left.items] == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_lines_that_the_journal_lacks_count_as_finished(tmp_path: Path, suffix: str) -> None:
    """A loss of power may take the journal's last transactions, where it was not told to wait for the disk."""
    crashed = Crashed(tmp_path, suffix, FINISHED[:1])
    unfinished, never_admitted = record(4), record(77, sample="img/77")
    crashed.results.write_bytes(lines_of(crashed.results, [FINISHED[0], unfinished, never_admitted]))
    left = crashed.goes_on()
    assert left.had == {"img/77"}
    assert [row.item for row in left.items] == [2, 3, 5, 6, 7, 8, 9]
    assert (left.counts.finished, left.counts.completed, left.counts.right, left.admitted) == (3, 3, 3, 10)
    again = crashed.goes_on()
    assert (again.counts, again.had) == (left.counts, left.had)
    assert len(mended(crashed.results, 0)) == 3


def test_a_file_that_lost_what_it_had_is_refused(tmp_path: Path) -> None:
    crashed = Crashed(tmp_path, ".jsonl", FINISHED)
    crashed.goes_on()
    crashed.results.write_bytes(b"")
    with pytest.raises(UsageError, match="the file that the journal goes with"):
        crashed.goes_on()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    crashed = Crashed(tmp_path, ".jsonl", FINISHED)
    crashed.results.write_text("dear diary\n")
    with pytest.raises(UsageError, match="results as this program writes them"):
        crashed.goes_on()


def test_the_first_life_does_not_overwrite_unasked(tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    results.write_text("{}\n")
    for _ in range(2):
        journal = Journal(tmp_path / "j", IDENTITY)
        with pytest.raises(UsageError, match="--overwrite"):
            reconcile(journal, results, LABELS, overwrite=False)
        journal.close()
    assert results.read_text() == "{}\n"


def test_a_failed_write_leaves_the_header_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.csv"
    with results_file(path) as writer:
        with monkeypatch.context() as broken:
            broken.setattr("mdi_exit.results._write_all", _full)
            with pytest.raises(Exception, match="No space"):
                writer.write(record(1), LABELS)
        writer.write(record(1), LABELS)
    assert path.read_bytes() == lines_of(path, [record(1)])


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_writer_that_goes_on_appends(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ResultsWriter(path) as writer:
        writer.write(record(1), LABELS)
    with ResultsWriter(path, go_on=True) as writer:
        writer.write(record(2), LABELS)
    assert path.read_bytes() == lines_of(path, [record(1), record(2)])
