from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mdi_exit.errors import MdiExitError, StartError, UsageError
from mdi_exit.events import LifeTotals, Record
from mdi_exit.journal import (
    AdmittedRow,
    FinishedRow,
    Identity,
    Journal,
    JournalFullError,
    Life,
    ReplyRow,
    RequestRow,
    SentRow,
)
from mdi_exit.wire import Reply, ResultRow

IDENTITY = Identity("home", "source", "ab" * 16, "shipped", "f" * 64, "/data/r.jsonl")


def admitted(item: int, payload: bytes | None = None, client: str = "", request: str = "") -> AdmittedRow:
    return AdmittedRow(
        item, f"img/{item}", item % 3, item - 1, 1000.0 + item, 2.5, client, request, 12, (1, 3), payload
    )


def finished(item: int, label: int | None = 1, latency_s: float = 0.25) -> FinishedRow:
    row = (
        ResultRow(item, 0, ("source", "a"), 2, label, 0.75)
        if label is not None
        else ResultRow(item, 0, (), error="lost")
    )
    return FinishedRow(Record(f"img/{item}", item % 3, row, latency_s))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_what_is_committed_is_there_in_the_next_life(path: Path) -> None:
    life = Life(LifeTotals(retried=3, replies={"label": 1}), position=7, drawn=6, elapsed_s=1.5)
    journal = Journal(path, IDENTITY)
    request = RequestRow("cam", "r1", "uint8", (2, 2), memoryview(b"abcd"), 1000.0, 9.0, True)
    journal.commit([admitted(1), admitted(2, b"\0" * 12), request, admitted(3, None, "cam", "r1"), finished(1)], life)
    journal.commit([ReplyRow(Reply("cam", "r0", 4, confidence=0.5), False), SentRow("cam", "r0")])
    journal.close()
    left = Journal(path, IDENTITY).left()
    assert left.lives == 2
    assert left.life == life
    assert left.items == (admitted(2, b"\0" * 12), admitted(3, None, "cam", "r1"))
    assert left.finished == (finished(1),)
    assert left.requests == (RequestRow("cam", "r1", "uint8", (2, 2), b"abcd", 1000.0, 9.0, True),)
    assert left.replies == (ReplyRow(Reply("cam", "r0", 4, confidence=0.5), False, True),)
    assert left.admitted == 3
    assert not left.complete


def test_a_reply_takes_the_place_of_its_request(path: Path) -> None:
    journal = Journal(path, IDENTITY)
    journal.commit([RequestRow("cam", "r1", "image", (), b"x" * 100, 1000.0, None, False)])
    journal.commit([ReplyRow(Reply("cam", "r1", error="refused", reason="full"), False)])
    left = journal.left()
    assert left.requests == ()
    assert [(row.reply.id, row.sent) for row in left.replies] == [("r1", False)]


def test_finished_items_that_are_elsewhere_only_count(path: Path) -> None:
    journal = Journal(path, IDENTITY)
    journal.commit([admitted(item) for item in range(1, 8)])
    journal.commit([finished(2), finished(1, None), finished(5), finished(4)])
    journal.compact(3, 300)
    left = journal.left()
    assert left.finished == (finished(4),)
    assert [row.item for row in left.items] == [3, 6, 7]
    assert (left.counts.finished, left.counts.completed, left.counts.errors, left.counts.results_bytes) == (
        3,
        2,
        1,
        300,
    )
    assert left.counts.exits == {2: 2}
    assert left.counts.reasons == {"lost": 1}
    assert left.admitted == 7
    assert list(left.latencies_s) == [0.25, 0.25]


def test_the_file_does_not_grow_with_what_has_gone_through_it(path: Path) -> None:
    journal = Journal(path, IDENTITY, "normal")
    sizes = []
    for first in range(1, 20_001, 100):
        journal.commit([admitted(item, bytes(3000)) for item in range(first, first + 100)])
        journal.commit([finished(item) for item in range(first, first + 100)])
        journal.compact(100, first)
        sizes.append(journal.size_bytes)
    # 60 MB of tensors have gone through it.
    assert max(sizes[100:]) <= max(sizes[:100]) + 4 * 20_000
    assert max(sizes) < 8_000_000


def test_a_transaction_is_all_or_nothing(path: Path) -> None:
    journal = Journal(path, IDENTITY)
    journal.commit([admitted(1)])
    with pytest.raises(MdiExitError, match="UNIQUE"):
        journal.commit([admitted(2), admitted(1)])
    assert [row.item for row in journal.left().items] == [1]
    journal.commit([admitted(2)])


def test_full_is_said_and_nothing_is_half_written(path: Path) -> None:
    journal = Journal(path, IDENTITY)
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(JournalFullError, match="full"):
        journal.commit([admitted(item, bytes(4000)) for item in range(1, 20)])
    assert journal.left().items == ()
    journal._database.execute(f"PRAGMA max_page_count={pages + 100}")
    journal.commit([admitted(1)])
    assert len(journal.left().items) == 1


def test_one_source_at_a_time(path: Path) -> None:
    first = Journal(path, IDENTITY)
    with pytest.raises(StartError, match="no other source uses"):
        Journal(path, IDENTITY)
    first.close()
    Journal(path, IDENTITY).close()


@pytest.mark.parametrize("field", Identity.__struct_fields__)
def test_anothers_journal_is_refused_in_one_line(path: Path, field: str) -> None:
    Journal(path, IDENTITY).close()
    changed = {name: getattr(IDENTITY, name) for name in Identity.__struct_fields__} | {field: "other"}
    with pytest.raises(UsageError, match="that it was begun with") as caught:
        Journal(path, Identity(**changed))
    assert "\n" not in str(caught.value)
    Journal(path, IDENTITY).close()


def test_what_is_no_journal_is_left_alone(path: Path) -> None:
    path.write_text("my diary\n" * 1000)
    with pytest.raises(UsageError, match="a journal, or a new file"):
        Journal(path, IDENTITY)
    assert path.read_text() == "my diary\n" * 1000


def test_another_programs_database_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE mine(x)")
    database.close()
    with pytest.raises(UsageError, match="another program's database"):
        Journal(path, IDENTITY)


def test_a_later_version_is_refused(path: Path) -> None:
    Journal(path, IDENTITY).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=2")
    database.close()
    with pytest.raises(UsageError, match=r"of version 1, got .* of version 2"):
        Journal(path, IDENTITY)
