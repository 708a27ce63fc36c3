"""A transformer of texts: its layers, its artifact, and that a text gives the same however it is cut and batched."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
pytest.importorskip("tokenizers", reason="needs the extra 'text'")

from tiny_bert import LAYERS, WIDTH, encoder, table  # noqa: E402 - only with torch

from mdi_exit.data import splits  # noqa: E402
from mdi_exit.engine import make_engine  # noqa: E402
from mdi_exit.engine.base import Engine  # noqa: E402
from mdi_exit.errors import ArtifactError, UsageError  # noqa: E402
from mdi_exit.modality import modality_of  # noqa: E402
from mdi_exit.model.artifact import Artifact, sealed  # noqa: E402
from mdi_exit.model.build import built, rebuilt  # noqa: E402
from mdi_exit.model.compose import Composer  # noqa: E402
from mdi_exit.model.manifest import parse_manifest  # noqa: E402
from mdi_exit.outcomes import outcomes  # noqa: E402
from mdi_exit.padding import stacked, unpadded  # noqa: E402
from mdi_exit.segments import SegmentKey  # noqa: E402
from mdi_exit.training import command  # noqa: E402
from mdi_exit.workbench.partition import main as partition  # noqa: E402

Array = NDArray[np.float32]
FLAGS = ("--threads", "1", "--epochs", "6", "--batch-size", "16", "--learning-rate", "0.1", "--max-length", "24")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    encoder(root / "bert")
    table(root / "said.jsonl")
    return root


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Artifact:
    """An exit after each layer, heads trained on texts while the layers stay as they came."""
    flags = ("--model", f"bert:{folder / 'bert'}", "--data", f"text:{folder / 'said.jsonl'}", "--strategy", "frozen")
    assert command.main([*flags, "--out", str(folder / "made"), *FLAGS]) == 0
    return Artifact.open(folder / "made")


@pytest.fixture(scope="module")
def items(artifact: Artifact, folder: Path) -> list[Array]:
    """All test texts as they enter layer 0."""
    texts = splits(f"text:{folder / 'said.jsonl'}").test.items
    modality = modality_of(artifact)
    found = [modality.prepared(text) for text in texts]
    assert len({len(x) for x in found}) > 5
    return found


def loaded(name: str, artifact: Artifact, stops: list[int]) -> tuple[Engine, list[SegmentKey]]:
    engine, composer = make_engine(name, model=str(artifact.folder)), Composer(artifact)
    keys = [SegmentKey(entry, stop, head=True) for entry, stop in pairwise([0, *stops])]
    for key in keys:
        engine.load(key, composer.segment(key))
    return engine, keys


def logits_of(engine: Engine, keys: list[SegmentKey], x: Array) -> Array:
    """Of the last segment's head for one item, cut back at each cut as a node does."""
    for key in keys:
        output = engine.run(key, x[None])
        if output.features is None:
            assert output.logits_NK is not None
            return output.logits_NK[0]
        x = unpadded(output.features[0])
    raise AssertionError("expected a network that ends")


def test_the_manifest_says_what_a_text_becomes(artifact: Artifact) -> None:
    manifest = artifact.manifest
    assert (manifest.input.kind, manifest.input.shape, manifest.labels) == ("text", (24,), ("bad", "good"))
    assert manifest.input.text is not None
    assert manifest.input.text.tokenizer in {extra.file for extra in manifest.files}
    assert [spec.layer for spec in manifest.exits] == list(range(LAYERS))
    assert manifest.layers[0].codec == "float32"
    assert [manifest.in_shape(layer) for layer in range(LAYERS)] == [(24,), (24, WIDTH), (24, WIDTH)]
    length = manifest.layers[0].in_length
    assert length is not None
    assert 5 < length < 24
    assert manifest.plan.feature_bytes == (4 * length, 4 * length * WIDTH, 4 * length * WIDTH)
    assert manifest.fits(1, (3, WIDTH))
    assert not any(manifest.fits(1, shape) for shape in ((0, WIDTH), (25, WIDTH), (3, WIDTH + 1), (3,)))


