"""Spoken words by eSpeak NG: not people's voices, but many of them, and there without a download. And by Flite, whose few
voices were made of recordings of people.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from mdi_exit.data.sound import Clip, read_wav, to_int16, wav_bytes
from mdi_exit.data.speech import SPEAKER_MARK
from mdi_exit.errors import UsageError

__all__ = ["VOICES", "WORDS", "Voices", "speak"]

WORDS: Final = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy", "house",
    "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree",
    "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
"""The 35 of Speech Commands."""
_USUAL: Final = (
    "en-us+m1", "en-gb+m3", "en-gb-scotland+m5", "en-us+m7", "en-029+m2", "en-gb-x-rp+m4", "en-us-nyc+m6",
    "en-gb-x-gbclan+m8", "en-gb+klatt", "en-us+max", "en-gb-x-rp+f1", "en-us+f2", "en-gb+f3", "en-gb-scotland+f4",
    "en-us+f5", "en-029+linda", "en-us-nyc+steph", "en-gb-x-gbclan+belinda", "en-gb-x-gbcwmd+anika", "en-us+grandma",
)  # fmt: skip
_OTHERS: Final = (
    "en-us+Alex", "en-gb+adam", "en-gb-scotland+Andy", "en-us+benjamin", "en-029+caleb", "en-gb-x-rp+david",
    "en-us-nyc+edward", "en-gb-x-gbclan+Gene", "en-gb+john", "en-us+Lee", "en-gb-x-rp+Michael", "en-us+paul",
    "en-gb+quincy", "en-gb-scotland+rob", "en-029+travis", "en-us-nyc+zac", "en-us+Alicia", "en-gb+Andrea",
    "en-gb-x-gbclan+Annie", "en-gb-x-gbcwmd+aunty",
)  # fmt: skip
_FLITE: Final = ("awb", "kal16", "rms", "slt")
_WORDS_A_MINUTE: Final = (110, 230)
_PITCH: Final = (30, 70)
_LONGEST_S: Final = 20
_FLITE_WORDS_A_MINUTE: Final = 170  # roughly, at its own speed
_CLIP_S: Final = 1.0  # as in Speech Commands
_QUIET: Final = 0.01  # of the peak: before and after that there is no word
_ROOM_DB: Final = (-70.0, -55.0)  # of full scale


@dataclass(frozen=True, slots=True)
class Voices:
    """``argv``: what says a word, from voice, words a minute, pitch (50: the voice's own), file and word."""

    program: str
    names: tuple[str, ...]
    argv: Callable[[str, int, int, Path, str], list[str]]


def _espeak(voice: str, speed: int, pitch: int, path: Path, word: str) -> list[str]:
    return ["-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(path), word]


def _flite(voice: str, speed: int, pitch: int, path: Path, word: str) -> list[str]:
    stretch, shift = _FLITE_WORDS_A_MINUTE / speed, 1 + (pitch - 50) / 100
    features = [f"duration_stretch={stretch:.3f}", f"f0_shift={shift:.2f}"]
    return ["-voice", voice, "--setf", features[0], "--setf", features[1], "-t", word, "-o", str(path)]


VOICES: Final = {
    "usual": Voices("espeak-ng", _USUAL, _espeak),
    "others": Voices("espeak-ng", _OTHERS, _espeak),
    "flite": Voices("flite", _FLITE, _flite),
}
"""Of eSpeak NG: dialects with the variants of voice that come with the program; no variant is both usual and other."""


def speak(
    folder: Path,
    clips: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    words: Sequence[str] = WORDS,
    voices: Voices = VOICES["usual"],
) -> int:
    """``clips`` of each word by each voice, at random speeds and pitches, at a random place of a second, by ``seed``, as
    ``WORD/VOICE_nohash_N.wav``; those that are there stay. Returns how many were made. Raises ``UsageError``.
    """
    program = shutil.which(voices.program)
    if program is None:
        raise UsageError("speech", f"the program {voices.program} (of the Debian package of that name)", "none")
    rng = random.Random(seed)
    made = done = 0
    for word in words:
        try:
            (folder / word).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError("--out", "a folder that can be written to", f"{folder}: {error.strerror}") from None
        for voice in voices.names:
            for number in range(clips):
                speed, pitch = rng.randint(*_WORDS_A_MINUTE), rng.randint(*_PITCH)
                path = folder / word / f"{voice.replace('+', '-')}{SPEAKER_MARK}{number}.wav"
                if not path.exists():
                    partial = path.with_suffix(".partial")
                    _say([program, *voices.argv(voice, speed, pitch, partial, word)], voice, partial)
                    chance = np.random.default_rng((seed, *path.relative_to(folder).as_posix().encode()))
                    partial.write_bytes(wav_bytes(placed(read_wav(partial.read_bytes()), chance)))
                    partial.replace(path)
                    made += 1
                done += 1
                progress(done)
    return made


def placed(clip: Clip, chance: np.random.Generator) -> Clip:
    """The word somewhere in a second of a quiet room, as somebody would record it; a longer word alone."""
    loud = np.flatnonzero(
        np.abs(clip.samples_T.astype(np.int32)) > _QUIET * np.abs(clip.samples_T.astype(np.int32)).max()
    )
    word = clip.samples_T[loud[0] : loud[-1] + 1] if len(loud) else clip.samples_T
    length = max(int(_CLIP_S * clip.rate_hz), len(word))
    begin = int(chance.integers(0, length - len(word) + 1))
    level = 2**15 * 10 ** (chance.uniform(*_ROOM_DB) / 20)
    values = chance.normal(0.0, level, length)
    values[begin : begin + len(word)] += word
    return Clip(to_int16(values), clip.rate_hz)


def _say(argv: Sequence[str], voice: str, path: Path) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_LONGEST_S, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"voice {voice}", "a spoken word", error) from None
    if done.returncode or not path.exists():
        raise UsageError(f"voice {voice}", "a spoken word", done.stderr.decode(errors="replace")[:100] or "none")
