"""Grafana's SDK, imported in one place.

It would rather have the next schema of dashboards, which Grafana before 12 does not read, and says so on import.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.builders import (
        common,
        dashboard,
        heatmap,
        nodegraph,
        prometheus,
        stat,
        statetimeline,
        table,
        timeseries,
    )
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models import common as looks
    from grafana_foundation_sdk.models import dashboard as models
    from grafana_foundation_sdk.models import heatmap as heat
    from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = [
    "Builder",
    "JSONEncoder",
    "PromQueryFormat",
    "common",
    "dashboard",
    "heat",
    "heatmap",
    "looks",
    "models",
    "nodegraph",
    "prometheus",
    "register_default_plugins",
    "stat",
    "statetimeline",
    "table",
    "timeseries",
]
