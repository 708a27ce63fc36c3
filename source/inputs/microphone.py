"""A live microphone, through PortAudio by the library sounddevice (the extra ``audio``): what is said, in windows.

A window begins a little before a sound that comes after silence, and is as long as the model listens at most; while the sound
goes on, the next one begins half of that later. Silence is what is below -50 dB of full scale, or not clearly louder than
the room has been in the last seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from mdi_exit.data.sound import Clip
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.manifest import InputSpec
from source.inputs.live import Frame, LiveInput

__all__ = ["Microphone", "Stream", "heard", "microphone"]

_SILENCE: Final = 10 ** (-50 / 20)
_CLEARLY: Final = 4.0  # times the level of the room: 12 dB
_FORGET: Final = 1.02  # how fast the room may get louder, for each block
_BLOCK_S: Final = 0.05
_BEFORE: Final = 0.2  # of a window: a word may begin more softly than it is noticed


class Stream(Protocol):
    """Sound as it comes: ``read`` waits for ``count`` samples, int16 count×1, fewer at an end; True: some were lost."""

    def read(self, count: int) -> tuple[NDArray[np.int16], bool]: ...


@dataclass(frozen=True, slots=True)
class Microphone:
    """``open``: starts it anew; ``rate_hz``: of what it gives."""

    name: str
    rate_hz: int
    open: Callable[[], AbstractContextManager[Stream]]


def microphone(device: str) -> Microphone:
    """``device``: a number or a part of a name, empty: the default one. Raises ``UsageError``."""
    try:
        import sounddevice
    except ImportError:
        raise UsageError("input microphone", "the extra 'audio' (pip install 'mdi-exit[audio]')", "none") from None
    except OSError:
        raise UsageError("input microphone", "the library PortAudio (Debian: libportaudio2)", "none") from None
    chosen: Any = int(device) if device.isdecimal() else device or None
    try:
        found = sounddevice.query_devices(chosen, "input")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UsageError(
            "input microphone", "a device that listens", f"{device or 'no default one'}: {error}"
        ) from None
    rate_hz = int(found["default_samplerate"])
    options = {"samplerate": rate_hz, "channels": 1, "dtype": "int16", "device": chosen}
    return Microphone(f"microphone:{found['name']}", rate_hz, partial(sounddevice.InputStream, **options))


def heard(device: Microphone, spec: InputSpec, *, limit: int | None = None) -> LiveInput:
    """Windows with something in them; ids are ``microphone/N``. Raises ``UsageError``."""
    if spec.audio is None:
        raise UsageError("input", f"{spec.kind}, as the model takes", "sound")
    seconds = ((spec.shape[0] - 1) * spec.audio.hop + spec.audio.window) / spec.audio.rate_hz
    return LiveInput(device.name, partial(_listen, device, round(seconds * device.rate_hz)), limit=limit)


def _listen(device: Microphone, window: int, live: LiveInput) -> None:
    """Until told to stop, or the sound ends. Positions are samples since the beginning."""
    block = max(min(round(_BLOCK_S * device.rate_hz), window // 2), 1)
    kept_T, position, number = np.zeros(0, np.int16), 0, 0
    due: int | None = None  # where the window that has begun ends
    room = least = _SILENCE / _CLEARLY
    try:
        with device.open() as stream:
            while not live.stopping.is_set():
                values, _ = stream.read(block)
                now_T = np.asarray(values, np.int16).reshape(-1)
                kept_T = np.concatenate((kept_T, now_T))[-(window + block) :]
                position += len(now_T)
                level = _level(now_T)
                is_loud, room = level > _CLEARLY * room, max(min(level, _FORGET * room), least)
                if is_loud and due is None:
                    due = max(position - len(now_T) - round(_BEFORE * window), 0) + window
                if due is not None and (position >= due or len(now_T) < block):
                    number += 1
                    begin = position - len(kept_T)
                    clip = Clip(kept_T[max(due - window - begin, 0) : due - begin], device.rate_hz)
                    live.offer(Frame(f"microphone/{number}", partial(_same, clip), size_bytes=clip.samples_T.nbytes))
                    due = due + window // 2 if is_loud else None
                if len(now_T) < block:
                    return
    except Exception as error:  # noqa: BLE001 - PortAudio's errors share no base
        raise MdiExitError(f"input {device.name}: {error or type(error).__name__}") from None


def _same(clip: Clip) -> Clip:
    return clip


def _level(samples_T: NDArray[np.int16]) -> float:
    """Of what changes, as a share of full scale: some microphones are off zero by more than silence is."""
    return float(np.std(samples_T / 32_768)) if len(samples_T) else 0.0
