"""Learned bottlenecks: their shapes, their training, and an artifact that has one."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mdi_exit.cut_rows import accuracies_of
from mdi_exit.data import inputs_of, shipped
from mdi_exit.engine import make_engine
from mdi_exit.engine.profile import PROFILES
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.variant import Variant, write_variant
from mdi_exit.outcomes import outcomes
from mdi_exit.segments import SegmentKey
from mdi_exit.tensors import decode_tensor, encode_tensor

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.engine.torch import network_of  # noqa: E402 - only with torch
from mdi_exit.training.bottleneck import (  # noqa: E402
    Autoencoder,
    BottleneckConfig,
    _stepped,
    autoencoder,
    exported,
    train_bottleneck,
)

SHAPES = [
    ((16, 8, 8), 4, 2, (4, 4, 4)),
    ((16, 7, 7), 3, 2, (3, 4, 4)),
    ((16, 7, 7), 5, 1, (5, 7, 7)),
    ((6, 9, 5), 2, 3, (2, 3, 2)),
    ((9, 9, 24), 5, 1, (9, 9, 5)),
    ((17, 24), 6, 1, (17, 6)),
    ((40,), 7, 1, (7,)),
]


@pytest.mark.parametrize(("shape", "channels", "stride", "code"), SHAPES, ids=str)
def test_the_exported_halves_are_the_autoencoder(
    shape: tuple[int, ...], channels: int, stride: int, code: tuple[int, ...]
) -> None:
    import onnxruntime

    torch.manual_seed(0)
    made = autoencoder(shape, channels, stride, positive=True)
    x_N = torch.randn(5, *shape)
    made.train()(x_N)  # statistics that are not those of a start
    halves = exported(made, shape)
    with torch.inference_mode():
        code_N, decoded_N = made.encoder(x_N), made(x_N)
    assert halves.shape == code == tuple(code_N.shape[1:])
    assert decoded_N.shape == x_N.shape
    assert (decoded_N >= 0).all()
    values = x_N.numpy()
    for graph, wanted in ((halves.encoder, code_N), (halves.decoder, decoded_N)):
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (values,) = session.run(None, {session.get_inputs()[0].name: values})
        np.testing.assert_allclose(values, wanted.numpy(), atol=1e-4)
    assert 0 < halves.encoder_macs < halves.macs
    assert halves.params == sum(parameter.numel() for parameter in made.parameters())


@pytest.mark.parametrize(
    ("shape", "channels", "stride"),
    [((16, 8, 8), 0, 1), ((16, 8, 8), 32, 1), ((16, 8, 8), 4, 9), ((17, 24), 4, 2), ((40,), 80, 1), ((), 1, 1)],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], channels: int, stride: int) -> None:
    with pytest.raises(ValueError, match=r"expected .*, got "):
        autoencoder(shape, channels, stride)


@pytest.mark.parametrize(("codec", "steps"), [("int8", 127), ("int4", 7)])
def test_training_rounds_as_the_codec_does(codec: str, steps: int) -> None:
    x_NCHW = torch.randn(3, 4, 5, 5)
    x_NCHW[0, 1] = 0
    wanted = [decode_tensor(codec, (4, 5, 5), encode_tensor(codec, x)) for x in x_NCHW.numpy()]
    np.testing.assert_allclose(_stepped(x_NCHW, steps).numpy(), np.stack(wanted), atol=1e-6)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    manifest = Artifact.open(DEFAULT_MODEL).manifest
    return torch.from_numpy(inputs_of(shipped().images_NHWC[:512], manifest.input))


CONFIG = BottleneckConfig(epochs=3, batch_size=32, learning_rate=1e-2, codec="int8", threads=1)


def weights_of(made: Autoencoder) -> list[torch.Tensor]:
    return [value.clone() for value in made.state_dict().values()]


def test_training_lessens_the_loss_and_leaves_the_network_alone(images: torch.Tensor) -> None:
    network = network_of(Artifact.open(DEFAULT_MODEL))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = train_bottleneck(network, 4, images, 8, 1, CONFIG)
    assert len(result.losses) == 3
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert result.seconds > 0
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_run_cut_short_goes_on_and_ends_the_same(images: torch.Tensor, tmp_path: Path) -> None:
    network = network_of(Artifact.open(DEFAULT_MODEL))
    whole = train_bottleneck(network, 4, images[:96], 4, 1, CONFIG)

    class Cut(Exception):  # noqa: N818 - not an error of anything
        pass

    def cut(epoch: int, step: int, steps: int, loss: float) -> None:
        if epoch == 1:
            raise Cut

    file = tmp_path / "checkpoint.pt"
    with pytest.raises(Cut):
        train_bottleneck(network, 4, images[:96], 4, 1, CONFIG, checkpoint=file, progress=cut)
    epochs = []
    again = train_bottleneck(
        network, 4, images[:96], 4, 1, CONFIG, checkpoint=file, progress=lambda epoch, *_: epochs.append(epoch)
    )
    assert set(epochs) == {1, 2}
    assert again.losses == whole.losses
    for one, other in zip(weights_of(whole.autoencoder), weights_of(again.autoencoder), strict=True):
        assert torch.equal(one, other)
    other_purpose = train_bottleneck(network, 5, images[:96], 4, 1, CONFIG, checkpoint=file)
    assert other_purpose.losses != whole.losses


# --- an artifact with bottlenecks


CUTS = (3, 6)
LAYERS = 9


@pytest.fixture(scope="module")
def codes(images: torch.Tensor) -> dict[int, Autoencoder]:
    network = network_of(Artifact.open(DEFAULT_MODEL))
    made: dict[int, Autoencoder] = {}
    for cut, channels, stride in ((3, 8, 2), (6, 16, 1)):
        made[cut] = train_bottleneck(network, cut, images, channels, stride, CONFIG, before=made).autoencoder
    return made


@pytest.fixture(scope="module")
def variant(codes: dict[int, Autoencoder], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    artifact = Artifact.open(DEFAULT_MODEL)
    halves = {cut: exported(made, artifact.manifest.layers[cut].in_shape) for cut, made in codes.items()}
    folder = tmp_path_factory.mktemp("variant") / "model"
    return write_variant(artifact, folder, Variant({3: "int8"}, halves, {"bottlenecks": {"3": {"epochs": 3}}}))


def test_the_artifact_says_what_it_has(variant: Artifact) -> None:
    old, new = Artifact.open(DEFAULT_MODEL).manifest, variant.manifest
    assert [index for index, layer in enumerate(new.layers) if layer.bottleneck] == [*CUTS]
    assert new.layers[3].codec == "int8"
    assert new.in_shape(3) == (8, 4, 4)
    assert new.plan.feature_bytes[3] == 4 * 8 * 4 * 4
    assert new.training["bottlenecks"] == {"3": {"epochs": 3}}
    assert new.digest != old.digest
    assert all(spec.accuracy is None for spec in new.exits)  # those measured were of the old one


def whole(codes: dict[int, Autoencoder], images: torch.Tensor) -> dict[int, np.ndarray]:
    """Logits by layer, of the whole network with its autoencoders, in torch."""
    network, logits, x_N = network_of(Artifact.open(DEFAULT_MODEL)), {}, images
    with torch.inference_mode():
        for index, layer in enumerate(network.layers):
            x_N = layer(codes[index].eval()(x_N) if index in codes else x_N)
            if index in network.exit_layers:
                logits[index] = network.exits[str(index)](x_N).numpy()
    return logits


def test_split_is_whole_at_every_partition(
    variant: Artifact, codes: dict[int, Autoencoder], images: torch.Tensor
) -> None:
    """Every set of cuts, and segments that end with and without a head."""
    expected = whole(codes, images[:16])
    engine, composer = make_engine("onnxruntime"), Composer(variant)
    loaded: set[SegmentKey] = set()
    partitions = [cuts for count in range(4) for cuts in combinations(range(1, LAYERS), count)]
    assert len(partitions) == 93
    for cuts in partitions:
        for heads in (True, False):
            x, entry = images[:16].numpy(), 0
            for stop in (*cuts, LAYERS):
                head = stop == LAYERS or (heads and stop - 1 in expected)
                key = SegmentKey(entry, stop, head)
                if key not in loaded:
                    engine.load(key, composer.segment(key))
                    loaded.add(key)
                output = engine.run(key, x)
                if output.logits_NK is not None:
                    np.testing.assert_allclose(output.logits_NK, expected[stop - 1], atol=1e-4, err_msg=f"{cuts}")
                if output.features is not None:
                    x, entry = output.features, stop
                    assert x.shape[1:] == variant.manifest.in_shape(stop)


def test_results_do_not_depend_on_whether_a_bottleneck_lies_on_a_cut(variant: Artifact) -> None:
    some = shipped().subset(np.arange(200))
    plain = outcomes(variant, some)
    everywhere = outcomes(variant, some, codec="float16")
    assert (plain.logits_SNK.argmax(2) == everywhere.logits_SNK.argmax(2)).mean() > 0.99


def test_what_was_trained_carries_over_to_other_images(variant: Artifact, tmp_path: Path) -> None:
    """A little training, on 512 images, is far better than none."""
    plain = Artifact.open(DEFAULT_MODEL)
    torch.manual_seed(0)
    halves = {}
    for cut in CUTS:
        shape = plain.manifest.layers[cut].in_shape
        halves[cut] = exported(autoencoder(shape, 8, 1), shape)
    untrained = write_variant(plain, tmp_path / "untrained", Variant({}, halves))
    some = shipped().subset(np.arange(1000, 1500))
    right = [accuracies_of(artifact, some)[-1] for artifact in (untrained, variant)]
    assert right[1] > right[0] + 0.2


def test_emulated_time_counts_each_half_where_it_runs(variant: Artifact) -> None:
    manifest, profile = variant.manifest, PROFILES["jetson-nano"]
    plain = Artifact.open(DEFAULT_MODEL).manifest

    def macs(of: object, *keys: tuple[int, int]) -> float:
        rate = profile.macs_per_s * (28 * 28) / 224**2
        seconds = [profile.seconds(of, SegmentKey(*key, head=False), 1) for key in keys]
        return sum(seconds) * rate - profile.layer_overhead_s * rate * sum(stop - entry for entry, stop in keys)

    extra = sum(manifest.layers[cut].bottleneck.macs for cut in CUTS)
    for keys in [((0, 9),), ((0, 3), (3, 9)), ((0, 2), (2, 6), (6, 9)), ((0, 3), (3, 6), (6, 9))]:
        assert macs(manifest, *keys) - macs(plain, *keys) == pytest.approx(extra, rel=1e-6)
    encoder = manifest.layers[3].bottleneck.encoder_macs
    assert macs(manifest, (0, 3)) - macs(plain, (0, 3)) == pytest.approx(encoder, rel=1e-6)


def test_the_torch_engine_says_that_it_cannot(variant: Artifact) -> None:
    with pytest.raises(UsageError, match="expected a model without learned bottlenecks"):
        make_engine("torch", model=str(variant.folder))


def test_a_variant_replaces_an_artifact_and_nothing_else(variant: Artifact, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="output folder"):
        write_variant(variant, tmp_path, Variant({4: "int4"}))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    folder = tmp_path / "model"
    first = write_variant(variant, folder, Variant({4: "int4"}))
    again = write_variant(first, folder, Variant({5: "float16"}))  # in its own folder
    assert [layer.codec for layer in again.manifest.layers[3:6]] == ["int8", "int4", "float16"]
    assert again.manifest.layers[3].bottleneck == variant.manifest.layers[3].bottleneck
