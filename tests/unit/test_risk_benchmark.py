"""``mdi-exit benchmark risk`` on the shipped images, a fifth of its pool: the same draws, the same bound."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mdi_exit.benchmark.risk import CONFIDENCE, Draw, allowed, draws, markdown, measure_risk, summary, write_draws
from mdi_exit.data import shipped
from mdi_exit.errors import MdiExitError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.outcomes import Outcomes, outcomes

pytest.importorskip("scipy", reason="needs the extra 'offline'")


@pytest.fixture(scope="module")
def pool() -> Outcomes:
    return outcomes(Artifact.open(DEFAULT_MODEL), shipped())


@pytest.fixture(scope="module")
def quick(pool: Outcomes) -> list[Draw]:
    """200 sets for each of two sizes and losses, without the slower method."""
    return draws(pool, sizes=(500, 1000), max_losses=(0.01, 0.02), methods=("one threshold", "naive"))


def test_of_200_promises_18_may_be_broken() -> None:
    assert allowed(200, CONFIDENCE) == 18
    assert allowed(200, 0.99) < 18


def test_the_promise_is_kept_and_the_naive_choice_breaks_it(pool: Outcomes, quick: list[Draw]) -> None:
    rows = summary(quick, pool.trace("max-probability").plain_macs)
    assert len(quick) == 200 * 2 * 2 * 2
    for row in rows:
        kept = row["exceeded"] <= row["allowed"] == 18
        assert kept == (row["method"] == "one threshold")
        assert row["macs_saved"] > 0.5
    of = {(row["method"], row["samples"], row["max_loss"]): row["macs_saved"] for row in rows}
    assert of["one threshold", 1000, 0.01] > of["one threshold", 500, 0.01]  # more samples, more courage
    assert of["one threshold", 500, 0.02] > of["one threshold", 500, 0.01]


def test_all_of_calibrate_keeps_it_too_and_refuses_with_too_few_samples(pool: Outcomes) -> None:
    found = draws(pool, sets=12, sizes=(300, 500), max_losses=(0.01,), methods=("calibrate",))
    rows = {row["samples"]: row for row in summary(found, pool.trace("max-probability").plain_macs)}
    assert rows[300]["without_promise"] == 12
    assert rows[300]["macs_saved"] == 0
    assert rows[500]["exceeded"] <= rows[500]["allowed"]
    assert rows[500]["macs_saved"] > 0.3
    thresholds = next(draw.thresholds for draw in found if draw.samples == 500).split()
    assert len(set(thresholds)) > 1  # one for each exit


def test_draws_come_again_and_every_method_sees_the_same_samples(pool: Outcomes) -> None:
    flags = {"sets": 3, "sizes": (400,), "max_losses": (0.02,)}
    both = draws(pool, **flags, methods=("one threshold", "naive"))  # type: ignore[arg-type]
    assert both == draws(pool, **flags, methods=("one threshold", "naive"))  # type: ignore[arg-type]
    assert [d for d in both if d.method == "naive"] == draws(pool, **flags, methods=("naive",))  # type: ignore[arg-type]


def test_rows_page_and_picture(pool: Outcomes, quick: list[Draw], tmp_path: Path) -> None:
    draw_picture = pytest.importorskip("mdi_exit.benchmark.risk_picture").draw_picture
    write_draws(quick, tmp_path / "draws.csv")
    with (tmp_path / "draws.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(quick)
    assert sum(int(row["exceeds"]) for row in rows) == sum(draw.exceeds for draw in quick)
    page = markdown(summary(quick, pool.trace("max-probability").plain_macs), "the shipped images", "draws.png")
    assert "18 times of 200" in page
    assert page.count("| one threshold |") == page.count("| naive |") == 4
    draw_picture(quick, tmp_path / "draws.png", "shipped")
    assert (tmp_path / "draws.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(MdiExitError, match="could not write"):
        write_draws(quick, tmp_path / "nowhere" / "draws.csv")


def test_the_command_measures_a_whole_test_set_and_writes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mdi_exit.benchmark.risk.load", lambda *_: shipped())
    defaults = draws.__kwdefaults__ | {"sizes": (500,), "max_losses": (0.02,)}
    monkeypatch.setattr(draws, "__kwdefaults__", defaults)
    rows = measure_risk(tmp_path / "out", None, 0.01)
    assert {row["method"] for row in rows} == {"one threshold", "calibrate", "naive"}
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".csv", ".md", ".png"]
