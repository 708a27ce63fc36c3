"""Spoken words by eSpeak NG: not people's voices, but many of them, and there without a download."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from mdi_exit.data.speech import SPEAKER_MARK
from mdi_exit.errors import UsageError

__all__ = ["VOICES", "WORDS", "speak"]

WORDS: Final = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy", "house",
    "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree",
    "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
"""The 35 of Speech Commands."""
VOICES: Final = (
    "en-us+m1", "en-gb+m3", "en-gb-scotland+m5", "en-us+m7", "en-029+m2", "en-gb-x-rp+m4", "en-us-nyc+m6",
    "en-gb-x-gbclan+m8", "en-gb+klatt", "en-us+max", "en-gb-x-rp+f1", "en-us+f2", "en-gb+f3", "en-gb-scotland+f4",
    "en-us+f5", "en-029+linda", "en-us-nyc+steph", "en-gb-x-gbclan+belinda", "en-gb-x-gbcwmd+anika", "en-us+grandma",
)  # fmt: skip
"""Dialects with the variants of voice that come with the program."""
_PROGRAM: Final = "espeak-ng"
_WORDS_A_MINUTE: Final = (110, 230)
_PITCH: Final = (30, 70)
_LONGEST_S: Final = 20


def speak(
    folder: Path,
    clips: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    words: Sequence[str] = WORDS,
) -> int:
    """``clips`` of each word by each voice, at random speeds and pitches by ``seed``, as
    ``WORD/VOICE_nohash_N.wav``; those that are there stay. Returns how many were made. Raises ``UsageError``.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise UsageError("speech", f"the program {_PROGRAM} (of the Debian package of that name)", "none")
    rng = random.Random(seed)
    made = done = 0
    for word in words:
        try:
            (folder / word).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError("--out", "a folder that can be written to", f"{folder}: {error.strerror}") from None
        for voice in VOICES:
            for number in range(clips):
                speed, pitch = rng.randint(*_WORDS_A_MINUTE), rng.randint(*_PITCH)
                path = folder / word / f"{voice.replace('+', '-')}{SPEAKER_MARK}{number}.wav"
                if not path.exists():
                    _say(program, word, voice, speed, pitch, path)
                    made += 1
                done += 1
                progress(done)
    return made


def _say(program: str, word: str, voice: str, speed: int, pitch: int, path: Path) -> None:
    partial = path.with_suffix(".partial")
    argv = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(partial), word]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=_LONGEST_S, check=False)  # noqa: S603 - fixed words
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{_PROGRAM} {voice}", "a spoken word", error) from None
    if done.returncode or not partial.exists():
        raise UsageError(f"{_PROGRAM} {voice}", "a spoken word", done.stderr.decode(errors="replace")[:100] or "none")
    partial.replace(path)
