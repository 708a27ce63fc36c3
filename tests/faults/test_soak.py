"""Memory stays bounded when an agent stands still, when the broker is slow, and at ten times the capacity."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mdi_exit.chaos.run import reference
from mdi_exit.chaos.soak import soaked

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SECONDS = 12.0
CAPACITY_PER_S = 60.0
MOST_GROWTH_MIB = 40.0  # what is unbounded grows by this within seconds: 600 items a second of 3 kB, at four places


@pytest.mark.timeout(180)
async def test_nothing_grows_however_it_is_stalled(tmp_path: Path) -> None:
    await asyncio.to_thread(reference)
    for variant in ("stalled", "slow-broker", "overload"):
        (tmp_path / variant).mkdir()
    runs = await asyncio.gather(
        *(
            soaked(variant, SECONDS, 1, CAPACITY_PER_S, tmp_path / variant, every_s=0.5)
            for variant in ("stalled", "slow-broker", "overload")
        )
    )
    for total, samples in runs:
        assert (total["lost"], total["duplicated"], total["wrong"], total["unknown"]) == (0, 0, 0, 0), total
        assert total["completed"] > 0, total
        names = {sample.name for sample in samples}
        assert names == {"source", "front", "back", "whole", "broker"}, total
        for name in names:
            settled = [one.memory_mib for one in samples if one.name == name and one.at_s > SECONDS / 4]
            assert max(settled) - settled[0] < MOST_GROWTH_MIB, (total["variant"], name, settled)
    overload = next(total for total, _ in runs if total["variant"] == "overload")
    assert overload["refused"] > overload["admitted"], "what cannot be done is turned away"
