"""Cameras, streams and video files, through OpenCV (the extra ``video``)."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from mdi_exit.errors import UsageError
from source.input_kinds import CAMERA, ParsedInput
from source.inputs.live import Frame, LiveInput
from source.inputs.stored import Input, Pixels, Sample

__all__ = ["Capture", "VideoInput", "checked_extra", "played", "watched_camera"]

_ANSWER_MS: Final = 5000
_BACKOFF_FIRST_S: Final = 0.5
_BACKOFF_MOST_S: Final = 15.0
_USUAL_FPS: Final = 25.0

log = logging.getLogger(__name__)


def checked_extra(what: str) -> None:
    """Raises ``UsageError`` where OpenCV is not installed."""
    if importlib.util.find_spec("cv2") is None:
        raise UsageError(f"input {what}", "the extra 'video' (pip install 'mdi-exit[video]')", "none")


class Capture:
    """An open camera, stream or file. ``target``: a number, a device, a URL or a path; ``fps`` is asked of a camera."""

    def __init__(self, target: str, fps: float | None = None) -> None:
        cv2 = _opencv()
        self._cv2 = cv2
        device = _device_number(target)
        if device is not None:
            self._video = cv2.VideoCapture(device)
            self._video.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            if fps is not None:
                self._video.set(cv2.CAP_PROP_FPS, fps)
        else:
            patience = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _ANSWER_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _ANSWER_MS]
            self._video = cv2.VideoCapture(target, cv2.CAP_FFMPEG, patience)

    @property
    def opened(self) -> bool:
        return bool(self._video.isOpened())

    @property
    def fps(self) -> float:
        """As stated by the device or file; 25 where nothing sensible is."""
        stated = float(self._video.get(self._cv2.CAP_PROP_FPS))
        return stated if 0.01 < stated < 1000 else _USUAL_FPS

    def advance(self) -> bool:
        """Go to the next frame, without converting it; False at the end, or when the camera is lost."""
        return bool(self._video.grab())

    def frame(self) -> Pixels | None:
        """The frame at hand, H×W×3 in RGB."""
        good, bgr_HWC = self._video.retrieve()
        if not good:
            return None
        if bgr_HWC.ndim == 2:
            return np.asarray(bgr_HWC, np.uint8)
        return np.asarray(self._cv2.cvtColor(bgr_HWC, self._cv2.COLOR_BGR2RGB), np.uint8)

    def close(self) -> None:
        self._video.release()


class VideoInput(Input):
    """Every frame of a file, or ``fps`` of each second of it, in order; ids are the file's name and the frame's number."""

    def __init__(self, path: str, *, cycle: bool, limit: int | None, fps: float | None) -> None:
        self._path, self._fps = _checked_file(path), fps
        super().__init__(self._path.name, (), cycle=cycle, limit=limit)

    def __len__(self) -> int:
        """Frames of one round, found by counting them."""
        return sum(1 for _ in self._round(""))

    @property
    def fingerprint(self) -> str:
        return f"{self._path.name}, {self._path.stat().st_size} bytes, {self._fps or 'all'} fps"

    def again(self, positions: Collection[int]) -> Iterator[Sample]:
        last = max(positions, default=-1)
        for sample in self._frames(positions.__contains__):
            yield sample
            if sample.position >= last:
                return

    def _rounds(self) -> Iterator[Sample]:
        return self._frames(lambda position: position >= self._begin)

    def _frames(self, wanted: Callable[[int], bool]) -> Iterator[Sample]:
        """The frames at the positions that are wanted; the others are passed by without being converted."""
        number, position = 1, 0
        while True:
            for give in self._round("" if number == 1 else f"#{number}"):
                if wanted(position) and (sample := give()) is not None:
                    yield replace(sample, position=position)
                position += 1
            if not self._cycle:
                return
            number += 1

    def _round(self, suffix: str) -> Iterator[Callable[[], Sample | None]]:
        video = _opened(str(self._path), self.name)
        try:
            thinning, index = _Thinning(self._fps), 0
            while video.advance():
                index += 1
                if not thinning.wants((index - 1) / video.fps):
                    continue
                yield partial(self._sample, video, f"{self.name}/{index}{suffix}")
        finally:
            video.close()

    def _sample(self, video: Capture, name: str) -> Sample | None:
        if (pixels := video.frame()) is not None:
            return Sample(name, pixels)
        self.skipped += 1
        return None


def played(path: str, *, limit: int | None, cycle: bool, fps: float | None) -> LiveInput:
    """A file as a camera: shown at its own speed, each frame for its time only. Raises ``UsageError``."""
    file = _checked_file(path)

    def feed(live: LiveInput) -> None:
        number = 1
        while not live.stopping.is_set():
            _play(live, file, fps, "" if number == 1 else f"#{number}")
            if not cycle:
                return
            number += 1

    return LiveInput(file.name, feed, limit=limit)


def _play(live: LiveInput, file: Path, fps: float | None, suffix: str) -> None:
    video = _opened(str(file), file.name)
    try:
        thinning, begin, index = _Thinning(fps), time.monotonic(), 0
        while video.advance():
            at_s = index / video.fps
            index += 1
            if not thinning.wants(at_s):
                continue
            if live.stopping.wait(max(begin + at_s - time.monotonic(), 0.0)):
                return
            _offer(live, video, f"{file.name}/{index}{suffix}")
    finally:
        video.close()


def watched_camera(spec: ParsedInput, *, limit: int | None, fps: float | None) -> LiveInput:
    """The newest frame of a camera or stream. One that cannot be opened, or is lost, is said once and tried again and
    again, ever less often.
    """
    checked_extra(str(spec))
    camera = _Camera(spec, fps)
    return LiveInput(str(spec), camera.run, limit=limit)


class _Camera:
    def __init__(self, spec: ParsedInput, fps: float | None) -> None:
        self._name = str(spec)
        self._what = "camera" if spec.kind is CAMERA else "stream"
        self._target, self._fps = spec.target, fps
        self._index = 0
        self._attempt = 0
        self._said = False

    def run(self, live: LiveInput) -> None:
        """Until told to stop."""
        while not live.stopping.is_set():
            video = Capture(self._target, self._fps)
            came = self._index
            try:
                if video.opened:
                    self._follow(live, video)
            finally:
                video.close()
            if live.stopping.is_set():
                return
            self._say_lost(given_frames=self._index > came)
            most_s = min(_BACKOFF_FIRST_S * 2.0**self._attempt, _BACKOFF_MOST_S)
            self._attempt = min(self._attempt + 1, 10)
            live.stopping.wait(random.uniform(most_s / 2, most_s))

    def _follow(self, live: LiveInput, video: Capture) -> None:
        thinning, begin = _Thinning(self._fps), time.monotonic()
        while not live.stopping.is_set() and video.advance():
            if self._said or not self._index:
                log.info("input %s: the %s gives frames", self._name, self._what)
                self._said = False
            self._attempt = 0
            self._index += 1
            if thinning.wants(time.monotonic() - begin):
                _offer(live, video, f"{self._name}/{self._index}")

    def _say_lost(self, *, given_frames: bool) -> None:
        if not self._said:
            how = "is lost" if given_frames else "cannot be opened"
            log.warning("input %s: the %s %s; trying again", self._name, self._what, how)
        self._said = True


class _Thinning:
    """Lets through ``fps`` frames a second at most, evenly."""

    def __init__(self, fps: float | None) -> None:
        self._gap_s = 1.0 / fps if fps is not None else 0.0
        self._due_s = 0.0

    def wants(self, at_s: float) -> bool:
        """Is the frame of this moment (seconds from the first) one of them?"""
        if at_s < self._due_s - 1e-6:
            return False
        self._due_s = max(self._due_s + self._gap_s, at_s - self._gap_s)
        return True


def _offer(live: LiveInput, video: Capture, name: str) -> None:
    pixels = video.frame()
    if pixels is not None:
        live.offer(Frame(name, lambda: pixels, size_bytes=pixels.nbytes))


def _checked_file(path: str) -> Path:
    """A file that OpenCV can open. Raises ``UsageError``."""
    checked_extra(path)
    file = Path(path).expanduser()
    if not file.is_file():
        raise UsageError("input", "a video file", f"{path}, which is not there")
    _opened(str(file), path).close()
    return file


def _opened(path: str, name: str) -> Capture:
    video = Capture(path)
    if not video.opened:
        video.close()
        raise UsageError("input", "a video that OpenCV can read", name)
    return video


def _device_number(target: str) -> int | None:
    """``0`` and ``/dev/video0``, also by a link such as those in /dev/v4l/by-id, are camera 0."""
    if target.isascii() and target.isdecimal():
        return int(target)
    if target.startswith("/dev/"):
        number = os.path.realpath(target).removeprefix("/dev/video")
        return int(number) if number.isascii() and number.isdecimal() else None
    return None


def _opencv() -> Any:
    """OpenCV, whose lines about every attempt would go to stderr."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    return cv2