def test_heads_on_a_frozen_encoder_learn_and_it_stays_as_it_came(artifact: Artifact, folder: Path) -> None:
    given = built(f"bert:{folder / 'bert'}", input_shape=(24,), classes=2)
    from mdi_exit.engine.torch import network_of

    trained = network_of(artifact)
    for name, value in given.network.layers.state_dict().items():
        assert torch.equal(value, trained.layers.state_dict()[name]), name
    losses = artifact.manifest.training["losses"]
    assert losses[5] < losses[0]
    assert losses[11] < losses[6]
    assert artifact.manifest.training["phases"] == ["last head: 6 epochs", "heads: 6 epochs"]


@pytest.mark.parametrize("stops", [[1, 2, 3], [1, 3], [2, 3]])
def test_split_equals_whole_for_every_item(artifact: Artifact, items: list[Array], stops: list[int]) -> None:
    torch_whole, whole = loaded("torch", artifact, [LAYERS])
    torch_split, keys = loaded("torch", artifact, stops)
    onnx_split, _ = loaded("onnxruntime", artifact, stops)
    for x in items:
        expected = logits_of(torch_whole, whole, x)
        assert np.array_equal(logits_of(torch_split, keys, x), expected)
        in_onnx = logits_of(onnx_split, keys, x)
        assert np.abs(in_onnx - expected).max() < 1e-4
        assert in_onnx.argmax() == expected.argmax()


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
def test_a_text_gives_the_same_whatever_it_is_batched_with(artifact: Artifact, items: list[Array], name: str) -> None:
    engine, (key,) = loaded(name, artifact, [LAYERS])
    alone = np.stack([logits_of(engine, [key], x) for x in items])
    for size in (2, 7, len(items)):
        for begin in range(0, len(items), size):
            together = engine.run(key, stacked(items[begin : begin + size])).logits_NK
            assert together is not None
            np.testing.assert_allclose(together, alone[begin : begin + size], atol=1e-5)
            assert np.array_equal(together.argmax(1), alone[begin : begin + size].argmax(1))


def test_padding_comes_out_as_zeros_and_no_text_at_all_as_numbers(artifact: Artifact, items: list[Array]) -> None:
    engine, keys = loaded("onnxruntime", artifact, [2, 3])
    features = engine.run(keys[0], stacked([items[0], np.zeros(24, np.float32)])).features
    assert features is not None
    assert not features[0, len(items[0]) :].any()
    assert not features[1].any()
    assert features[0, : len(items[0])].any(axis=1).all()
    for strange in (0.0, float("nan"), 1e30, -5.0):
        output = engine.run(SegmentKey(0, 2, head=True), np.full((1, 4), strange, np.float32))
        assert output.logits_NK is not None
        assert np.isfinite(output.logits_NK).all()


def test_outcomes_of_a_whole_set_are_those_of_single_texts(
    artifact: Artifact, items: list[Array], folder: Path
) -> None:
    test = splits(f"text:{folder / 'said.jsonl'}").test
    engine, keys = loaded("onnxruntime", artifact, [LAYERS])
    alone = np.stack([logits_of(engine, keys, x) for x in items])
    np.testing.assert_allclose(outcomes(artifact, test).logits_SNK[-1], alone, atol=1e-5)
    rough = outcomes(artifact, test, codec="int8").logits_SNK[-1]
    assert 0 < np.abs(rough - alone).max() < 0.5


def test_gates_are_learned_on_it(folder: Path) -> None:
    flags = ("--model", f"bert:{folder / 'bert'}", "--data", f"text:{folder / 'said.jsonl'}", "--strategy", "jei")
    assert command.main([*flags, "--out", str(folder / "gated"), *FLAGS, "--warm-up-epochs", "2"]) == 0
    gated = Artifact.open(folder / "gated").manifest
    assert gated.calibration.measure == "gate"
    assert gated.training["gate_targets"] == "once"
    assert [spec.gate is not None for spec in gated.exits] == [True, True, False]


