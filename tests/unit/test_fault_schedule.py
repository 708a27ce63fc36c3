"""The seeded schedule, the verdict and the slope: pure."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mdi_exit.chaos.command import ChaosSettings, node_of
from mdi_exit.chaos.faults import FAULTS, NETWORK_FAULTS, FaultKind, one_fault, planned, trouble_of
from mdi_exit.chaos.rows import RowFile
from mdi_exit.chaos.slope import slope_of
from mdi_exit.chaos.table import sound, table_rows, text_of
from mdi_exit.chaos.verdict import judged, rate_between, recovery_s
from mdi_exit.config import resolve
from mdi_exit.errors import UsageError

AGENTS = ["a", "b", "c"]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_a_run_depends_on_kind_and_seed_only(kind: FaultKind) -> None:
    faults = [one_fault(kind, seed, AGENTS, (4.0, 6.0)) for seed in range(1, 21)]
    assert faults == [one_fault(kind, seed, AGENTS, (4.0, 6.0)) for seed in range(1, 21)]
    assert len({fault.at_s for fault in faults}) == 20
    least, most = FAULTS[kind].lasts_s
    for fault in faults:
        assert 4.0 <= fault.at_s <= 6.0
        assert least <= fault.lasts_s <= most
        assert (fault.target == "") is FAULTS[kind].everybody
        assert (fault.by_s != 0) is (kind is FaultKind.CLOCK)
    if not FAULTS[kind].everybody:
        assert {fault.target for fault in faults} == set(AGENTS)


def test_a_schedule_is_seeded_and_its_faults_follow_one_another() -> None:
    faults = planned(7, NETWORK_FAULTS, AGENTS, 600.0, 10.0)
    assert faults == planned(7, NETWORK_FAULTS, AGENTS, 600.0, 10.0) != planned(8, NETWORK_FAULTS, AGENTS, 600.0, 10.0)
    assert {fault.kind for fault in faults} == set(NETWORK_FAULTS)
    for before, after in pairwise(faults):
        assert 5.0 <= after.at_s - before.ends_s <= 15.0
    assert faults[-1].ends_s <= 600.0
    assert {fault.lasts_s for fault in planned(7, NETWORK_FAULTS, AGENTS, 60.0, 5.0, 2.0)} == {2.0}


def test_each_fault_of_the_network_has_a_trouble() -> None:
    assert {kind for kind in FAULTS if trouble_of(kind) is not None} == set(NETWORK_FAULTS)


def row(name: str, label: int) -> dict[str, object]:
    return {"id": name, "label": label}


def test_a_verdict_counts_what_is_lost_twice_wrong_and_unknown() -> None:
    labels = {"1": 4, "2": 5, "3": 6}
    good = judged(3, [row("1", 4), row("2", 5), {"id": "3", "error": "no time"}], labels)
    assert good.good
    assert (good.completed, good.errors, good.reasons) == (2, 1, {"no time": 1})
    bad = judged(4, [row("1", 4), row("1", 4), row("2", 9), row("9", 1)], labels)
    assert (bad.lost, bad.duplicated, bad.wrong, bad.unknown, bad.good) == (1, 1, 1, 1, False)
    assert judged(2, [row("1", 4), row("1#2", 4)], labels).good, "the same image in a later round"
    assert judged(1, [row("1", 4), row("2", 5)], labels).unknown == 1, "more than was admitted"


def progress(*rates: tuple[float, float]) -> list[tuple[float, int]]:
    """Looks each 50 ms; (until, results a second) in turn."""
    found, count, at = [], 0.0, 0.0
    for until, rate in rates:
        while at < until - 1e-9:
            at += 0.05
            count += 0.05 * rate
            found.append((at, round(count)))
    return found


def test_recovery_is_from_a_moment_until_the_rate_is_back() -> None:
    seen = progress((5.0, 40.0), (7.0, 0.0), (15.0, 40.0))
    assert rate_between(seen, 2.0, 5.0) == pytest.approx(40.0, abs=1.0)
    assert recovery_s(seen, 40.0, 5.0, 15.0) == pytest.approx(1.8, abs=0.1), "a second that begins then is good enough"
    assert recovery_s(seen, 40.0, 7.0, 15.0) == 0.0
    assert recovery_s(progress((15.0, 40.0)), 40.0, 5.0, 15.0) == 0.0, "it never was slower"
    assert recovery_s(progress((5.0, 40.0), (15.0, 10.0)), 40.0, 5.0, 15.0) is None


def test_a_dip_long_after_the_fault_is_not_the_faults() -> None:
    seen = progress((12.0, 40.0), (14.0, 0.0), (20.0, 40.0))
    assert recovery_s(seen, 40.0, 5.0, 20.0) == 0.0


def test_the_slope_is_found_over_several_lives_with_an_interval_that_holds_it() -> None:
    rng = np.random.default_rng(0)
    lives = []
    for level in (50.0, 80.0):
        t = np.arange(0.0, 600.0, 5.0)
        lives.append((t.tolist(), (level + 0.2 * t / 60.0 + rng.normal(0.0, 0.3, len(t))).tolist()))
    slope = slope_of(lives)
    assert slope is not None
    assert slope.low < 0.2 < slope.high
    assert slope.high - slope.low < 0.1
    flat = slope_of([(list(range(20)), [5.0] * 20)])
    assert flat is not None
    assert flat.per_min == 0.0
    assert slope_of([([1.0, 2.0], [1.0, 2.0])]) is None


def test_a_file_of_rows_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "faults.jsonl"
    RowFile(path, "faults", ["--seeds", "2"]).add({"fault": "cut", "seed": 1})
    with path.open("a") as file:
        file.write('{"fault": "cu')  # the machine lost power
    again = RowFile(path, "faults", [])
    assert again.rows == [{"fault": "cut", "seed": 1}]
    again.add({"fault": "cut", "seed": 2})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("seed") for line in lines] == [None, 1, 2]
    assert lines[0]["command"] == "mdi-exit benchmark faults --seeds 2"
    with pytest.raises(UsageError, match="rows of the benchmark soak"):
        RowFile(path, "soak", [])


def test_the_table_adds_up_and_shows_what_was_not_seen() -> None:
    common = {
        "fault": "cut", "admitted": 10, "completed": 9, "errors": 1, "lost": 0, "duplicated": 0, "wrong": 0, "unknown": 0,
        "retried": 2, "reasons": {"no time": 1},
    }  # fmt: skip
    rows = [
        common | {"seed": 1, "recovery_s": 1.0},
        common | {"seed": 2, "recovery_s": None},
        {"fault": "cut", "seed": 3, "failed": "no end"},
    ]
    (line,) = table_rows(rows)
    assert line == ("cut", "3 (1 without an end)", "20", "18", "2", "0", "0", "0", "4", "1.00", "1.00 (1 not seen)")
    assert [sound(one) for one in rows] == [True, True, False]
    assert not sound(common | {"lost": 1})
    page = text_of(rows, 15.0)
    assert "no time" in page
    assert "* cut 3: no end" in page


def settings(*flags: str) -> ChaosSettings:
    return resolve(ChaosSettings, flags, {}, prog="mdi-exit chaos", description="", section="chaos").settings


def test_chaos_asks_for_what_it_needs() -> None:
    assert settings("--demo").faults is None
    assert settings("--broker", "mqtt://b", "--faults", "cut,delay").faults == (FaultKind.CUT, FaultKind.DELAY)
    with pytest.raises(UsageError, match="did you mean delay"):
        settings("--broker", "mqtt://b", "--faults", "delays")
    with pytest.raises(UsageError, match="the proxy reads the messages"):
        settings()
    with pytest.raises(UsageError, match="the proxy reads the messages"):
        settings("--broker", "mqtts://b")
    with pytest.raises(UsageError, match="faults of the network"):
        settings("--broker", "mqtt://b", "--faults", "agent-kill")


def test_a_node_is_known_by_its_client_id() -> None:
    assert node_of("default-agent-1-179565", "default") == "agent-1"
    assert node_of("default-observer-ab12cd", "default") is None
    assert node_of("other-agent-1-179565", "default") is None
