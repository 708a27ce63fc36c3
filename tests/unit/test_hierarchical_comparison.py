"""Which runs the comparison makes, in which order, and with what it makes them; the runs themselves are played."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.hierarchical import comparison
from mdi_exit.hierarchical.command import Run
from mdi_exit.hierarchical.config import HierarchicalSettings


class Played:
    """Takes the place of real processes; ``failing``: schemes that end badly; ``last``: accuracy of the last exit."""

    def __init__(self, *failing: str) -> None:
        self.asked: list[HierarchicalSettings] = []
        self.checked: list[str] = []
        self.failing = failing
        self.last: dict[str, float] = {}

    async def __call__(self, settings: HierarchicalSettings, _: Any) -> Run:
        self.asked.append(settings)
        if settings.scheme in self.failing:
            raise MdiExitError("no")
        cut = 2 if settings.cut is None else settings.cut
        edge = {
            "cut": cut, "steps": 200, "seconds": 10.0, "busy_s": 40.0, "first_skipped": 50, "last_skipped": 90, "missed": 0,
            "batches_skipped": 41, "slow_edge": settings.slow_edge,
        }  # fmt: skip
        expected = [{"cut": at, "edge_s": 0.1, "link_s": 0.1, "cloud_s": 0.1, "bytes": 1} for at in range(3)]
        return Run(
            settings.scheme, "played", (edge,), {"expected": expected}, (0.5, self.last.get(settings.scheme, 0.6))
        )


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played()
    monkeypatch.setattr(comparison, "measured_run", made)
    monkeypatch.setattr(comparison, "check_model", lambda settings: made.checked.append(settings.model))
    monkeypatch.setattr(
        comparison, "_proof", lambda settings, run: {"checkpoints": {"edge_step": 200, "cloud_batches": 200}}
    )
    return made


def compare(tmp_path: Path, *argv: str) -> tuple[int, list[dict[str, Any]]]:
    file = tmp_path / "rows.jsonl"
    status = comparison.main(["--models", "small_vgg16", "--links", "1Mbit,2Mbit", *argv, "--out", str(file)])
    return status, [json.loads(line) for line in file.read_text().splitlines()[1:]]


def test_it_goes_on_where_it_was_stopped(played: Played, tmp_path: Path) -> None:
    assert compare(tmp_path, "--parts", "time", "--most", "3")[0] == 0
    _, rows = compare(tmp_path, "--parts", "time")
    assert [(row["scheme"], row["link"]) for row in rows] == [
        ("hierarchical", "1Mbit"), ("cloud", "1Mbit"), ("split", "1Mbit"), ("edge", ""),
        ("hierarchical", "2Mbit"), ("cloud", "2Mbit"), ("split", "2Mbit"),
    ]  # fmt: skip
    assert [settings.cut for settings in played.asked] == [None, 2, 2, 2, None, 2, 2]
    assert played.checked == ["small_vgg16"] * 2  # once each time
    assert (tmp_path / "rows.md").read_text().startswith("# Hierarchical training")


def test_every_cut_is_tried_once_the_model_has_said_how_many_there_are(played: Played, tmp_path: Path) -> None:
    _, rows = compare(tmp_path, "--parts", "cuts", "--cuts-steps", "7")
    assert [row["asked_cut"] for row in rows] == ["auto", 0, 1, 2]
    assert {settings.steps for settings in played.asked} == {7}


def test_an_outage_comes_with_an_edge_that_is_slow_enough_for_a_time_after_it(played: Played, tmp_path: Path) -> None:
    compare(tmp_path, "--parts", "accuracy,outage", "--seeds", "2")
    outages = [settings for settings in played.asked if settings.outage is not None]
    assert [settings.seed for settings in outages] == [0, 1]
    assert {settings.slow_edge for settings in outages} == {3.0}  # 40 s of computing, four outages of 30 s
    assert {settings.slow_edge for settings in played.asked if settings.outage is None} == {1.0}


def test_a_run_that_fails_is_a_row_that_says_so_and_is_tried_again(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played.failing = ("split",)
    status, rows = compare(tmp_path, "--parts", "time", "--links", "1Mbit")
    assert status == 1
    assert [row.get("failed") for row in rows] == [None, None, "no", None]
    played.failing = ()
    status, rows = compare(tmp_path, "--parts", "time", "--links", "1Mbit")
    assert status == 0
    assert [row["scheme"] for row in rows if "failed" not in row] == ["hierarchical", "cloud", "edge", "split"]


def test_all_schemes_are_judged_or_those_that_are_wanted(played: Played, tmp_path: Path) -> None:
    judged = ("--parts", "accuracy", "--seeds", "1")
    assert [row["scheme"] for row in compare(tmp_path, *judged, "--judged", "split")[1]] == ["split"]
    assert [row["scheme"] for row in compare(tmp_path, *judged)[1]] == ["split", "hierarchical", "cloud", "edge"]
    page = (tmp_path / "rows.md").read_text()
    assert "| small_vgg16 | split | int8 | 0.05 | 2 | 1 | 50.00 | 60.00 (60.00) | 0.00 |" in page
    assert "| small_vgg16 | edge |  | 0.05 | 2 | 1 | 50.00 | 60.00 (60.00) | 0.00 |" in page


def test_another_codec_or_peak_rate_is_a_row_of_its_own(played: Played, tmp_path: Path) -> None:
    played.last["cloud"] = 0.65
    judged = ("--parts", "accuracy", "--seeds", "1", "--judged", "hierarchical,cloud")
    compare(tmp_path, *judged)
    compare(tmp_path, *judged, "--codec", "int4")  # no other cloud: it sends no features
    _, rows = compare(tmp_path, *judged, "--codec", "int4", "--learning-rate", "0.02")
    assert [(row["scheme"], row.get("codec"), row["learning_rate"]) for row in rows] == [
        ("hierarchical", "int8", 0.05), ("cloud", None, 0.05), ("hierarchical", "int4", 0.05),
        ("hierarchical", "int4", 0.02), ("cloud", None, 0.02),
    ]  # fmt: skip
    assert [(settings.codec, settings.learning_rate) for settings in played.asked][2:4] == [
        ("int4", 0.05),
        ("int4", 0.02),
    ]
    assert [line.split(" | ")[1:4] + line.split(" | ")[-1:] for line in accuracies(tmp_path)] == [
        ["hierarchical", "int8", "0.05", "5.00 |"], ["hierarchical", "int4", "0.05", "5.00 |"], ["cloud", "", "0.05", " |"],
        ["hierarchical", "int4", "0.02", "5.00 |"], ["cloud", "", "0.02", " |"],
    ]  # fmt: skip


def test_rows_from_before_there_was_a_codec_to_choose_are_of_int8(played: Played, tmp_path: Path) -> None:
    compare(tmp_path, "--parts", "time,accuracy", "--seeds", "1")
    file = tmp_path / "rows.jsonl"
    head, *rows = [json.loads(line) for line in file.read_text().splitlines()]
    older = [{name: value for name, value in row.items() if name not in ("codec", "learning_rate")} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in (head, *older)))
    assert compare(tmp_path, "--parts", "time,accuracy", "--seeds", "1")[1] == older
    assert "codec" not in older[0]
    played.asked.clear()
    compare(tmp_path, "--parts", "time", "--codec", "int4")
    assert [(settings.scheme, settings.cut) for settings in played.asked] == [
        ("hierarchical", None), ("split", 2), ("hierarchical", None), ("split", 2),
    ]  # fmt: skip


def test_the_drop_is_taken_seed_by_seed_over_the_seeds_that_both_have(played: Played, tmp_path: Path) -> None:
    played.last["cloud"] = 0.65
    compare(tmp_path, "--parts", "accuracy", "--seeds", "1", "--judged", "cloud")
    compare(tmp_path, "--parts", "accuracy", "--seeds", "3", "--judged", "hierarchical")
    assert [line.split(" | ")[5:] for line in accuracies(tmp_path)] == [
        ["3", "50.00", "60.00 (60.00, 60.00, 60.00)", "5.00 |"], ["1", "50.00", "65.00 (65.00)", " |"],
    ]  # fmt: skip


def accuracies(tmp_path: Path) -> list[str]:
    """The lines of that table."""
    text = (tmp_path / "rows.md").read_text()
    return text.partition("last exit % (each seed)")[2].partition("\n\n")[0].splitlines()[2:]


def test_a_model_that_is_none_is_a_mistake_and_no_row(tmp_path: Path) -> None:
    images, labels = np.zeros((40, 16, 16), np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "some.npz", x=images, y=labels, x_test=images, y_test=labels)
    rows = tmp_path / "rows.jsonl"
    with pytest.raises(UsageError, match="small_vgg16"):
        comparison.main(["--models", "nope", "--data", f"npz:{tmp_path / 'some.npz'}", "--out", str(rows)])
    assert len(rows.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--links", "fast"), ("--cuts-link", "0Mbit"), ("--parts", "all"), ("--schemes", "none"), ("--judged", "all"),
     ("--seeds", "0"), ("--most", "0"), ("--images", "-1"), ("--codec", "int2"), ("--learning-rate", "0")],
)  # fmt: skip
def test_mistakes_are_one_line(flag: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"^{flag}"):
        comparison.main(["--out", str(tmp_path / "rows.jsonl"), flag, value])
