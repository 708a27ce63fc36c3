"""Outcomes of an artifact on images, run once on ONNX Runtime: the trace of a scenario that names none."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mdi_exit.confidence import judge
from mdi_exit.data.sets import shipped
from mdi_exit.engine import make_engine
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.simulation.scenario import Scenario
from mdi_exit.simulation.trace import Trace

__all__ = ["trace_of"]
