"""What may stand after ``--input``: every form on one screen, and how a text is told to be one of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mdi_exit.data import DATASETS
from mdi_exit.data.texts import FORMS, TEXT_SETS
from mdi_exit.errors import UsageError
from mdi_exit.topics import user_pattern

__all__ = [
    "CAMERA",
    "FOLDER",
    "KINDS",
    "MICROPHONE",
    "REQUESTS",
    "SET",
    "STREAM",
    "TEST",
    "TEXT",
    "TEXT_SET",
    "TOPIC",
    "VIDEO",
    "WATCH",
    "WAV",
    "InputKind",
    "ParsedInput",
    "parse_input",
]


@dataclass(frozen=True, slots=True)
class InputKind:
    """One row of the table. ``live``: it has no end, and does not wait for a slow system. ``gives``: which kind of items, as
    in a model's ``InputSpec``; empty: whichever the model takes.
    """

    form: str
    meaning: str
    live: bool
    gives: str = ""


# fmt: off
SET    = InputKind(f"shipped|{'|'.join(DATASETS)}[:N]", "a data set, or its first N items", live=False, gives="image")
TEXT_SET = InputKind(f"{'|'.join(TEXT_SETS)}[:N]", "the same of texts",               live=False, gives="text")
TEST   = InputKind("test[:N]",      "what the artifact was tested on",                live=False)
TEXT   = InputKind("text:FILE",     "texts: .csv, .tsv, .jsonl, .txt, or a folder",   live=False, gives="text")
WAV    = InputKind("wav:DIR",       "a folder of WAV files",                          live=False, gives="audio")
FOLDER = InputKind("DIR",           "a folder of images",                             live=False, gives="image")
VIDEO  = InputKind("FILE.mp4",      "a video file",                                   live=False, gives="image")
CAMERA = InputKind("camera[:N|:DEVICE]", "a webcam",                                  live=True,  gives="image")
STREAM = InputKind("rtsp://...",    "a network camera (also rtsps, http, https)",     live=True,  gives="image")
MICROPHONE = InputKind("microphone[:N|:NAME]", "what is said near it (extra audio)",  live=True,  gives="audio")
WATCH  = InputKind("watch:DIR",     "images that appear in a folder",                 live=True,  gives="image")
TOPIC  = InputKind("mqtt:TOPIC",    "images, texts or WAV files published on the broker", live=True)
REQUESTS = InputKind("requests",    "only what other programs ask for",               live=False)
# fmt: on

KINDS: Final = (SET, TEXT_SET, TEST, TEXT, WAV, FOLDER, VIDEO, CAMERA, MICROPHONE, STREAM, WATCH, TOPIC, REQUESTS)

_STREAM_SCHEMES: Final = frozenset({"rtsp", "rtsps", "http", "https"})
_VIDEO_SUFFIXES: Final = frozenset(
    {".264", ".265", ".avi", ".flv", ".h264", ".h265", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
     ".ogv", ".ts", ".webm", ".wmv"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ParsedInput:
    """A text taken apart. ``target``: device, URL, folder, file, pattern, or the text itself; ``text``: as it was given."""

    kind: InputKind
    target: str = field(repr=False)
    text: str = field(repr=False)

    def __str__(self) -> str:
        """As it may be shown: a camera's user and password are left out."""
        if self.kind is not STREAM:
            return self.text
        url = urlsplit(self.text)
        return url._replace(netloc=url.netloc.rpartition("@")[2], query="").geturl()

    @property
    def needs_video(self) -> bool:
        """It takes the extra ``video``."""
        return self.kind in (VIDEO, CAMERA, STREAM)


def parse_input(text: str) -> ParsedInput:
    """The form that ``text`` has; whether what it names is there is found out on opening. Raises ``UsageError``."""
    stripped = text.strip()
    head, colon, rest = stripped.partition(":")
    if not stripped:
        raise UsageError("", ", ".join(kind.form for kind in KINDS), repr(text))
    if head == "shipped" or head in DATASETS:
        return ParsedInput(SET, stripped, stripped)
    if head in TEXT_SETS:
        return ParsedInput(TEXT_SET, stripped, stripped)
    if head == "test":
        return ParsedInput(TEST, stripped, stripped)
    if head == "text" and colon:
        if not rest:
            raise UsageError("", f"text:FILE ({FORMS})", repr(text))
        return ParsedInput(TEXT, rest, stripped)
    if head == "wav" and colon:
        if not rest:
            raise UsageError("", "wav:DIR", repr(text))
        return ParsedInput(WAV, rest, stripped)
    if head == "microphone":
        if colon and not rest:
            raise UsageError("", "microphone, microphone:N or microphone:NAME", repr(text))
        return ParsedInput(MICROPHONE, rest, stripped)
    if stripped == "requests":
        return ParsedInput(REQUESTS, "", stripped)
    if head == "camera":
        if colon and not rest:
            raise UsageError("", "camera, camera:N or camera:DEVICE", repr(text))
        return ParsedInput(CAMERA, rest or "0", stripped)
    if head in _STREAM_SCHEMES and rest.startswith("//"):
        return ParsedInput(STREAM, _stream(stripped), stripped)
    if head == "watch" and colon:
        if not rest:
            raise UsageError("", "watch:DIR", repr(text))
        return ParsedInput(WATCH, rest, stripped)
    if head == "mqtt" and colon:
        return ParsedInput(TOPIC, user_pattern(rest), stripped)
    if Path(stripped).suffix.lower() in _VIDEO_SUFFIXES and not Path(stripped).expanduser().is_dir():
        return ParsedInput(VIDEO, stripped, stripped)
    return ParsedInput(FOLDER, stripped, stripped)


def _stream(text: str) -> str:
    try:
        url = urlsplit(text)
        good = bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    if not good:  # not repeated: it may hold a password
        raise UsageError("", "rtsp://HOST[:PORT]/PATH", f"a {text.partition(':')[0]} URL without a host, or a bad port")
    return text
