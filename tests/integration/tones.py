"""Words of a language of tones, spoken by three, as WAV files; and a tiny encoder trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from mdi_exit.data.sound import Clip, wav_bytes

__all__ = ["RATE_HZ", "SPEAKERS", "WORDS", "speech_artifacts", "tone", "tones"]

RATE_HZ = 16_000
WORDS = {"high": (900.0, 1400.0), "low": (300.0, 200.0), "rising": (300.0, 1400.0)}
SPEAKERS = {"ann": 1.0, "bob": 0.8, "cy": 1.25}


def tone(word: str, speaker: str, seconds: float, seed: int) -> Clip:
    """A glide from one frequency to the other with two overtones and a little noise."""
    first, last = (hz * SPEAKERS[speaker] for hz in WORDS[word])
    time_T = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    phase_T = 2 * np.pi * (first * time_T + (last - first) * time_T**2 / (2 * seconds))
    values_T = np.sin(phase_T) + 0.4 * np.sin(2 * phase_T) + 0.2 * np.sin(3 * phase_T)
    values_T += 0.01 * np.random.default_rng(seed).standard_normal(len(time_T))
    return Clip((6_000 * values_T).astype(np.int16), RATE_HZ)


def tones(folder: Path, clips: int = 8) -> Path:
    """``WORD/SPEAKER_nohash_N.wav``, of unlike lengths."""
    rng = np.random.default_rng(0)
    for word in WORDS:
        (folder / word).mkdir(parents=True)
        for speaker in SPEAKERS:
            for number in range(clips):
                clip = tone(word, speaker, float(rng.uniform(0.15, 0.35)), number)
                (folder / word / f"{speaker}_nohash_{number}.wav").write_bytes(wav_bytes(clip))
    return folder


def speech_artifacts(root: Path, seed: int = 0) -> Path:
    """``root/made`` (of another seed ``root/made-SEED``) with both artifacts, trained for a moment on ``root/tones``."""
    from mdi_exit.training.daisy.command import train_speech
    from mdi_exit.training.daisy.config import SpeechSettings

    if not (root / "tones").exists():
        tones(root / "tones")
    out = root / (f"made-{seed}" if seed else "made")
    settings = SpeechSettings(
        data=root / "tones", out=out, layers=3, width=16, units=8, seconds=0.3, first_epochs=1, epochs=2,
        branch_epochs=2, threads=1, seed=seed,
    )  # fmt: skip
    train_speech(settings, Console(quiet=True))
    return out
