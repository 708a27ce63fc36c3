"""Labelled texts from files, and what they become."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tokenizers", reason="needs the extra 'text'")
pytest.importorskip("torch", reason="needs the extra 'torch'")

from tiny_bert import WORDS, table, tokenizer_file

from mdi_exit.data import splits
from mdi_exit.data.texts import from_text, words_of
from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.modality.text import TextInput
from mdi_exit.model.manifest import InputSpec, TextSpec

SPEC = InputSpec(kind="text", shape=(8,), text=TextSpec(tokenizer="tokenizer.json"))


def modality() -> TextInput:
    return TextInput(SPEC, tokenizer_file())


# --- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"warm, fine",good\ncold,bad\n'),
        ("a.tsv", "label\ttext\ngood\twarm, fine\nbad\tcold\n"),
        ("a.jsonl", '{"text": "warm, fine", "label": "good"}\n\n{"text": "cold", "label": "bad"}\n'),
    ],
)
def test_a_table_gives_texts_and_classes_by_name(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    found, test = from_text(tmp_path / name)
    assert test is None
    assert (found.items, found.classes, found.labels_N.tolist()) == (("warm, fine", "cold"), ("bad", "good"), [1, 0])
    assert found.kind == "text"


def test_lines_and_rows_without_a_label_have_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n")
    found, _ = from_text(tmp_path / "a.txt")
    assert (found.items, found.classes, found.labels_N.tolist()) == (("one", "two"), (), [-1, -1])
    (tmp_path / "a.csv").write_text("text,label\none,x\ntwo,\n")
    assert from_text(tmp_path / "a.csv")[0].labels_N.tolist() == [0, -1]
    with pytest.raises(UsageError, match="a label for each text, got 1 without one"):
        splits(f"text:{tmp_path / 'a.csv'}")


def test_lines_end_where_lines_of_a_file_do(tmp_path: Path) -> None:
    """A text may have what Python's ``splitlines`` takes for the end of one."""
    (tmp_path / "a.jsonl").write_bytes('{"text": "one\u2028two\x85"}\r\n\n{"text": 3}\n'.encode())
    with pytest.raises(UsageError, match=r"a\.jsonl, line 3: expected a JSON object with a text"):
        from_text(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes('{"text": "one\u2028two\x85"}\r\n'.encode())
    assert from_text(tmp_path / "a.jsonl")[0].items == ("one\u2028two\x85",)
    (tmp_path / "a.txt").write_bytes(b"one\x0ctwo\nthree\r\n")
    assert from_text(tmp_path / "a.txt")[0].items == ("one\x0ctwo", "three")


def test_a_folder_has_a_class_a_folder_and_perhaps_a_test_part(tmp_path: Path) -> None:
    for part, name, text in (("train", "ham", "a"), ("train", "spam", "b"), ("test", "spam", "c")):
        (tmp_path / part / name).mkdir(parents=True)
        (tmp_path / part / name / "1.txt").write_text(text)
    train, test = from_text(tmp_path)
    assert (train.items, train.classes) == (("a", "b"), ("ham", "spam"))
    assert test is not None
    assert (test.items, test.labels_N.tolist()) == (("c",), [1])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "word,label\nx,y\n", "a first row with text and label, got word, label"),
        ("a.jsonl", '{"text": 3}\n', "line 1: expected a JSON object with a text"),
        ("a.jsonl", "[1]\n", "line 1: expected a JSON object with a text"),
        ("a.jsonl", "{\n", "line 1: expected a JSON object"),
        ("a.txt", "\n", "at least one text, got none"),
        ("a.pdf", "x", "columns text and label"),
        ("a.csv", None, "a readable file, got No such file or directory$"),
    ],
)
def test_a_file_that_is_none_is_told_in_one_line(tmp_path: Path, name: str, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=told) as caught:
        from_text(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_texts_are_split_by_seed_like_anything_else(tmp_path: Path) -> None:
    spec = f"text:{table(tmp_path / 'a.jsonl', 100)}"
    first, again, other = splits(spec), splits(spec), splits(spec, seed=1)
    assert (first.record.train, first.record.calibration, first.record.test) == (72, 8, 20)
    assert first.record == again.record
    assert first.record.sha256 != other.record.sha256
    rows = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for part in (first.train, first.calibration, first.test):
        assert part.items == tuple(rows[position] for position in part.ids_N)
    with pytest.raises(UsageError, match="expected images, got text"):
        _ = first.train.images_NHWC


def test_of_a_mail_subject_and_words_of_the_body_count() -> None:
    mail = (
        "From: a@b.c\nReceived: from evil.example\nSubject: Win  now\nContent-Type: text/html; charset=strange\n\n"
        "<html><style>p {}</style><p>Dear &amp; friend</p>\n</html>"
    )
    assert words_of(mail) == "Win now Dear & friend"
    assert words_of("Subject: \n\n") == "(empty)"


# --- what they become


def test_a_text_is_the_numbers_of_its_tokens_each_plus_one_and_no_longer_than_the_model_takes() -> None:
    x = modality().prepared("The warm strange day")
    assert x.dtype == np.float32
    assert x.tolist() == [3, WORDS.index("the") + 1, WORDS.index("warm") + 1, 2, WORDS.index("day") + 1, 4]
    assert modality().prepared("day " * 50).shape == (8,)
    assert modality().prepared("").tolist() == [3, 4]
    assert modality().prepared("\ud800 day").shape == (4,)


def test_a_batch_holds_each_text_as_it_is_alone_and_zeros_behind() -> None:
    texts = ("day", "", "the day was warm")
    x_NT = modality().batch(texts)
    assert x_NT.shape == (3, 6)
    for row, text in zip(x_NT, texts, strict=True):
        alone = modality().prepared(text)
        assert np.array_equal(row[: len(alone)], alone)
        assert not row[len(alone) :].any()


def test_what_somebody_else_prepared_is_checked() -> None:
    good = np.array([3, 5, 4], np.float32)
    assert np.array_equal(modality().ready(good), good)
    for bad in ([3, 0, 4], [3, 4.5], [float("nan")], [2.0**25], [], list(range(1, 10))):
        with pytest.raises(ValueError, match="array: expected"):
            modality().ready(np.array(bad, np.float32))


def test_bytes_are_utf8_and_a_tokenizer_is_one() -> None:
    assert modality().read("für".encode()) == "für"
    with pytest.raises(ValueError, match="expected UTF-8"):
        modality().read(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="a file of the library tokenizers"):
        TextInput(SPEC, b"{}")
    with pytest.raises(UsageError, match="expected a text"):
        modality().prepared(np.zeros((2, 2), np.uint8))
