"""The codec of each cut: the model's own, else the deployment's, which agents are told."""

from __future__ import annotations

import logging

import msgspec
import numpy as np
import pytest

from mdi_exit.cuts import CutCodecs
from mdi_exit.errors import ArtifactError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.manifest import Manifest, parse_manifest
from mdi_exit.model.variant import with_codec
from mdi_exit.tensors import decode_tensor, encode_tensor, encoded_size

X = np.random.default_rng(0).standard_normal((4, 6, 6)).astype(np.float32)


@pytest.fixture
def manifest() -> Manifest:
    return with_codec(Artifact.open(DEFAULT_MODEL), 3, "int8").manifest


def test_a_cut_without_a_codec_of_its_own_has_that_of_the_deployment(manifest: Manifest) -> None:
    cuts = CutCodecs()
    assert [cuts.codec(layer) for layer in range(4)] == ["float32"] * 4  # no model yet
    cuts.deploy("float16")
    cuts.use(manifest)
    assert [cuts.codec(layer) for layer in range(2, 5)] == ["float16", "int8", "float16"]
    raw, codec = cuts.encode(3, X)
    assert codec == "int8"
    assert raw == encode_tensor("int8", X)
    assert cuts.encode(4, X) == (encode_tensor("float16", X), "float16")


def test_another_model_has_other_cuts(manifest: Manifest) -> None:
    cuts = CutCodecs()
    cuts.use(manifest)
    cuts.use(Artifact.open(DEFAULT_MODEL).manifest)
    assert cuts.codec(3) == "float32"


def test_guidance_is_told_the_sizes_in_the_codec_in_force(manifest: Manifest) -> None:
    cuts = CutCodecs("float16")
    cuts.use(manifest)
    sizes = cuts.sizes_bytes(manifest)
    in_float32 = manifest.plan.feature_bytes
    assert sizes[2] == in_float32[2] // 2
    assert sizes[3] == encoded_size("int8", manifest.in_shape(3)) < in_float32[3] // 3
    assert len(sizes) == len(in_float32)


@pytest.mark.parametrize("codec", ["", "int2"])
def test_what_a_node_does_not_know_it_does_not_send(codec: str, caplog: pytest.LogCaptureFixture) -> None:
    cuts = CutCodecs("int8")
    with caplog.at_level(logging.WARNING):
        cuts.deploy(codec)
        cuts.deploy(codec)
    assert cuts.codec(0) == "float32"
    assert len(caplog.messages) == bool(codec)  # and says so once


def test_sizes_are_those_on_the_wire() -> None:
    cuts = CutCodecs("int4")
    assert cuts.size_bytes(1, X.shape) == encoded_size("int4", X.shape) == len(cuts.encode(1, X)[0])
    cuts = CutCodecs("float32+zstd")
    assert cuts.size_bytes(1, X.shape) == encoded_size("float32+zstd", X.shape)
    raw, codec = cuts.encode(1, np.zeros_like(X))
    assert cuts.size_bytes(1, X.shape) == len(raw) < 100
    assert not decode_tensor(codec, X.shape, raw).any()


def test_a_manifest_with_an_unknown_codec_is_refused(manifest: Manifest) -> None:
    layers = [*manifest.layers]
    layers[2] = msgspec.structs.replace(layers[2], codec="int2")
    changed = msgspec.structs.replace(manifest, layers=tuple(layers))
    changed = msgspec.structs.replace(changed, digest=changed.computed_digest())
    with pytest.raises(ArtifactError, match=r"codec of what enters layer 2: expected one of float32, .*, got int2"):
        parse_manifest(msgspec.json.encode(changed), "model.json")
