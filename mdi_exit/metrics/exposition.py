"""Samples as text in Prometheus' exposition format, by the official client on a registry of our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mdi_exit.driver import Sample
from mdi_exit.histogram import Histogram
from mdi_exit.metrics.catalogue import CATALOGUE, DEPLOYMENT

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4


class _Given(Collector):
    """The families that samples make, in the order of the catalogue."""

    def __init__(self, samples: Iterable[Sample], deployment: str) -> None:
        self._samples, self._deployment = samples, deployment

    def collect(self) -> Iterator[Metric]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}
        for name, values, value in self._samples:
            family = families.get(name) or families.setdefault(name, _family(name))
            if len(values) != len(CATALOGUE[name].labels):
                raise ValueError(f"{name}: expected values of {CATALOGUE[name].labels}, got {values}")
            labels = (self._deployment, *values)
            if isinstance(family, HistogramMetricFamily):
                if not isinstance(value, Histogram):
                    raise TypeError(f"{name}: expected a histogram, got {value!r}")
                family.add_metric(labels, value.cumulative(), value.total)
            elif isinstance(value, Histogram):
                raise TypeError(f"{name}: expected a number, got a histogram")
            else:
                family.add_metric(labels, value)
        yield from (families[name] for name in CATALOGUE if name in families)


def _family(name: str) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    row = CATALOGUE[name]
    labels = (DEPLOYMENT, *row.labels)
    match row.kind:
        case "counter":
            return CounterMetricFamily(name, row.help, labels=labels)
        case "gauge":
            return GaugeMetricFamily(name, row.help, labels=labels)
        case "histogram":
            return HistogramMetricFamily(name, row.help, labels=labels)


def exposition(samples: Iterable[Sample], deployment: str) -> bytes:
    """The samples with the words of the catalogue, each with the label ``deployment``.

    Raises ``KeyError`` for a metric that the catalogue does not have, ``ValueError`` and ``TypeError`` for one that it has
    otherwise.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(samples, deployment))
    return generate_latest(registry)