def test_it_is_trained_on_from_its_artifact(artifact: Artifact, folder: Path) -> None:
    flags = ("--from", str(artifact.folder), "--data", f"text:{folder / 'said.jsonl'}", "--strategy", "frozen")
    assert command.main([*flags, "--out", str(folder / "again"), "--epochs", "1", "--threads", "1"]) == 0
    again = Artifact.open(folder / "again").manifest
    assert (again.input, again.network) == (artifact.manifest.input, artifact.manifest.network)


def test_the_encoder_alone_is_partitioned_and_checked_against_the_whole(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert partition([f"bert:{folder / 'bert'}", "--max-length", "16", "--out", str(tmp_path / "parts")]) == 0
    assert "bit-equal in torch" in capsys.readouterr().out
    manifest = Artifact.open(tmp_path / "parts").manifest
    assert (manifest.input.kind, manifest.input.shape, len(manifest.exits)) == ("text", (16,), LAYERS)
    with pytest.raises(UsageError, match="--input-shape: expected C,H,W of one image, got none"):
        partition(["resnet18", "--out", str(tmp_path / "other")])


# --- what cannot work


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--model", "mobilenetv2"), "bert:FOLDER for texts, got mobilenetv2"),
        ((), "bert:FOLDER for texts, got none"),
        (("--model", "bert:nowhere"), "config.json, model.safetensors and tokenizer.json, got none"),
        (("--model", "BERT", "--max-length", "99"), "at most 32 for"),
        (("--model", "BERT", "--input-shape", "1,8,8"), "--max-length for texts, got 1,8,8"),
        (("--model", "BERT", "--data", "shipped"), "one that takes images, as the data is"),
    ],
)
def test_what_does_not_fit_is_told_before_training(
    folder: Path, tmp_path: Path, flags: tuple[str, ...], told: str
) -> None:
    given = [flag.replace("BERT", f"bert:{folder / 'bert'}") for flag in flags]
    with pytest.raises(UsageError, match=told) as caught:
        command.main(["--data", f"text:{folder / 'said.jsonl'}", "--out", str(tmp_path / "out"), *given])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"hidden_act": "relu"}, "bert, gelu, absolute positions, got bert, relu, absolute"),
        ({"hidden_size": 25}, "the sizes of a BERT-like encoder"),
        ({"num_hidden_layers": 4}, "the weights of a BERT-like encoder, got no 'encoder.layer.3"),
        ({"intermediate_size": 40}, "weights of the sizes that config.json says"),
        ({"vocab_size": "many"}, "the sizes of a BERT-like encoder"),
    ],
)
def test_a_folder_that_is_none_is_told_in_one_line(tmp_path: Path, changed: dict[str, object], told: str) -> None:
    encoder(tmp_path, **changed)
    with pytest.raises(UsageError, match=told) as caught:
        built(f"bert:{tmp_path}", input_shape=(16,), classes=2)
    assert "\n" not in str(caught.value)


def test_a_description_out_of_limits_makes_no_network(artifact: Artifact) -> None:
    described = artifact.manifest.network
    for wrong in ({"words": 2**40}, {"heads": 7}, {"layers": 0}):
        with pytest.raises(ArtifactError, match="the fields of kind transformer"):
            rebuilt({**described, "sizes": {**described["sizes"], **wrong}}, {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda plain: plain["input"].update(shape=[24, 2]), "the most tokens"),
        (lambda plain: plain["input"].pop("text"), "tokenizer: expected one of the artifact's files"),
        (lambda plain: plain["input"]["text"].update(tokenizer="other.json"), "tokenizer: expected one of"),
        (lambda plain: plain["layers"][1].pop("in_length"), "length entering layer 1"),
        (lambda plain: plain["layers"][0].update(in_length=25), "length entering layer 0"),
        (lambda plain: plain["layers"][-1].update(out_length=25), "length leaving the last layer"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(artifact: Artifact, change: object, told: str) -> None:
    import msgspec

    from mdi_exit.model.manifest import Manifest

    plain = json.loads(artifact.manifest_bytes)
    change(plain)  # type: ignore[operator]
    raw = sealed(msgspec.convert(plain, Manifest))
    with pytest.raises(ArtifactError, match=told):
        parse_manifest(raw, "model.json")
