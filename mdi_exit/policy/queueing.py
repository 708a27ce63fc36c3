"""Where a node puts the task that it has just created (MDI-Exit, arXiv 2408.05247, Alg. 1)."""

from __future__ import annotations

__all__ = ["keeps_here"]


def keeps_here(inputs: int, outputs: int, output_limit: int) -> bool:
    """True: into the node's own input queue; False: into the output queue, to be offered.

    ``inputs`` and ``outputs`` are the lengths of I_n and O_n; ``output_limit`` is T_O, a constant of ours.
    """
    return inputs == 0 or outputs > output_limit
