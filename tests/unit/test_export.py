"""Network and export: what comes out of an artifact is the network that went in, batch and exits and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdi_exit.data import shipped
from mdi_exit.engine import make_engine
from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import InputSpec
from mdi_exit.segments import SegmentKey

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.engine.torch import network_of  # noqa: E402 - only with torch
from mdi_exit.model.export import export_artifact, macs  # noqa: E402
from mdi_exit.model.network import MobileNetV2Config, MultiExitNetwork, mobilenetv2, rebuilt  # noqa: E402

SPEC = InputSpec(kind="image", shape=(1, 28, 28), mean=(0.286,), std=(0.353,))
FIELDS = {"kind": "mobilenetv2", "classes": 10, "channels_in": 1, "width": 0.25, "exits": [2, 8], "stem_stride": 2}


def network(seed: int = 0) -> MultiExitNetwork:
    """Untrained, but with statistics in its batch normalisation that are not those of a start."""
    torch.manual_seed(seed)
    made = mobilenetv2(MobileNetV2Config(width=0.25, exits=(2, 8)))
    made.train()
    with torch.no_grad():
        made(torch.randn(8, 1, 28, 28))
    return made.eval()


def export(folder: Path, made: MultiExitNetwork) -> Artifact:
    return export_artifact(
        made, folder, name="small", input_spec=SPEC, labels=tuple("0123456789"), rebuild=FIELDS, training={}
    )


def images(count: int) -> np.ndarray:
    return (shipped().images_NHWC[:count].transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.286) / np.float32(0.353)


@pytest.fixture(scope="module")
def made() -> MultiExitNetwork:
    return network()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export(tmp_path_factory.mktemp("model"), network())


@pytest.mark.parametrize("cut", range(1, 9))
def test_segments_one_after_the_other_are_the_whole_bit_for_bit(made: MultiExitNetwork, cut: int) -> None:
    x = torch.from_numpy(images(3))
    with torch.inference_mode():
        whole = made(x)
        early = made.exits["2"](made.segment(x, 0, 3))
        last = made.exits["8"](made.segment(made.segment(x, 0, cut), cut, 9))
    assert made.exit_layers == (2, 8)
    assert torch.equal(early, whole[0])
    assert torch.equal(last, whole[1])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_the_exported_graphs_are_the_network_at_every_batch_size(
    artifact: Artifact, made: MultiExitNetwork, batch: int
) -> None:
    x_NCHW, engine, composer = images(batch), make_engine("onnxruntime"), Composer(artifact)
    with torch.inference_mode():
        first, last = (logits.numpy() for logits in made(torch.from_numpy(x_NCHW)))
    key, rest = SegmentKey(0, 3, True), SegmentKey(3, 9, True)
    for each in (key, rest):
        engine.load(each, composer.segment(each))
    output = engine.run(key, x_NCHW)
    np.testing.assert_allclose(output.logits_NK, first, atol=1e-4)
    np.testing.assert_allclose(engine.run(rest, output.features).logits_NK, last, atol=1e-4)


def test_the_weights_come_back_bit_for_bit(artifact: Artifact, made: MultiExitNetwork) -> None:
    back = network_of(artifact).state_dict()
    for name, value in made.state_dict().items():
        assert torch.equal(value, back[name]), name


def test_the_same_network_exports_to_the_same_artifact(artifact: Artifact, tmp_path: Path) -> None:
    assert export(tmp_path / "again", network()).manifest.digest == artifact.manifest.digest
    assert export(tmp_path / "other", network(1)).manifest.digest != artifact.manifest.digest


def test_an_artifact_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    first = export(tmp_path / "model", network())
    assert export(tmp_path / "model", network(1)).manifest.digest != first.manifest.digest
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "model" / "model.json").unlink()
    for folder in (tmp_path / "model", tmp_path / "mine.txt"):
        with pytest.raises(UsageError, match="output folder"):
            export(folder, network())
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_macs_are_those_of_the_paper_formula() -> None:
    convolution = torch.nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    assert macs(convolution, torch.zeros(2, 4, 5, 7)) == 6 * 5 * 7 * (4 // 2) * 9
    assert macs(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), torch.zeros(3, 3, 4)) == 60


def test_macs_and_parameters_in_the_manifest_add_up(artifact: Artifact, made: MultiExitNetwork) -> None:
    manifest = artifact.manifest
    parts = [*manifest.layers, *manifest.exits]
    assert sum(part.params for part in parts) == sum(parameter.numel() for parameter in made.parameters())
    assert sum(part.macs for part in parts) == macs(made, torch.zeros(1, 1, 28, 28))


def test_a_network_without_an_exit_at_its_end_is_not_made() -> None:
    with pytest.raises(ValueError, match="exit at layer 1"):
        MultiExitNetwork([torch.nn.Identity(), torch.nn.Identity()], {0: torch.nn.Identity()})


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "resnet"},
        {"kind": None},
        {"depth": 3},
        {"width": "wide"},
        {"width": 1e400},
        {"exits": 5},
        {"exits": [99]},
        {"classes": -1},
        {"channels_in": "one"},
    ],
    ids=str,
)
def test_a_description_of_no_network_is_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="model network") as caught:
        rebuilt({**FIELDS, **changes})
    assert "\n" not in str(caught.value)
