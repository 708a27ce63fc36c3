"""Inputs with an end: a data set, what the artifact was tested on, a folder of images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from PIL import Image

from mdi_exit.data import Dataset, load, shipped, splits
from mdi_exit.data.classes import class_map, folded, known_classes
from mdi_exit.data.given import IMAGE_SUFFIXES
from mdi_exit.data.pixels import Pixels, pixels_of, preprocess
from mdi_exit.data.sets import Items
from mdi_exit.data.speech import read_clip, speaker_of, wavs_in
from mdi_exit.data.texts import from_text, read_text_set
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.limits import MAX_IMAGE_FILE_PIXELS
from mdi_exit.modality import Raw
from mdi_exit.model.manifest import Manifest
from source.input_kinds import FOLDER, KINDS, TEST, TEXT, TEXT_SET, WAV, ParsedInput

__all__ = [
    "IMAGE_SUFFIXES",
    "Entry",
    "Input",
    "Pixels",
    "Sample",
    "checked_kind",
    "entries_of",
    "known_classes",
    "preprocess",
    "read_image",
    "truth_of",
]

_NAMED_FAILURES: Final = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """``truth``: the right class of the model in force, if it is known.

    ``position``: where its input has it, all rounds counted; -1 of an input that cannot be read again.
    """

    id: str
    raw: Raw
    truth: int | None = None
    position: int = -1


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample not read yet."""

    id: str
    read: Callable[[], Raw]
    truth: int | None


class Input:
    """Samples in order, for one pass or (``cycle``) without end; a later round's ids end in ``#2``, ``#3``, and so on.

    Iterating reads files, so a program with an event loop draws in a thread. A file that cannot be read is passed over
    and counted in ``skipped``. Raises ``MdiExitError`` when no file of a round can be read.
    """

    def __init__(self, name: str, entries: Sequence[Entry], *, cycle: bool, limit: int | None) -> None:
        self.name = name
        self.skipped = 0
        self._entries = entries
        self._cycle = cycle
        self._limit = limit
        self._begin = self._drawn = 0

    def __len__(self) -> int:
        """Samples of one round."""
        return len(self._entries)

    @property
    def fingerprint(self) -> str:
        """Of what it gives, in order; the same in every life of a source that goes on with it."""
        ids = "\0".join(entry.id for entry in self._entries)
        return hashlib.sha256(ids.encode("utf-8", "surrogateescape")).hexdigest()

    def go_on(self, position: int, drawn: int) -> None:
        """Begin there, ``drawn`` samples having been given before."""
        self._begin, self._drawn = position, drawn

    def again(self, positions: Collection[int]) -> Iterator[Sample]:
        """The samples at these positions, as far as they can be read."""
        for position in sorted(positions):
            number, place = divmod(position, len(self._entries))
            entry = self._entries[place]
            if (raw := self._read(entry, set())) is not None:
                yield _sample(entry, raw, number + 1, position)

    def __iter__(self) -> Iterator[Sample]:
        return islice(self._rounds(), None if self._limit is None else max(self._limit - self._drawn, 0))

    def _rounds(self) -> Iterator[Sample]:
        number, first = divmod(self._begin, len(self._entries))
        number += 1
        unreadable: set[str] = set()
        while number == 1 or self._cycle:
            for place, entry in enumerate(self._entries[first:], first):
                if entry.id not in unreadable and (raw := self._read(entry, unreadable)) is not None:
                    yield _sample(entry, raw, number, (number - 1) * len(self._entries) + place)
            first = 0
            if len(unreadable) == len(self._entries):
                raise MdiExitError(f"input {self.name}: none of its {len(unreadable)} files can be read")
            if number == 1 and len(unreadable) > _NAMED_FAILURES:
                log.warning("input %s: %d files could not be read", self.name, len(unreadable))
            number += 1

    def _read(self, entry: Entry, unreadable: set[str]) -> Raw | None:
        try:
            return entry.read()
        except Exception as error:  # noqa: BLE001 - decoders of broken files raise anything, even SyntaxError
            unreadable.add(entry.id)
            self.skipped += 1
            if self.skipped <= _NAMED_FAILURES:
                log.warning("input %s: %s passed over: %s", self.name, entry.id, str(error) or type(error).__name__)
            return None


def _sample(entry: Entry, raw: Raw, number: int, position: int) -> Sample:
    return Sample(entry.id if number == 1 else f"{entry.id}#{number}", raw, entry.truth, position)


def checked_kind(parsed: ParsedInput, manifest: Manifest) -> None:
    """Raises ``UsageError`` for an input that gives something else than the model takes."""
    taken = manifest.input.kind
    if (given := parsed.kind.gives) not in (taken, ""):
        forms = [kind.form for kind in KINDS if kind.gives in (taken, "")]
        raise UsageError("input", f"{taken}, as the model takes ({', '.join(forms)})", f"{parsed}, which gives {given}")
    if taken == "image" and (channels := manifest.input.shape[0]) not in (1, 3):
        raise UsageError("model input", "1 or 3 channels, to be made of images", channels)


