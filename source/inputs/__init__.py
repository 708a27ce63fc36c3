"""Where items come from: data sets, folders, videos, cameras, microphones, topics. The forms are in ``input_kinds``."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from mdi_exit.errors import UsageError
from mdi_exit.modality import Raw
from mdi_exit.modality.image import decode_image
from mdi_exit.model.manifest import Manifest
from source.input_kinds import (
    CAMERA,
    KINDS,
    MICROPHONE,
    REQUESTS,
    STREAM,
    TOPIC,
    VIDEO,
    WATCH,
    ParsedInput,
    parse_input,
)
from source.inputs.live import LiveInput
from source.inputs.stored import Input, Sample, checked_kind, entries_of, preprocess
from source.inputs.topic import TopicInput
from source.inputs.watch import watched

__all__ = [
    "Input",
    "LiveInput",
    "Sample",
    "TopicInput",
    "checked_kind",
    "open_any",
    "open_input",
    "open_live",
    "preprocess",
]


def open_input(
    spec: str,
    manifest: Manifest,
    *,
    limit: int | None = None,
    cycle: bool = False,
    shuffle_seed: int | None = None,
    data_dir: Path | None = None,
    fps: float | None = None,
) -> Input:
    """An input with an end: a data set, a folder or a video file.

    ``limit``: samples in all; ``shuffle_seed``: a random order, the same in each round (not of a video); ``fps``: frames
    taken of a second of video, None being all. Raises ``UsageError``.
    """
    parsed = _parsed(spec)
    checked_kind(parsed, manifest)
    if parsed.kind is VIDEO:
        from source.inputs.video import VideoInput

        if shuffle_seed is not None:
            raise UsageError("--shuffle", "a data set or a folder", f"input {parsed}")
        return VideoInput(parsed.target, cycle=cycle, limit=limit, fps=fps)
    if parsed.kind.live or parsed.kind is REQUESTS:
        endless = ", ".join(kind.form for kind in KINDS if kind.live)
        raise UsageError("input", f"one with an end (not {endless})", str(parsed))
    name, entries = entries_of(parsed, manifest, data_dir)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(entries)
    return Input(name, entries, cycle=cycle, limit=limit)


def open_live(
    spec: str,
    manifest: Manifest,
    *,
    limit: int | None = None,
    cycle: bool = False,
    fps: float | None = None,
    read: Callable[[bytes], Raw] = decode_image,
) -> LiveInput:
    """An input that does not wait for a slow system. A video file counts as a camera that shows it at its own speed, or
    at ``fps`` frames a second, once or (``cycle``) without end. ``read``: makes an item of a message. Raises ``UsageError``.
    """
    parsed = _parsed(spec)
    checked_kind(parsed, manifest)
    if parsed.kind is WATCH:
        return watched(Path(parsed.target).expanduser(), manifest.labels, limit=limit)
    if parsed.kind is TOPIC:
        return TopicInput(parsed.target, limit=limit, read=read)
    if parsed.kind is MICROPHONE:
        from source.inputs.microphone import heard, microphone

        return heard(microphone(parsed.target), manifest.input, limit=limit)
    if parsed.kind not in (VIDEO, CAMERA, STREAM):
        raise UsageError("input", "a video file, a camera, a microphone, a watched folder or a topic", str(parsed))
    from source.inputs import video

    if parsed.kind is VIDEO:
        return video.played(parsed.target, limit=limit, cycle=cycle, fps=fps)
    return video.watched_camera(parsed, limit=limit, fps=fps)


def open_any(
    spec: str,
    manifest: Manifest,
    *,
    limit: int | None = None,
    cycle: bool = False,
    shuffle_seed: int | None = None,
    data_dir: Path | None = None,
    fps: float | None = None,
    realtime: bool = False,
    read: Callable[[bytes], Raw] = decode_image,
) -> Input | LiveInput:
    """Whatever ``spec`` says; ``realtime`` makes a live input of a video file. Raises ``UsageError``."""
    parsed = _parsed(spec)
    moving = parsed.needs_video
    if fps is not None and not moving:
        raise UsageError("--fps", "a camera or a video", f"input {parsed}")
    if realtime and parsed.kind is not VIDEO:
        raise UsageError("--realtime", "a video file", f"input {parsed}")
    if parsed.kind.live or realtime:
        if shuffle_seed is not None:
            raise UsageError("--shuffle", "a data set or a folder", f"input {parsed}")
        return open_live(spec, manifest, limit=limit, cycle=cycle, fps=fps, read=read)
    return open_input(
        spec, manifest, limit=limit, cycle=cycle, shuffle_seed=shuffle_seed, data_dir=data_dir, fps=fps
    )  # fmt: skip


def _parsed(spec: str) -> ParsedInput:
    try:
        return parse_input(spec)
    except UsageError as error:
        raise UsageError("input", error.expected, error.got) from None
