"""Each fault once, on real processes and a real Mosquitto: nothing lost, nothing twice, nothing wrong.

``mdi-exit benchmark faults`` does the same with many seeds. Three runs go side by side: they wait more than they compute.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mdi_exit.chaos.faults import FAULTS, FaultKind
from mdi_exit.chaos.inject import why_not
from mdi_exit.chaos.run import FaultRun, reference, run_fault

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SECONDS = 9.0
TOGETHER = (
    (FaultKind.AGENT_KILL, FaultKind.AGENT_FREEZE, FaultKind.AGENT_SLOW, FaultKind.AGENT_MEMORY),
    (FaultKind.BROKER_STOP, FaultKind.BROKER_KILL, FaultKind.CUT, FaultKind.HALF_OPEN),
    (FaultKind.DELAY, FaultKind.SLOW_LINK, FaultKind.CORRUPT, FaultKind.DUPLICATE),
    (FaultKind.REORDER, FaultKind.CLOCK, FaultKind.DISK_FULL, FaultKind.SOURCE_KILL),
)


def test_every_fault_is_in_a_group() -> None:
    assert sorted(kind for group in TOGETHER for kind in group) == sorted(FAULTS)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kinds", TOGETHER, ids=lambda kinds: "+".join(kinds))
async def test_each_admitted_item_has_its_one_right_result(kinds: tuple[FaultKind, ...], tmp_path: Path) -> None:
    await asyncio.to_thread(reference)
    possible = [kind for kind in kinds if why_not(kind) is None]
    if not possible:
        pytest.skip("; ".join(f"{kind}: {why_not(kind)}" for kind in kinds))
    for kind in possible:
        (tmp_path / kind).mkdir()
    runs = await asyncio.gather(*(_run(kind, tmp_path / kind) for kind in possible))
    for run in runs:
        verdict = run.verdict
        assert (verdict.lost, verdict.duplicated, verdict.wrong, verdict.unknown) == (0, 0, 0, 0), run
        assert verdict.admitted == verdict.completed + verdict.errors, run
        assert verdict.errors == 0, run
        assert verdict.admitted > SECONDS, "the run had items"


async def _run(kind: FaultKind, folder: Path) -> FaultRun:
    return await run_fault(kind, 1, folder, seconds=SECONDS)