def entries_of(parsed: ParsedInput, manifest: Manifest, data_dir: Path | None) -> tuple[str, list[Entry]]:
    """Name and entries of ``shipped``, a data set (its test part, if it has one), what the artifact was tested on, these with
    ``:N`` for the first N, texts of a file, or a folder of images or of WAV files.

    A folder is read in the order of its file names, sub-folders included; one named after a label of the model gives its
    images that truth. Raises ``UsageError``.
    """
    spec = parsed.target
    if parsed.kind is FOLDER:
        return spec, _of_folder(spec, manifest.labels)
    if parsed.kind is WAV:
        return parsed.text, _of_wavs(spec, manifest.labels)
    if parsed.kind is TEXT:
        train, test = from_text(Path(spec))
        return parsed.text, _of_dataset(test or train, manifest.labels)
    name, colon, count = spec.partition(":")
    first = _first(spec, count) if colon else None
    if parsed.kind is TEST:
        return "test", _of_dataset(_tested_on(manifest, data_dir), manifest.labels)[:first]
    if parsed.kind is TEXT_SET:
        dataset = read_text_set(name, data_dir)
    else:
        dataset = shipped() if name == "shipped" else load(name, "test", data_dir)
    return name, _of_dataset(dataset, manifest.labels)[:first]


def _tested_on(manifest: Manifest, data_dir: Path | None) -> Dataset:
    """The test samples of the split that the artifact records."""
    record = manifest.data
    if record is None:
        raise UsageError("input test", "an artifact that says what it was tested on", "one that does not")
    parts = splits(
        record.spec, seed=record.seed, data_dir=data_dir, calibration=record.calibration, shape=manifest.input.shape
    )
    if parts.record != record:
        raise UsageError(
            "input test", f"the data that the artifact was trained and tested on ({record.spec})", "other data"
        )
    return parts.test


def _first(spec: str, count: str) -> int:
    if not (count.isascii() and count.isdecimal()) or int(count) == 0:
        raise UsageError("input", "NAME or NAME:N with N of at least 1", repr(spec))
    return int(count)


# --- data sets


def _of_dataset(dataset: Dataset, labels: Sequence[str]) -> list[Entry]:
    class_of = _truths(dataset, labels)
    return [
        Entry(f"{dataset.name}/{position}", partial(_item, dataset.items, index), class_of.get(label))
        for index, (position, label) in enumerate(zip(dataset.ids_N.tolist(), dataset.labels_N.tolist(), strict=True))
    ]


def _item(items: Items, index: int) -> Raw:
    return items[index]


def _truths(dataset: Dataset, labels: Sequence[str]) -> dict[int, int]:
    """The model's class for each class of the data set; by name, since a model may know others, or another order."""
    class_of = class_map(dataset.classes, labels)
    if not class_of and (dataset.labels_N >= 0).any():
        log.warning("input %s: none of its classes is one of the model's: accuracy will not be known", dataset.name)
    return class_of


# --- folders


def _of_folder(spec: str, labels: Sequence[str]) -> list[Entry]:
    folder = Path(spec).expanduser()
    if not folder.is_dir():
        raise UsageError(
            "input",
            "one of " + ", ".join(kind.form for kind in KINDS),
            repr(spec) + (", which is a file" if folder.exists() else ""),
        )
    try:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    except OSError as error:
        raise UsageError("input", "a readable folder", f"{spec}: {error.strerror}") from None
    if not paths:
        wanted = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError("input", f"a folder with images ({wanted})", f"{spec}, which has none")
    known = known_classes(labels)
    names = [path.relative_to(folder) for path in paths]
    return [
        Entry(name.as_posix(), partial(read_image, path), truth_of(name, known))
        for name, path in zip(names, paths, strict=True)
    ]


def _of_wavs(spec: str, labels: Sequence[str]) -> list[Entry]:
    """Truth from the folder's name, or where the labels are speakers from the file's."""
    folder = Path(spec).expanduser()
    paths = wavs_in(folder) if folder.is_dir() else []
    if not paths:
        raise UsageError(
            "input", "wav:DIR with WAV files", f"{spec}, which {'has none' if folder.is_dir() else 'is no folder'}"
        )
    known = known_classes(labels)
    return [
        Entry(
            path.relative_to(folder).as_posix(), partial(read_clip, path), _said_truth(path.relative_to(folder), known)
        )
        for path in paths
    ]


def _said_truth(name: Path, known: dict[str, int]) -> int | None:
    word = truth_of(name, known)
    return known.get(folded(speaker_of(name) or "")) if word is None else word


def truth_of(name: Path, known: dict[str, int]) -> int | None:
    """The innermost folder named after a label decides."""
    return next((known[word] for part in reversed(name.parts[:-1]) if (word := folded(part)) in known), None)


def read_image(file: Path) -> Pixels:
    """H×W of a grey file, H×W×3 of any other: turned upright, the first frame, transparent parts on white."""
    with Image.open(file) as image:
        return pixels_of(image, MAX_IMAGE_FILE_PIXELS)
