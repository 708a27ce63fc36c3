"""A live microphone, through PortAudio by the library sounddevice (the extra ``audio``): what is said, in windows.

A window is as long as the model listens at most, and the next begins half of it later, so that a word lies whole in one of
them. Windows below a level of -50 dB of full scale are silence: they are not offered.
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
    """Windows with something in them; ids are ``microphone/N``, N counting all windows. Raises ``UsageError``."""
    if spec.audio is None:
        raise UsageError("input", f"{spec.kind}, as the model takes", "sound")
    seconds = ((spec.shape[0] - 1) * spec.audio.hop + spec.audio.window) / spec.audio.rate_hz
    half = max(round(seconds * device.rate_hz / 2), 1)
    return LiveInput(device.name, partial(_listen, device, half), limit=limit)


def _listen(device: Microphone, half: int, live: LiveInput) -> None:
    """Until told to stop, or the sound ends."""
    before, number = np.zeros(0, np.int16), 0
    try:
        with device.open() as stream:
            while not live.stopping.is_set():
                values, _ = stream.read(half)
                now = np.asarray(values, np.int16).reshape(-1)
                window = np.concatenate((before, now))
                if len(now):
                    number += 1
                    if _loud(window):
                        clip = Clip(window, device.rate_hz)
                        live.offer(Frame(f"microphone/{number}", partial(_same, clip), size_bytes=window.nbytes))
                if len(now) < half:
                    return
                before = now
    except Exception as error:  # noqa: BLE001 - PortAudio's errors share no base
        raise MdiExitError(f"input {device.name}: {error or type(error).__name__}") from None


def _same(clip: Clip) -> Clip:
    return clip


def _loud(window: NDArray[np.int16]) -> bool:
    """Of what changes: some microphones are off zero by more than silence is."""
    return float(np.std(window / 32_768)) > _SILENCE
