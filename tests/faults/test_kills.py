"""The source dies again and again, and each item has one line of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdi_exit.chaos.kills import killed_run

pytestmark = [pytest.mark.broker, pytest.mark.slow]


@pytest.mark.timeout(180)
async def test_each_item_has_one_line_after_the_source_died_three_times(tmp_path: Path) -> None:
    row = await killed_run(1, tmp_path, kills=3, items=150)
    assert row["kills"] == 3, row
    assert row["lines"] == row["items"] == row["completed"] == row["summary_admitted"], row
    assert (row["lost"], row["duplicated"], row["wrong"], row["unknown"], row["errors"]) == (0, 0, 0, 0, 0), row
