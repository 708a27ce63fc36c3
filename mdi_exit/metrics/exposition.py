"""Samples as text in Prometheus' exposition format 0.0.4.

Written out here, since a scrape of a hundred agents is thousands of lines, for which the official client takes five times
as long. The tests compare with what that one writes and reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from mdi_exit.driver import Sample
from mdi_exit.histogram import Histogram
from mdi_exit.metrics.catalogue import CATALOGUE, DEPLOYMENT

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(samples: Iterable[Sample], deployment: str) -> str:
    """The samples in the order and with the words of the catalogue, each with the label ``deployment``.

    Raises ``KeyError`` for a metric that the catalogue does not have.
    """
    lines: dict[str, list[str]] = {}
    constant = f'{DEPLOYMENT}="{_escaped(deployment)}"'
    known: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}  # most labels occur with many metrics
    for name, values, value in samples:
        row = CATALOGUE[name]
        labels = known.get((row.labels, values))
        if labels is None:
            pairs = zip(row.labels, values, strict=True)
            labels = ",".join((constant, *(f'{label}="{_escaped(text)}"' for label, text in pairs)))
            known[row.labels, values] = labels
        found = lines.get(name)
        if found is None:
            found = lines[name] = []
        if isinstance(value, Histogram):
            found += _histogram_lines(name, labels, value)
        else:
            found.append(f"{name}{_SUFFIXES[row.kind]}{{{labels}}} {_number(value)}")
    blocks = (line for name in CATALOGUE if name in lines for line in (*_head(name), *lines[name]))
    return "\n".join((*blocks, ""))


_SUFFIXES: Final = {"counter": "_total", "gauge": "", "histogram": ""}


def _head(name: str) -> tuple[str, str]:
    row = CATALOGUE[name]
    shown = name + _SUFFIXES[row.kind]
    text = row.help.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {shown} {text}", f"# TYPE {shown} {row.kind}"


def _histogram_lines(name: str, labels: str, histogram: Histogram) -> list[str]:
    buckets = histogram.cumulative()
    lines = [f'{name}_bucket{{{labels},le="{limit}"}} {count}' for limit, count in buckets]
    return [*lines, f"{name}_count{{{labels}}} {buckets[-1][1]}", f"{name}_sum{{{labels}}} {_number(histogram.total)}"]


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
