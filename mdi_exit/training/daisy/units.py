"""Units: what masked prediction predicts. k-means as in HuBERT (arXiv 2106.07447), section 2.4.

First round: on log-mel frames and their slope (HuBERT takes 39 MFCCs and their differences, which are made of them). Second:
on what the middle layer of the first round's encoder makes of the clips. N clips, T frames, M bands, F features, U units.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdi_exit.errors import UsageError

__all__ = ["ABSENT", "units_of", "with_slope"]

ABSENT: Final = -100  # which torch's cross entropy leaves out
_MOST_FRAMES: Final = 30_000
_ROUNDS: Final = 20


def units_of(features_NTF: Tensor, there_NT: Tensor, count: int, seed: int) -> Tensor:
    """N×T int64: the unit of each frame, ``ABSENT`` where there is none; centres by SciPy's k-means++ from at most 30,000
    frames. Raises ``UsageError`` without the extra ``offline``, or for fewer frames than units.
    """
    vq = _vq()
    frames_LF = features_NTF[there_NT].numpy()
    if len(frames_LF) < 2 * count:
        raise UsageError("--units", f"at most half as many as there are frames ({len(frames_LF):,})", count)
    rng = np.random.default_rng(seed)
    some: NDArray[Any] = frames_LF[rng.permutation(len(frames_LF))[:_MOST_FRAMES]]
    centres_UF, _ = vq.kmeans2(some, count, iter=_ROUNDS, minit="++", rng=rng, missing="warn")
    units_NT = torch.full(there_NT.shape, ABSENT)
    units_NT[there_NT] = torch.from_numpy(vq.vq(frames_LF, centres_UF)[0].astype(np.int64))
    return units_NT


def _vq() -> Any:
    try:
        from scipy.cluster import vq
    except ImportError:
        raise UsageError("k-means", "the extra 'offline' (pip install 'mdi-exit[offline]')", "none") from None
    return vq


def with_slope(x_NTM: Tensor) -> Tensor:
    """N×T×2M: frames, and half the difference of the two beside each."""
    padded = torch.cat((x_NTM[:, :1], x_NTM, x_NTM[:, -1:]), 1)
    return torch.cat((x_NTM, (padded[:, 2:] - padded[:, :-2]) / 2), 2)
