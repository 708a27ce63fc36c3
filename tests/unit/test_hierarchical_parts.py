"""The parts of a cut network learn each by itself; split learning learns what the whole would."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")

import torch

from mdi_exit.errors import MdiExitError, UsageError, WireError
from mdi_exit.hierarchical.comparison_page import page_of
from mdi_exit.hierarchical.config import HierarchicalSettings
from mdi_exit.hierarchical.parts import (
    CloudPart,
    EdgePart,
    LatestLosses,
    WholePart,
    mean_of,
    rate_at,
    state_bytes,
    state_of,
)
from mdi_exit.hierarchical.post import Pieces
from mdi_exit.hierarchical.study import Study
from mdi_exit.hierarchical.timing import cloud_step_s, edge_step_s
from mdi_exit.model.build import built
from mdi_exit.model.network import MultiExitNetwork
from mdi_exit.wire import Weights

CUT = 2


def network() -> MultiExitNetwork:
    made = built("small_vgg11", input_shape=(1, 16, 16), classes=3, exits=(CUT,), width=0.125, seed=1)
    return made.network


def batch() -> tuple[Any, Any]:
    chance = torch.Generator().manual_seed(0)
    return torch.randn(8, 1, 16, 16, generator=chance), torch.arange(8) % 3


def copied(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.clone() for key, value in state.items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key, value in after.items() if not torch.equal(value, before[key])}


def test_each_part_trains_its_own_and_nothing_else() -> None:
    whole = network()
    edge, cloud = EdgePart(whole, CUT, 0.05), CloudPart(whole, CUT, 0.05)
    assert set(edge.state()) | set(cloud.state()) == set(whole.state_dict())
    assert not set(edge.state()) & set(cloud.state())
    before = copied(whole.state_dict())
    x, labels = batch()
    features, loss = edge.train(x, labels, 0.5)
    assert loss > 0
    assert changed(before, whole.state_dict()) == set(edge.state())
    before = copied(whole.state_dict())
    _, gradient = cloud.train(features, labels.numpy(), 0.5)
    assert gradient is None
    assert changed(before, whole.state_dict()) == set(cloud.state())


def test_split_learning_is_training_of_the_whole_in_two_places() -> None:
    here, there = network(), network()
    whole = WholePart(here, 0.05)
    edge, cloud = EdgePart(there, CUT, 0.05), CloudPart(there, CUT, 0.05)
    x, labels = batch()
    for step in range(3):
        whole.train(x, labels, step / 3)
        features, _ = edge.forward(x, labels)
        _, gradient = cloud.train(features, labels.numpy(), step / 3, gradient=True)
        assert gradient is not None
        edge.backward(gradient, step / 3)
    for key, value in here.state_dict().items():
        assert torch.allclose(value, there.state_dict()[key], atol=1e-4), key
    with pytest.raises(ValueError, match="expected a forward pass"):
        edge.backward(gradient, 1.0)


def test_a_part_goes_on_from_its_checkpoint() -> None:
    first, x_labels = EdgePart(network(), CUT, 0.05), batch()
    first.train(*x_labels, 0.2)
    saved = copy.deepcopy(first.checkpoint())
    second = EdgePart(network(), CUT, 0.05)
    second.restore(saved)
    first.train(*x_labels, 0.4)
    second.train(*x_labels, 0.4)
    assert not changed(first.state(), second.state())


def test_training_that_runs_away_stops_and_spoils_nothing() -> None:
    cloud = CloudPart(network(), CUT, 0.05)
    before = {name: value.clone() for name, value in cloud.network.named_parameters()}
    with pytest.raises(MdiExitError, match="a smaller --learning-rate"):
        cloud.train(np.full((8, 32, 4, 4), np.nan, np.float32), np.arange(8) % 3, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in cloud.network.named_parameters())


def test_a_part_takes_only_its_own_weights() -> None:
    edge, cloud = EdgePart(network(), CUT, 0.05), CloudPart(network(), CUT, 0.05)
    with pytest.raises(WireError):
        edge.load(cloud.state())
    with pytest.raises(WireError):
        state_of(b"no safetensors at all")
    edge.load(state_of(state_bytes(edge.state())))


def test_the_mean_of_parts_is_weighted_by_samples() -> None:
    one = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
    two = {"w": torch.tensor([4.0, 0.0]), "n": torch.tensor(5)}
    mean = mean_of([(one, 300), (two, 100)])
    assert mean["w"].tolist() == [1.0, 3.0]
    assert int(mean["n"]) == 3
    with pytest.raises(WireError):
        mean_of([(one, 1), ({"w": torch.zeros(3)}, 1)])


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [rate_at(step / 100, 0.1) for step in range(101)]
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == 15
    assert rates[0] == pytest.approx(rates[-1]) == pytest.approx(0.002)


def test_weights_are_put_together_from_pieces_of_one_round() -> None:
    pieces = Pieces(100)

    def piece(number: int, index: int) -> Weights:
        return Weights(1, 2, number, 10, index, 2, 0)

    assert pieces.added(piece(1, 0), memoryview(b"old")) is None
    assert pieces.added(piece(2, 1), memoryview(b"b")) is None
    assert pieces.added(piece(2, 1), memoryview(b"b")) is None
    assert pieces.added(piece(2, 0), memoryview(b"a")) == b"ab"


def test_settings_that_do_not_fit_are_a_users_mistake(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="--slow-edge"):
        HierarchicalSettings(out=tmp_path, name="a", slow_edge=0.5)
    with pytest.raises(UsageError, match="--scheme"):
        HierarchicalSettings(out=tmp_path, name="a", role="edge", schemes=("cloud", "split"))


def test_the_page_compares_with_the_cloud() -> None:
    edge = {
        "steps": 200, "steps_an_epoch": 200, "bytes_sent": 2_000_000, "batches_skipped": 40, "missed": 0, "first_skipped": 60,
        "last_skipped": 99,
    }  # fmt: skip
    row = {
        "part": "time", "model": "small_vgg16", "link": "1Mbit", "seed": 0, "emulated_slow_edge": 1.0, "cut": 5,
        "images": 10_000, "edges": [edge], "cloud": {},
    }  # fmt: skip
    expected = [{"cut": at, "edge_s": 0.1, "link_s": 0.3 - 0.1 * at, "cloud_s": 0.1} for at in range(2)]
    cuts = {**row, "part": "cuts", "cut": 1, "cloud": {"expected": expected}}
    rows = [
        {**row, "scheme": "hierarchical", "seconds": 30.0, "step_s": 0.15},
        {**row, "scheme": "cloud", "seconds": 60.0, "step_s": 0.3},
        {**row, "scheme": "hierarchical", "seconds": 45.0, "step_s": 0.225, "emulated_slow_edge": 4.0},
        {**cuts, "asked_cut": "auto", "step_s": 0.2},
        {**cuts, "asked_cut": 0, "step_s": 0.31},
        {**cuts, "asked_cut": 1, "step_s": 0.21},
        {**row, "part": "accuracy", "scheme": "cloud", "accuracy_by_exit": [0.7, 0.8]},
        {**row, "seed": 1, "part": "accuracy", "scheme": "cloud", "accuracy_by_exit": [0.8, 0.9]},
        {**row, "part": "accuracy", "scheme": "hierarchical", "accuracy_by_exit": [0.7, 0.84]},
        {**row, "part": "accuracy", "scheme": "hierarchical", "failed": "no"},
        {
            **row, "part": "outage", "scheme": "hierarchical", "accuracy_by_exit": [0.7, 0.83],
            "checkpoints": {"edge_step": 200, "cloud_batches": 198},
        },
    ]  # fmt: skip
    page = page_of(rows)
    assert "| 200 | 30.0 | 0.150 |  | 30 | 50 % | 29 % |" in page
    assert (
        "| 4 times slower (emulated) | 1Mbit | hierarchical | int8 | 5 | 200 | 200 | 45.0 | 0.225 |  | 45 | 25 % | 29 % |"
        in page
    )
    assert "| 1 | 0.100 | 0.200 | 0.100 | 0.200 | 0.210 | chosen, least |" in page
    assert "| 2 | 75.00 | 85.00 (80.00, 90.00) |  |" in page
    assert "| 1 | 70.00 | 84.00 (84.00) | -4.00 |" in page
    assert "| 60 to 99 of 200 | 40 | 200, 198 | 70.00 | 83.00 | 84.00 to 84.00 |" in page


def test_features_are_no_view_of_what_is_trained() -> None:
    edge = EdgePart(network(), CUT, 0.05)
    features, _ = edge.train(*batch(), 0.5)
    assert features.dtype == np.float32
    assert features.shape == (8, 32, 4, 4)
    assert features.flags["C_CONTIGUOUS"]


def test_a_thread_that_has_worked_before_computes_with_as_many_threads_as_told(tmp_path: Any) -> None:
    """Else steps are timed with all cores, and made with one."""
    before = torch.get_num_threads()

    def told() -> int:
        torch.set_num_threads(3)
        Study(HierarchicalSettings(out=tmp_path / "model", name="a", data="shipped", model="small_vgg11", width=0.125))
        return torch.get_num_threads()

    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(told).result() == 1
    finally:
        torch.set_num_threads(before)


def test_steps_are_timed_for_each_cut(tmp_path: Any) -> None:
    study = Study(
        HierarchicalSettings(out=tmp_path / "model", name="a", data="shipped", model="small_vgg11", width=0.125)
    )
    images, labels = torch.rand(50, 1, 28, 28), torch.arange(50) % 10
    here, there = edge_step_s(study, lambda _: (images, labels), 1.0), cloud_step_s(study)
    assert len(here) == len(there) == study.layer_count - 1
    assert min(*here, *there) > 0


def test_features_as_at_inference_change_nothing() -> None:
    whole = network()
    edge = EdgePart(whole, CUT, 0.05)
    images, labels = batch()
    edge.train(images, labels, 0.5)
    before = copied(whole.state_dict())
    features = edge.features(images)
    assert not changed(before, whole.state_dict())
    whole.eval()
    with torch.no_grad():
        assert np.allclose(features, whole.segment(images, 0, CUT + 1).numpy(), atol=1e-6)


def test_the_loss_that_is_told_is_of_the_last_fifty_steps() -> None:
    losses = LatestLosses()
    assert losses.mean is None
    losses.extend([100.0] * 10 + [1.0, 3.0] * 25)
    assert losses.mean == 2.0
