"""The source's journal: what it has admitted, answered and finished, in an SQLite file that outlives it.

One writer, for as long as it is open. ``commit`` is one transaction, all of it or nothing. Finished items stay until
``compact`` is told that their results are elsewhere for good: then they only count in the totals. So the file is as large as
what is under way, the last replies, and four bytes of latency for each of the first 200,000 items.
"""

from __future__ import annotations

import contextlib
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from mdi_exit.errors import MdiExitError, StartError, UsageError
from mdi_exit.events import LifeTotals, Record
from mdi_exit.wire import Reply, ResultRow

__all__ = [
    "SYNCS",
    "AdmittedRow",
    "Counts",
    "FinishedRow",
    "HadRow",
    "Identity",
    "Journal",
    "JournalFullError",
    "Left",
    "Life",
    "Operation",
    "ReplyRow",
    "RequestRow",
    "SentRow",
]

SYNCS: Final = ("full", "normal")
_VERSION: Final = 1
_APPLICATION: Final = 0x4D444958
_WAL_BYTES: Final = 16 * 1024 * 1024
_LATENCIES: Final = 200_000
_REPLIES: Final = 16_384
_REASONS: Final = 100

_SCHEMA: Final = """
CREATE TABLE about(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE items(
  item INTEGER PRIMARY KEY, sample TEXT NOT NULL, truth INTEGER, position INTEGER NOT NULL, at REAL NOT NULL, deadline_s REAL,
  client TEXT NOT NULL, request TEXT NOT NULL, size_bytes INTEGER NOT NULL, shape BLOB NOT NULL, payload BLOB,
  place INTEGER, result BLOB, latency_s REAL);
CREATE INDEX finished ON items(place) WHERE place IS NOT NULL;
CREATE TABLE requests(
  number INTEGER PRIMARY KEY, client TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, shape BLOB NOT NULL,
  data BLOB NOT NULL, at REAL NOT NULL, deadline_s REAL, plain INTEGER NOT NULL, UNIQUE(client, id));
CREATE TABLE replies(
  number INTEGER PRIMARY KEY, client TEXT NOT NULL, id TEXT NOT NULL, reply BLOB NOT NULL, plain INTEGER NOT NULL,
  sent INTEGER NOT NULL, UNIQUE(client, id));
CREATE TABLE had(sample TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE latencies(number INTEGER PRIMARY KEY, seconds BLOB NOT NULL);
"""

_encode = msgspec.msgpack.encode


class JournalFullError(MdiExitError):
    """The journal cannot be written now; nothing of the transaction is in it."""


class Identity(Struct, frozen=True):
    """Whose journal it is. ``fingerprint``: of what the input gives, in order; ``results``: the file of results, or empty."""

    deployment: str
    name: str
    model: str
    input: str
    fingerprint: str
    results: str


class AdmittedRow(Struct, frozen=True):
    """An admitted item. ``at``: seconds since 1970; ``payload``: its tensor, float32, where nothing can give it again."""

    item: int
    sample: str
    truth: int | None
    position: int
    at: float
    deadline_s: float | None
    client: str
    request: str
    size_bytes: int
    shape: tuple[int, ...] = ()
    payload: Any = None  # bytes-like


class FinishedRow(Struct, frozen=True):
    """The one result of an admitted item."""

    record: Record


class RequestRow(Struct, frozen=True):
    """A request as it came, at ``at`` seconds since 1970."""

    client: str
    id: str
    kind: str
    shape: tuple[int, ...]
    data: Any  # bytes-like
    at: float
    deadline_s: float | None
    plain: bool


class ReplyRow(Struct, frozen=True):
    """The answer to a request, which then need not be kept."""

    reply: Reply
    plain: bool
    sent: bool = False


class SentRow(Struct, frozen=True):
    """The broker has this reply."""

    client: str
    id: str


class HadRow(Struct, frozen=True):
    """A sample that the input has yet to give has its result already."""

    sample: str


Operation = AdmittedRow | FinishedRow | RequestRow | ReplyRow | SentRow | HadRow


class Life(Struct, frozen=True):
    """What cannot be told from the rows. ``position``: where the input goes on; ``drawn``: samples that it gave so far;
    ``elapsed_s``: of all lives; ``ended``: nothing is left to do.
    """

    totals: LifeTotals = LifeTotals()
    position: int = 0
    drawn: int = 0
    elapsed_s: float = 0.0
    ended: bool = False


class Counts(Struct):
    """Of the finished items that are no longer in the journal; ``results_bytes``: of the file that holds their results."""

    finished: int = 0
    completed: int = 0
    errors: int = 0
    right: int = 0
    judged: int = 0
    exits: dict[int, int] = {}
    reasons: dict[str, int] = {}
    results_bytes: int = 0

    def add(self, record: Record) -> None:
        row = record.row
        self.finished += 1
        if row.label is None:
            self.errors += 1
            reason = row.error or "no label"
            reason = reason if reason in self.reasons or len(self.reasons) < _REASONS else "other"
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
            return
        self.completed += 1
        self.exits[row.exit] = self.exits.get(row.exit, 0) + 1
        if record.truth is not None:
            self.judged += 1
            self.right += row.label == record.truth


