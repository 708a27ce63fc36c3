"""Temperature scaling (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2)."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mdi_exit.errors import UsageError

__all__ = ["fit_temperature", "negative_log_likelihood", "scipy_part"]

_LEAST: Final = 0.05
_MOST: Final = 20.0


def scipy_part(name: str) -> Any:
    """``scipy.NAME``. Raises ``UsageError`` without SciPy, which only offline tools need."""
    try:
        return import_module(f"scipy.{name}")
    except ImportError:
        raise UsageError("calibration", "the extra 'offline' (pip install 'mdi-exit[offline]')", "none") from None


def negative_log_likelihood(logits_NK: NDArray[np.floating[Any]], truth_N: NDArray[np.integer[Any]], t: float) -> float:
    """Mean over the samples of -ln p(truth), in nats, at temperature ``t``."""
    scaled_NK = logits_NK.astype(np.float64) / t
    scaled_NK -= scaled_NK.max(axis=1, keepdims=True)
    right_N = np.take_along_axis(scaled_NK, truth_N[:, None].astype(np.intp), axis=1)[:, 0]
    return float((np.log(np.exp(scaled_NK).sum(axis=1)) - right_N).mean())


def fit_temperature(logits_NK: NDArray[np.floating[Any]], truth_N: NDArray[np.integer[Any]]) -> float:
    """The temperature in [0.05, 20] of least negative log-likelihood, four significant digits.

    It never changes a label. Raises ``UsageError`` without SciPy.
    """
    found = scipy_part("optimize").minimize_scalar(
        lambda log_t: negative_log_likelihood(logits_NK, truth_N, float(np.exp(log_t))),
        bounds=(np.log(_LEAST), np.log(_MOST)),
        method="bounded",
        options={"xatol": 1e-5},
    )
    return float(f"{float(np.exp(found.x)):.4g}")
