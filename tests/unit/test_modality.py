"""What an artifact takes decides how an item is prepared, and which inputs fit it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mdi_exit.data import inputs_of, preprocess, shipped
from mdi_exit.engine.profile import PROFILES, camera_scale
from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.modality import modality_of
from mdi_exit.modality.image import ImageInput
from mdi_exit.modality.tensor import TensorInput
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact, sealed
from mdi_exit.model.manifest import AudioSpec, ExitSpec, GraphFile, InputSpec, LayerSpec, Manifest, parse_manifest
from mdi_exit.segments import SegmentKey
from mdi_exit.simulation.costs import costs_of_manifest
from source.inputs import open_any

GRAPH = GraphFile(file="layer-0.onnx", bytes=1, sha256="0" * 64)


def manifest(spec: InputSpec, length: int | None = None) -> Manifest:
    layer = LayerSpec(
        graph=GRAPH, in_shape=spec.shape, out_shape=spec.shape, macs=10, params=0, in_length=length, out_length=length
    )
    return Manifest(
        format=2, name="m", input=spec, labels=("a", "b"), layers=(layer,),
        exits=(ExitSpec(layer=0, graph=GRAPH, macs=1, params=0),),
    )  # fmt: skip


def parsed(made: Manifest) -> Manifest:
    return parse_manifest(sealed(made), "model.json")


DIGEST = "5e645ee999c49289"
VALUES = InputSpec(kind="tensor", shape=(6, 2))


def test_the_shipped_artifact_is_what_it_was_and_takes_images_as_before() -> None:
    artifact = Artifact.open(DEFAULT_MODEL)
    assert artifact.manifest.digest.startswith(DIGEST)
    assert artifact.manifest.computed_digest() == artifact.manifest.digest
    modality, images = modality_of(artifact), shipped().images_NHWC[:3]
    assert modality.kind == "image"
    assert np.array_equal(modality.batch(images), inputs_of(images, artifact.manifest.input))
    assert np.array_equal(modality.prepared(images[0]), preprocess(images[0], artifact.manifest.input))
    file = io.BytesIO()
    Image.fromarray(images[0, ..., 0]).save(file, "PNG")
    assert np.array_equal(modality.read(file.getvalue()), images[0, ..., 0])


def test_values_that_are_ready_are_taken_as_they_are_at_any_length_that_fits() -> None:
    modality = TensorInput(parsed(manifest(VALUES, length=3)))
    for length in (1, 3, 6):
        x = np.full((length, 2), 0.5, np.float32)
        assert np.array_equal(modality.prepared(x), x)
    for bad in (np.zeros((7, 2), np.float32), np.zeros((3, 3), np.float32), np.full((3, 2), np.nan, np.float32)):
        with pytest.raises(ValueError, match="expected finite float32 of shape"):
            modality.ready(bad)
    for strange in ("text", np.zeros((3, 2), np.uint8)):
        with pytest.raises(ValueError, match="item: expected float32 values"):
            modality.prepared(strange)
    with pytest.raises(ValueError, match="got a file"):
        modality.read(b"x")
    with pytest.raises(UsageError, match="values that are ready"):
        modality.batch(("a",))


def test_a_fixed_shape_takes_no_other_length() -> None:
    made = parsed(manifest(VALUES))
    assert made.fits(0, (6, 2))
    assert not made.fits(0, (5, 2))
    assert made.stated_shape(0) == (6, 2)


def test_an_image_model_takes_neither_texts_nor_ready_values_of_another_shape() -> None:
    modality = ImageInput(InputSpec(kind="image", shape=(1, 4, 4), mean=(0.5,), std=(0.5,)))
    with pytest.raises(UsageError, match="an image, as the model takes, got a text"):
        modality.prepared("text")
    with pytest.raises(UsageError, match="images, as the model takes, got texts"):
        modality.batch(("a", "b"))
    with pytest.raises(ValueError, match="expected float32 of shape"):
        modality.ready(np.zeros((1, 4, 5), np.float32))


@pytest.mark.parametrize("spec", ["text:words.txt", "spam-assassin", "spam-assassin:3", "wav:words", "microphone"])
def test_an_input_of_another_kind_is_refused_by_an_image_model(spec: str) -> None:
    with pytest.raises(
        UsageError, match=r"expected image, as the model takes .*got .*which gives (text|audio)"
    ) as caught:
        open_any(spec, Artifact.open(DEFAULT_MODEL).manifest)
    assert "shipped" in str(caught.value)
    assert "spam-assassin[:N]" not in str(caught.value)


@pytest.mark.parametrize("spec", ["shipped", "pictures", "camera", "spam-assassin"])
def test_what_is_named_instead_gives_what_the_model_takes(spec: str) -> None:
    audio = InputSpec(kind="audio", shape=(6, 2), mean=(0.0, 0.0), std=(1.0, 1.0), audio=AudioSpec())
    with pytest.raises(UsageError, match="expected audio, as the model takes") as caught:
        open_any(spec, manifest(audio))
    forms = str(caught.value).partition("(")[2].partition(")")[0]
    assert forms == "test[:N], wav:DIR, microphone[:N|:NAME], mqtt:TOPIC, requests"


def test_what_an_artifact_was_tested_on_needs_a_record_of_it() -> None:
    with pytest.raises(UsageError, match="an artifact that says what it was tested on"):
        open_any("test", manifest(InputSpec(kind="image", shape=(1, 4, 4), mean=(0.5,), std=(0.5,))))


def test_costs_of_anything_but_images_are_stated_and_not_scaled_to_a_camera() -> None:
    made = parsed(manifest(VALUES, length=3))
    assert camera_scale(made) == 1.0
    assert made.plan.feature_bytes == (4 * 3 * 2,)
    assert costs_of_manifest(made, "float16").plan.feature_bytes == (2 * 3 * 2,)
    board = PROFILES["jetson-nano"]
    expected = 11 / board.macs_per_s + board.layer_overhead_s
    assert board.seconds(made, SegmentKey(0, 1, head=True), 1) == pytest.approx(expected)
    with pytest.raises(UsageError, match="one that takes images, got one that takes tensor"):
        _ = made.input.image_shape


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (InputSpec(kind="image", shape=(4, 4), mean=(0.5,), std=(0.5,)), "C, H, W"),
        (InputSpec(kind="image", shape=(1, 4, 4)), "input mean and std"),
        (InputSpec(kind="text", shape=(8,)), "tokenizer"),
    ],
)
def test_an_input_that_contradicts_itself_is_refused(spec: InputSpec, told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        parsed(manifest(spec))
