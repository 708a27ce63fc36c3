"""The comparison of strategies: points at equal cost by hand, and a tiny study that breaks off and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.benchmark import strategies  # noqa: E402 - only with torch
from mdi_exit.benchmark.strategies import STRATEGIES, Study, network_for, run_study, text_study  # noqa: E402
from mdi_exit.benchmark.strategies_run import (  # noqa: E402
    FAMILIES,
    at_cost_rows,
    by_weight_rows,
    measure_strategies,
    own_point_rows,
    text_of,
)
from mdi_exit.errors import UsageError  # noqa: E402
from mdi_exit.training.curve import Curve, at_cost, curve_of, thresholds_for, trace_of  # noqa: E402
from mdi_exit.training.phases import Evaluation, Trainee  # noqa: E402

TINY = Study(
    data="shipped", width=0.125, exits=3, seeds=(0,), epochs=1, batch_size=64, head_epochs=1, warm_up_epochs=1,
    alternating_epochs=1, cost_weights=(0.1, 1.0), limit=128,
)  # fmt: skip


def curve(macs: list[float], accuracies: list[float]) -> Curve:
    return Curve(np.linspace(0, 1, len(macs)), np.array(macs), np.array(accuracies))


def test_a_cost_between_two_thresholds_is_a_mixture_of_both() -> None:
    chosen, scored = curve([10, 20, 40], [0.5, 0.6, 0.9]), curve([12, 22, 38], [0.4, 0.7, 0.8])
    point = at_cost(chosen, scored, 25)
    assert point is not None
    assert (point.threshold, point.accuracy, point.mean_macs) == pytest.approx((0.625, 0.725, 26.0))
    for cost, accuracy in ((10, 0.4), (20, 0.7), (40, 0.8)):
        found = at_cost(chosen, scored, cost)
        assert found is not None
        assert found.accuracy == pytest.approx(accuracy)
    assert at_cost(chosen, scored, 9) is None
    assert at_cost(chosen, scored, 41) is None


def test_a_threshold_curve_by_hand() -> None:
    """Two exits; the first is sure of 0.9 (right) and 0.6 (wrong), the second is right both times."""
    network = network_for(TINY, (1, 28, 28), 2, 0)
    made = Trainee(network)
    p = torch.tensor([[[0.1, 0.9], [0.6, 0.4]], [[0.1, 0.9], [0.2, 0.8]]])
    evaluation = Evaluation(p.log(), torch.tensor([1, 1]))
    assert evaluation.accuracies == (0.5, 1.0)
    from mdi_exit.training.costs import Costs

    trace = trace_of(made, evaluation, Costs((10, 10), (0, 1), (1, 1)), "max-probability")
    found = curve_of(trace, np.array([0.0, 0.7, 1.0]))
    assert found.macs_T.tolist() == [11.0, 16.5, 22.0]
    assert found.accuracies_T.tolist() == [0.5, 1.0, 1.0]
    thresholds = thresholds_for(trace)
    assert thresholds[0] == 0.0
    assert 0.5 in thresholds
    assert thresholds[-1] == 1.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_study(TINY, tmp_path_factory.mktemp("study"), data_dir=None, say=lambda _: None)


def test_all_strategies_have_one_architecture_and_one_scale_of_cost(trained: list[dict[str, Any]]) -> None:
    assert [row["strategy"] for row in trained] == list(STRATEGIES)
    assert len({(tuple(row["costs"]), tuple(row["exit_layers"])) for row in trained}) == 1
    for row in trained:
        for found in row["curves"].values():
            for part in ("calibration", "test"):
                macs = found[part]["macs"]
                assert macs == sorted(macs)
                assert macs[0] == pytest.approx(row["costs"][0], abs=0.1)
                assert macs[-1] == pytest.approx(row["costs"][-1], abs=0.1)


def test_frozen_and_jei_share_a_backbone(trained: list[dict[str, Any]]) -> None:
    by_name = {row["strategy"]: row for row in trained}
    last = {found["exit_accuracies"][-1] for name in ("frozen", "jei") for found in by_name[name]["curves"].values()}
    assert len(last) == 1
    phases = [epoch["phase"] for epoch in by_name["jei"]["epochs"]]
    assert phases == ["backbone", "warm-up", "alternating", "alternating"]


def test_every_family_has_a_point_at_every_cost_and_lambda_its_own(trained: list[dict[str, Any]]) -> None:
    points = list(at_cost_rows(trained, (0.5, 0.9)))
    assert [(row["share"], row["family"]) for row in points] == [
        (share, family) for share in (0.5, 0.9) for family in FAMILIES
    ]
    own = list(own_point_rows(trained))
    assert [row["curve"] for row in own] == ["jei gate λ=0.1", "jei gate λ=1"]
    text = text_of(TINY, trained, points, own)
    assert all(f"| {name} | " in text for name in FAMILIES.values())


def test_a_study_that_broke_off_trains_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / f"strategies-{TINY.key}.unfinished"
    run_study(TINY, work, data_dir=None, say=lambda _: None)
    (work / "frozen-0.json").unlink()
    (work / "frozen-0.checkpoint.pt").unlink()
    said: list[str] = []
    again = run_study(TINY, work, data_dir=None, say=said.append)
    assert [line.split(",")[0] for line in said] == ["seed 0 frozen: heads epoch 1"]
    assert [row["strategy"] for row in again] == list(STRATEGIES)

    def untimely(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(strategies, "fit", untimely)
    rows = measure_strategies(tmp_path, None, TINY)
    assert {row["name"] for row in rows} == {"study", "at cost", "own point", "trained"}
    made = {path.suffix for path in tmp_path.iterdir()}
    assert made == {".md", ".png"}  # nothing unfinished is left
    assert "JEI-DNN's gates" in capsys.readouterr().out


def test_texts_have_two_strategies_and_gates_of_two_kinds_of_targets(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="needs the extra 'text'")
    from tiny_bert import LAYERS, encoder, table

    usual = text_study(
        f"bert:{encoder(tmp_path / 'bert')}", f"text:{table(tmp_path / 'said.jsonl')}", max_length=24, seeds=(0,)
    )
    study = replace(
        usual, epochs=1, head_epochs=1, warm_up_epochs=1, alternating_epochs=1, batch_size=16, cost_weights=(0.1, 1.0)
    )
    rows = measure_strategies(tmp_path, None, study)
    by_name = {row["strategy"]: row for row in rows if row["name"] == "trained"}
    assert list(by_name) == ["frozen", "jei"]
    assert list(by_name["jei"]["curves"]) == [
        f"{kind} {rule} λ={weight}"
        for weight in ("0.1", "1")
        for kind in ("jei", "onward")
        for rule in ("gate", "plain")
    ]
    last = {found["exit_accuracies"][-1] for row in by_name.values() for found in row["curves"].values()}
    assert len(last) == 1
    phases = [epoch["phase"] for epoch in by_name["jei"]["epochs"]]
    assert phases == ["last head", "warm-up", *["alternating"] * 4]
    trained = list(by_name.values())
    weighed = list(by_weight_rows(trained, (0.5, 0.9)))
    assert [(row["curve"], row["share"]) for row in weighed] == [
        (f"{kind} gate λ={weight}", share)
        for kind in ("jei", "onward")
        for weight in ("0.1", "1")
        for share in (0.5, 0.9)
    ]
    (page,) = tmp_path.glob("text-strategies-said-*.md")
    text = page.read_text()
    assert "| onward | 1 | 0 | " in text
    assert "| JEI-DNN's gates, the paper's targets | " in text
    assert f"exit {LAYERS - 1} |" in text
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_study_of_texts_needs_an_encoder() -> None:
    with pytest.raises(UsageError, match="--model: expected bert:PLACE"):
        text_study("resnet18", "spam-assassin", max_length=64, seeds=(0,))
