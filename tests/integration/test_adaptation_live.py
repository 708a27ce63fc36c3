"""Load adaptation on real processes that are stretched to a slow board."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from live import Source, System, until

from mdi_exit.policy.batching import MAX_BATCH

pytestmark = [pytest.mark.broker, pytest.mark.slow]

NANO = ("--profile", "jetson-nano")
START = 0.9
MAX_QUEUE = 40


def _until_seen(source: Source, condition: Any, what: str) -> None:
    """Wait for a snapshot of the timeline after those that were asked for before."""
    until(
        lambda: not source.running or any(condition(snapshot) for snapshot in source.timeline),
        lambda: (
            f"{what}: {[(s['phase'], s['threshold'], s['source_queue']) for s in source.timeline[-20:]]}\n{source.log}"
        ),
    )
    assert any(condition(snapshot) for snapshot in source.timeline), f"ended before {what}:\n{source.log}"


def test_the_threshold_falls_under_load_and_rises_when_it_is_gone(system: System) -> None:
    system.agent("a", "2-8", *NANO)
    source = system.source(
        *("--layers", "0-8", *NANO, "--adapt", "threshold", "--exit-threshold", str(START), "--min-threshold", "0.3"),
        *("--schedule", "load=100/s@0s,calm=2/s@5s", "--duration", "60s", "--max-queue", str(MAX_QUEUE)),
    )
    _until_seen(source, lambda snapshot: snapshot["threshold"] < START, "the threshold falls")
    _until_seen(source, lambda snapshot: snapshot["phase"] == "calm", "the load is gone")
    at = len(source.timeline)
    lowest = min(snapshot["threshold"] for snapshot in source.timeline)
    until(
        lambda: any(snapshot["threshold"] > lowest for snapshot in source.timeline[at:]),
        lambda: f"a threshold above {lowest}: {[s['threshold'] for s in source.timeline[at:]]}",
    )
    source.signal(signal.SIGTERM)
    summary = source.until_completed()
    assert summary["emulated"] == "jetson-nano"
    # No item is admitted above it; the batch that was running then still comes back.
    assert max(snapshot["source_queue"] for snapshot in source.timeline) <= MAX_QUEUE + MAX_BATCH
    assert summary["refused"] > 0 or lowest > 0.3
    assert {node for row in source.rows for node in row["path"]} == {"source", "a"}


def test_the_rate_settles_without_refusals(system: System) -> None:
    system.agent("a", "2-8", *NANO)
    source = system.source(
        *("--layers", "0-8", *NANO, "--adapt", "rate", "--exit-threshold", str(START), "--duration", "60s"),
        *("--max-queue", str(MAX_QUEUE)),
    )
    # The first step is 10 a second: above it, the rate has been raised.
    _until_seen(source, lambda snapshot: snapshot["admitted_per_s"] > 12, "the rate rises")
    _until_seen(source, lambda snapshot: snapshot["completed"] >= 80, "items are completed")
    source.signal(signal.SIGTERM)
    summary = source.until_completed()
    assert summary["refused"] == 0
    assert max(snapshot["source_queue"] for snapshot in source.timeline) < MAX_QUEUE
    assert source.timeline[-1]["threshold"] == START
