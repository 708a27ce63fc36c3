"""A source that dies at any point goes on with each item's result in the file exactly once.

The files are taken as they are at some moment between or within two writes. After a loss of power the end of the journal's
log and of the file of results may be missing too, each for itself.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mdi_exit.events import LifeTotals, Record
from mdi_exit.journal import AdmittedRow, FinishedRow, Identity, Journal, Life, Operation
from mdi_exit.results import ResultsWriter
from mdi_exit.wire import ResultRow
from source.restart import mended, reconcile

IDENTITY = Identity("home", "source", "ab" * 16, "shipped", "", "r")
SAMPLES = 60


class Source:
    """What a source does with its journal, step by step, with an input of 60 samples."""

    def __init__(self, folder: Path, rng: Random) -> None:
        self.folder, self.rng = folder, rng
        self.results = folder / "results.jsonl"
        self.journal = Journal(folder / "journal", IDENTITY, "normal")
        left, writer = reconcile(self.journal, self.results, (), overwrite=False)
        assert writer is not None
        self.writer: ResultsWriter = writer
        self.position, self.next_item = left.life.position, left.admitted + 1
        self.had = left.had
        self.running = {row.item: row.sample for row in left.items}
        self.operations: list[Operation] = []
        self.finished: list[Record] = []
        self.uncompacted = 0
        self.totals = (left.counts.completed, len(left.items))

    def step(self) -> None:
        self.rng.choice((self.draw, self.draw, self.finish, self.finish, self.commit, self.compact))()

    def draw(self) -> None:
        if self.position < SAMPLES:
            sample = f"s/{self.position}"
            self.position += 1
            if sample in self.had:
                return
            self.operations.append(AdmittedRow(self.next_item, sample, None, self.position - 1, 0.0, None, "", "", 4))
            self.running[self.next_item] = sample
            self.next_item += 1

    def finish(self) -> None:
        if self.running:
            item = self.rng.choice(list(self.running))
            record = Record(self.running.pop(item), None, ResultRow(item, 0, ("a",), 0, item % 10, 0.5), 0.1)
            self.operations.append(FinishedRow(record))

    def commit(self) -> None:
        """One batch: first the journal, then the lines."""
        records = [one.record for one in self.operations if isinstance(one, FinishedRow)]
        self.journal.commit(self.operations, Life(LifeTotals(), self.position, self.position))
        self.operations = []
        self.finished += records
        if self.rng.random() < 0.8:
            self.write()

    def write(self) -> None:
        if self.finished:
            self.writer.write_all(self.finished)
            self.uncompacted += len(self.finished)
            self.finished = []

    def compact(self) -> None:
        self.write()
        self.writer.sync()
        self.journal.compact(self.uncompacted, self.writer.whole_bytes)
        self.uncompacted = 0

    def dies(self, folder: Path, *, power: bool) -> None:
        """Its files, as they are found later."""
        folder.mkdir()
        torn = b""
        if self.finished:  # in the middle of a write
            lines = b"".join(self.writer.line(record, ()) for record in self.finished)
            torn = lines[: self.rng.randrange(len(lines))]
        for name in ("journal", "journal-wal"):
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, folder / name)
        self.journal.close()
        self.writer.close()
        written = self.results.read_bytes() + torn
        if power:
            log = folder / "journal-wal"
            if log.exists():
                raw = log.read_bytes()
                log.write_bytes(raw[: self.rng.randrange(len(raw) + 1)])
            probe = folder / "probe"
            probe.mkdir()
            for name in ("journal", "journal-wal"):
                if (folder / name).exists():
                    shutil.copy(folder / name, probe / name)
            begun = Journal(probe / "journal", IDENTITY)
            known = begun.left().counts.results_bytes  # these were waited for before the journal said so
            begun.close()
            written = written[: self.rng.randint(known, len(written))]
        (folder / "results.jsonl").write_bytes(written)

    def goes_to_the_end(self) -> list[str]:
        while self.position < SAMPLES or self.running:
            self.draw()
            self.finish()
            self.commit()
        self.compact()
        self.journal.close()
        self.writer.close()
        return [record.sample for record in mended(self.results, 0)]


@given(seed=st.integers(0, 2**32), lives=st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_each_item_is_once_in_the_file(seed: int, lives: list[tuple[int, bool]]) -> None:
    rng = Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "0"
        folder.mkdir()
        source = Source(folder, rng)
        source.compact()
        source.commit()
        _to_the_disk(source)
        for number, (steps, power) in enumerate(lives, 1):
            for _ in range(steps):
                source.step()
            folder = Path(name) / str(number)
            source.dies(folder, power=power)
            source = Source(folder, rng)
            _to_the_disk(source)
            recorded = [record.sample for record in mended(source.results, 0)]
            assert len(set(recorded)) == len(recorded)
            assert source.totals == (len(recorded), len(source.running))
        everything = source.goes_to_the_end()
        assert Counter(everything) == Counter(f"s/{number}" for number in range(SAMPLES))


def _to_the_disk(source: Source) -> None:
    """Schema and identity are on the disk: before, there is no journal that could be gone on with."""
    source.journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
