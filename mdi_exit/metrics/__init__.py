"""All metrics: the catalogue, what is read from state at scrape time, and the server of it."""

from mdi_exit.metrics.catalogue import CATALOGUE, Row, exposed
from mdi_exit.metrics.server import MetricsServer, serve_metrics

__all__ = ["CATALOGUE", "MetricsServer", "Row", "exposed", "serve_metrics"]
