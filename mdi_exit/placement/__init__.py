"""Which node holds which layers: pure planning, see ``docs/placement.md``."""

from mdi_exit.placement.hysteresis import Decision, PlacementRules, decide
from mdi_exit.placement.problem import Device, Problem, Spans
from mdi_exit.placement.rate import Prediction, predict
from mdi_exit.placement.search import Placement, best_placement, even_split, valued

__all__ = [
    "Decision",
    "Device",
    "Placement",
    "PlacementRules",
    "Prediction",
    "Problem",
    "Spans",
    "best_placement",
    "decide",
    "even_split",
    "predict",
    "valued",
]