class Left(Struct, frozen=True):
    """What earlier lives have left. ``lives``: how many have begun, this one included; ``finished``: results in the order of
    their coming that may not be elsewhere yet; ``items``: without a result; ``requests``: without a reply; ``replies``: the
    last ones, oldest first; ``had``: samples to come that have their results already.
    """

    lives: int
    life: Life
    counts: Counts
    finished: tuple[FinishedRow, ...]
    items: tuple[AdmittedRow, ...]
    requests: tuple[RequestRow, ...]
    replies: tuple[ReplyRow, ...]
    latencies_s: array[float]
    had: frozenset[str] = frozenset()

    @property
    def admitted(self) -> int:
        return self.counts.finished + len(self.finished) + len(self.items)

    @property
    def complete(self) -> bool:
        """Nothing is left to do."""
        return self.life.ended and not self.items and not self.requests


class Journal:
    """An open journal. Use from one thread at a time.

    Raises ``UsageError`` for a file that is none, or somebody else's; ``StartError`` for one that is in use.
    """

    def __init__(self, path: Path, identity: Identity, sync: str = "full") -> None:
        """``sync``: one of ``SYNCS``."""
        self.path = path
        try:
            self._database = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise UsageError("--journal", "a file that can be written", f"{path}: {error}") from None
        try:
            self._begin(identity, sync)
        except BaseException:
            self._database.close()
            raise

    def _begin(self, identity: Identity, sync: str) -> None:
        try:
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")  # and no file of shared memory
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute(f"PRAGMA synchronous={sync.upper()}")
            self._database.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
            self._database.execute("BEGIN EXCLUSIVE")
            self._check_version()
            self._check_identity(identity)
            self.lives = self._about("lives", int, 0) + 1
            self._tell("lives", self.lives)
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StartError(
                    f"journal {self.path}: expected one that no other source uses, got one in use"
                ) from None
            raise UsageError("--journal", "a file that can be written", f"{self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise UsageError("--journal", "a journal, or a new file", f"{self.path}: {error}") from None
        self._counts = self._about("counts", Counts, Counts())
        self._place = self._one("SELECT coalesce(max(place), 0) FROM items")
        self._latencies = self._one("SELECT coalesce(sum(length(seconds)), 0) / 4 FROM latencies")

    def _check_version(self) -> None:
        version, application = self._one("PRAGMA user_version"), self._one("PRAGMA application_id")
        tables = self._one("SELECT count(*) FROM sqlite_master")
        if not tables:
            for statement in _SCHEMA.split(";"):
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version={_VERSION}")
            self._database.execute(f"PRAGMA application_id={_APPLICATION}")
        elif application != _APPLICATION:
            raise UsageError("--journal", "a journal, or a new file", f"{self.path}, another program's database")
        elif version != _VERSION:
            raise UsageError("--journal", f"a journal of version {_VERSION}", f"{self.path} of version {version}")

    def _check_identity(self, identity: Identity) -> None:
        known = self._about("identity", Identity, None)
        if known is None:
            self._tell("identity", identity)
            return
        for field in Identity.__struct_fields__:
            was, now = getattr(known, field), getattr(identity, field)
            if was != now:
                what = "input (its samples are others)" if field == "fingerprint" else field
                raise UsageError(
                    f"--journal {self.path}", f"the {what} that it was begun with, {_short(was)}", _short(now)
                )

    # --- writing

    @property
    def begun(self) -> bool:
        """The file of results is this journal's own."""
        return bool(self._about("begun", bool, False))

    def begin(self) -> None:
        """From now on it is. Raises ``JournalFullError``."""
        with self._transaction():
            self._tell("begun", True)

    def commit(self, operations: Sequence[Operation], life: Life | None = None) -> None:
        """All of it, or nothing. Raises ``JournalFullError``."""
        with self._transaction():
            for operation in operations:
                self._do(operation)
            if life is not None:
                self._tell("life", life)

    def compact(self, records: int, results_bytes: int) -> None:
        """The first ``records`` finished items are to be found elsewhere from now on. Raises ``JournalFullError``."""
        counts = msgspec.msgpack.decode(_encode(self._counts), type=Counts)
        latencies_s: array[float] = array("f")
        with self._transaction():
            rows = self._finished(records)
            for place, _, record in rows:
                counts.add(record)
                if record.row.label is not None and self._latencies + len(latencies_s) < _LATENCIES:
                    latencies_s.append(record.latency_s)
                last = place
            if rows:
                self._database.execute("DELETE FROM items WHERE place IS NOT NULL AND place <= ?", (last,))
            if latencies_s:
                self._database.execute("INSERT INTO latencies(seconds) VALUES (?)", (latencies_s.tobytes(),))
            self._database.execute(
                "DELETE FROM replies WHERE sent AND number <= (SELECT max(number) FROM replies) - ?", (_REPLIES,)
            )
            counts.results_bytes = results_bytes
            self._tell("counts", counts)
        self._counts = counts
        self._latencies += len(latencies_s)

    def close(self) -> None:
        self._database.close()

    @property
    def size_bytes(self) -> int:
        """Of the file and its log."""
        total = 0
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield
            self._database.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._roll_back()
            raise JournalFullError(f"journal {self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            self._roll_back()
            raise MdiExitError(f"journal {self.path}: {error}") from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def _do(self, operation: Operation) -> None:
        run = self._database.execute
        match operation:
            case AdmittedRow():
                run(
                    "INSERT INTO items(item, sample, truth, position, at, deadline_s, client, request, size_bytes, shape,"
                    " payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        operation.item, operation.sample, operation.truth, operation.position, operation.at,
                        operation.deadline_s, operation.client, operation.request, operation.size_bytes,
                        _encode(operation.shape), None if operation.payload is None else bytes(operation.payload),
                    ),
                )  # fmt: skip
            case FinishedRow(record):
                self._place += 1
                run(
                    "UPDATE items SET place = ?, result = ?, latency_s = ?, payload = NULL WHERE item = ?",
                    (self._place, _encode(record.row), record.latency_s, record.row.item),
                )
            case RequestRow():
                run(
                    "INSERT OR REPLACE INTO requests(client, id, kind, shape, data, at, deadline_s, plain)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        operation.client, operation.id, operation.kind, _encode(operation.shape), bytes(operation.data),
                        operation.at, operation.deadline_s, operation.plain,
                    ),
                )  # fmt: skip
            case ReplyRow(reply, plain, sent):
                run("DELETE FROM requests WHERE client = ? AND id = ?", (reply.client, reply.id))
                run(
                    "INSERT OR REPLACE INTO replies(client, id, reply, plain, sent) VALUES (?, ?, ?, ?, ?)",
                    (reply.client, reply.id, _encode(reply), plain, sent),
                )
            case HadRow(sample):
                run("INSERT OR REPLACE INTO had VALUES (?)", (sample,))
            case SentRow(client, identity):
                run("UPDATE replies SET sent = 1 WHERE client = ? AND id = ?", (client, identity))

    # --- reading

    def left(self) -> Left:
        """What is in the journal."""
        items = self._database.execute(
            "SELECT item, sample, truth, position, at, deadline_s, client, request, size_bytes, shape, payload FROM items"
            " WHERE place IS NULL ORDER BY item"
        )
        requests = self._database.execute(
            "SELECT client, id, kind, shape, data, at, deadline_s, plain FROM requests ORDER BY number"
        )
        replies = self._database.execute("SELECT reply, plain, sent FROM replies ORDER BY number")
        latencies_s: array[float] = array("f")
        for (seconds,) in self._database.execute("SELECT seconds FROM latencies ORDER BY number"):
            latencies_s.frombytes(seconds)
        return Left(
            lives=self.lives,
            life=self._about("life", Life, Life()),
            counts=msgspec.msgpack.decode(_encode(self._counts), type=Counts),
            finished=tuple(FinishedRow(record) for _, _, record in self._finished()),
            items=tuple(_admitted(row) for row in items),
            requests=tuple(
                RequestRow(client, identity, kind, _shape(shape), data, at, deadline_s, bool(plain))
                for client, identity, kind, shape, data, at, deadline_s, plain in requests
            ),
            replies=tuple(
                ReplyRow(msgspec.msgpack.decode(reply, type=Reply), bool(plain), bool(sent))
                for reply, plain, sent in replies
            ),
            latencies_s=latencies_s,
            had=frozenset(sample for (sample,) in self._database.execute("SELECT sample FROM had")),
        )

    def _finished(self, most: int = -1) -> list[tuple[int, int, Record]]:
        rows = self._database.execute(
            "SELECT place, item, sample, truth, result, latency_s FROM items WHERE place IS NOT NULL ORDER BY place LIMIT ?",
            (most,),
        )
        return [
            (place, item, Record(sample, truth, msgspec.msgpack.decode(result, type=ResultRow), latency_s))
            for place, item, sample, truth, result, latency_s in rows
        ]

    def _one(self, query: str) -> int:
        found = self._database.execute(query).fetchone()
        return int(found[0])

    def _about(self, key: str, kind: Any, default: Any) -> Any:
        found = self._database.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return default if found is None else msgspec.msgpack.decode(found[0], type=kind)

    def _tell(self, key: str, value: Any) -> None:
        self._database.execute("INSERT OR REPLACE INTO about(key, value) VALUES (?, ?)", (key, _encode(value)))


def _admitted(row: tuple[Any, ...]) -> AdmittedRow:
    item, sample, truth, position, at, deadline_s, client, request, size_bytes, shape, payload = row
    return AdmittedRow(
        item, sample, truth, position, at, deadline_s, client, request, size_bytes, _shape(shape), payload
    )


def _shape(raw: bytes) -> tuple[int, ...]:
    return msgspec.msgpack.decode(raw, type=tuple[int, ...])


def _short(value: str) -> str:
    return (value if len(value) <= 60 else f"{value[:12]}...") or "none"
