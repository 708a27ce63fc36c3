"""The settings of ``mdi-exit train-speech``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mdi_exit import values
from mdi_exit.config import REQUIRED, setting
from mdi_exit.errors import UsageError

__all__ = ["SpeechSettings"]


def _share(text: str) -> float:
    found = float(text) if text.replace(".", "", 1).isdecimal() else -1.0
    if not 0 <= found < 1:
        raise UsageError("", "a number of at least 0 and below 1", repr(text))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechSettings:
    """Encoder, branches, heads of both tasks."""

    data: Path = setting(
        REQUIRED, help="spoken words: WORD/SPEAKER_nohash_N.wav, as in Speech Commands; mdi-exit speak makes some",
        parse=lambda text: values.path(text.removeprefix("wav:")), metavar="DIR",
    )  # fmt: skip
    out: Path = setting(
        REQUIRED, help="folder of the two artifacts, keyword and voice", parse=values.path, metavar="DIR"
    )
    layers: int = setting(6, help="of the encoder", parse=values.integer(2, 48), metavar="N")
    width: int = setting(64, help="channels of a frame; a multiple of 4", parse=values.integer(4, 4096), metavar="N")
    units: int = setting(64, help="that k-means makes", parse=values.integer(2, 4096), metavar="N")
    seconds: float = setting(
        1.0, help="of a clip at most; what is longer is cut off", parse=values.positive_float, metavar="S"
    )
    first_epochs: int = setting(8, help="of the first round's encoder", parse=values.positive_int, metavar="N")
    epochs: int = setting(12, help="of the second round's encoder, which stays", parse=values.positive_int, metavar="N")
    branch_epochs: int = setting(3, help="of the branches", parse=values.positive_int, metavar="N")
    max_accuracy_loss: float = setting(
        0.01, help="that leaving early may cost on the calibration samples", parse=_share, metavar="SHARE"
    )
    seed: int = setting(0, help="of split, weights and order", parse=values.integer(0), metavar="N")
    threads: int = setting(2, help="of torch", parse=values.positive_int, metavar="N")

    def __post_init__(self) -> None:
        if self.width % 4:
            raise UsageError("--width", "a multiple of 4, the attention heads", self.width)
