"""``mdi-exit speak``: a folder of spoken words, by a program that talks, for ``mdi-exit train-speech``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from mdi_exit import values
from mdi_exit.config import REQUIRED, resolve, setting
from mdi_exit.data.espeak import VOICES, WORDS, speak

__all__ = ["SpeakSettings", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakSettings:
    """Where, and how many."""

    out: Path = setting(REQUIRED, help="folder of WORD/VOICE_nohash_N.wav", parse=values.path, metavar="DIR")
    voices: str = setting(
        "usual", help="twenty of eSpeak NG's, twenty others of its, or the four of the program flite", choices=VOICES
    )
    clips: int = setting(6, help="of each of the 35 words by each voice", parse=values.positive_int, metavar="N")
    seed: int = setting(0, help="of speeds and pitches", parse=values.integer(0), metavar="N")


def main(argv: Sequence[str]) -> int:
    """Run the tool; returns the exit status. Raises ``MdiExitError``."""
    settings = resolve(
        SpeakSettings, argv, os.environ, prog="mdi-exit speak", section="speak",
        description="Speaks words into WAV files: synthesised voices (espeak-ng, flite), many speeds and pitches.",
        epilog="What is there already stays, so that a run that was cut short goes on.",
    ).settings  # fmt: skip
    console, voices = Console(), VOICES[settings.voices]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("clips", total=settings.clips * len(voices.names) * len(WORDS))

        def told(done: int) -> None:
            progress.update(task, completed=done)

        made = speak(settings.out, settings.clips, settings.seed, told, voices=voices)
    console.print(f"{settings.out}: {made:,} clips made, {len(WORDS)} words, {len(voices.names)} voices")
    return 0
