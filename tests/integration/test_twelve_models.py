"""Twelve published models: partitioned, exported, and the split is the whole at every cut."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from mdi_exit.engine import make_engine
from mdi_exit.engine.base import Engine
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import InputSpec
from mdi_exit.segments import SegmentKey

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

import torchvision  # noqa: E402 - only with torch
from safetensors.torch import save_file  # noqa: E402

from mdi_exit.model.build import built  # noqa: E402
from mdi_exit.model.export import export_artifact  # noqa: E402
from mdi_exit.model.graph import as_traced  # noqa: E402

CLASSES = 10
IMAGES = 3
# The side of the images, and the least number of layers that is worth calling a partition.
MODELS = {
    "resnet18": (32, 9),
    "resnet50": (32, 17),
    "vgg16": (32, 15),
    "mobilenet_v2": (32, 32),
    "mobilenet_v3_small": (32, 25),
    "efficientnet_b0": (64, 35),
    "densenet121": (32, 8),
    "convnext_tiny": (32, 22),
    "vit_b_16": (32, 25),
    "swin_t": (64, 25),
    "regnet_y_400mf": (32, 17),
    "plain": (32, 4),
}
SEVERAL_CUTS = ("plain", "resnet18", "mobilenet_v3_small", "densenet121", "regnet_y_400mf")


def plain() -> torch.nn.Sequential:
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16),
        nn.SiLU(inplace=True), nn.Conv2d(16, 12, 1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12 * 14 * 14, 32), nn.Tanh(),
        nn.Linear(32, CLASSES),
    )  # fmt: skip


def lived_in(name: str, side: int) -> torch.nn.Module:
    """Random weights, but none that are all alike as those of a start, and statistics in the norms that come of images."""
    torch.manual_seed(0)
    if name == "plain":
        made = plain()
    else:
        options = {"image_size": side} if name.startswith("vit") else {}
        made = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.min() == weight.max():
                weight.add_(0.1 * torch.randn_like(weight))
        made.train()(torch.randn(16, 3, side, side))
    return made.eval()


@dataclass
class Case:
    """The original network's answers to ``x_NCHW``, and the artifact made of it."""

    name: str
    x_NCHW: np.ndarray
    whole_NK: np.ndarray
    artifact: Artifact

    @property
    def layers(self) -> int:
        return len(self.artifact.manifest.layers)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Through the same doors as a user's model: a name and a file of weights, or MODULE:FACTORY. Half a gigabyte at most."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    side, _ = MODELS[name]
    torch.set_num_threads(1)  # as the engine does: with more, sums are made in another order
    original = lived_in(name, side)
    save_file(original.state_dict(), folder / "weights.safetensors")
    x_NCHW = np.random.default_rng(1).standard_normal((IMAGES, 3, side, side)).astype(np.float32)
    with torch.inference_mode(), as_traced():
        whole_NK = original(torch.from_numpy(x_NCHW)).numpy()
    made = built(
        f"{__name__}:plain" if name == "plain" else name,
        input_shape=(3, side, side),
        classes=CLASSES,
        weights=folder / "weights.safetensors",
    )
    artifact = export_artifact(
        made.network,
        folder / "model",
        name=name,
        input_spec=InputSpec(kind="image", shape=(3, side, side), mean=(0.5,) * 3, std=(0.25,) * 3),
        labels=tuple(f"class {number}" for number in range(CLASSES)),
        rebuild=made.description,
        training={},
        names=made.layer_names,
        files=made.files,
    )
    assert sum(layer.params for layer in artifact.manifest.layers) + artifact.manifest.exits[-1].params == sum(
        weight.numel() for weight in original.parameters()
    )
    yield Case(name, x_NCHW, whole_NK, artifact)
    shutil.rmtree(folder)


def run(engine: Engine, composer: Composer | None, case: Case, stops: list[int]) -> list[np.ndarray]:
    """What leaves each segment when the network is cut at ``stops``; the logits last."""
    left, x = [], case.x_NCHW
    for entry, stop in pairwise([0, *stops, case.layers]):
        key = SegmentKey(entry, stop, head=stop == case.layers)
        engine.load(key, composer.segment(key) if composer is not None else b"")
        output = engine.run(key, x)
        x = output.logits_NK if key.head else output.features
        left.append(x)
    return left


def test_it_has_its_layers_each_with_work_a_name_and_a_shape(case: Case) -> None:
    manifest = case.artifact.manifest
    assert case.layers >= MODELS[case.name][1]
    assert all(layer.macs > 0 and layer.params > 0 and layer.name for layer in manifest.layers)
    assert len({layer.name for layer in manifest.layers}) == case.layers
    assert len(manifest.exits) == 1


def test_in_torch_the_split_is_the_whole_bit_for_bit_at_every_cut(case: Case) -> None:
    engine = make_engine("torch", model=str(case.artifact.folder))
    for cut in range(1, case.layers):
        assert np.array_equal(run(engine, None, case, [cut])[-1], case.whole_NK), f"cut before layer {cut}"
    assert np.array_equal(run(engine, None, case, list(range(1, case.layers)))[-1], case.whole_NK)


def test_in_onnx_every_layer_gives_the_same_within_1e_4_and_the_split_the_same_label(case: Case) -> None:
    """Cut at every cut at once, where errors would add up; the lighter models also in two at each cut."""
    everywhere = list(range(1, case.layers))
    composer, engine = Composer(case.artifact), make_engine("onnxruntime")
    expected = run(make_engine("torch", model=str(case.artifact.folder)), None, case, everywhere)
    found = run(engine, composer, case, everywhere)
    for layer, (theirs, ours) in enumerate(zip(expected, found, strict=True)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4, err_msg=f"layer {layer}")
    np.testing.assert_array_equal(found[-1].argmax(axis=1), case.whole_NK.argmax(axis=1))
    for cut in everywhere if case.name in SEVERAL_CUTS else []:
        logits_NK = run(make_engine("onnxruntime"), Composer(case.artifact), case, [cut])[-1]
        np.testing.assert_allclose(logits_NK, case.whole_NK, atol=1e-4, rtol=1e-4, err_msg=f"cut before layer {cut}")
        np.testing.assert_array_equal(logits_NK.argmax(axis=1), case.whole_NK.argmax(axis=1))
