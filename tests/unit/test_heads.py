"""Heads fit the tensor that they stand on; the backbones for small images are the published ones in all but the stem."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

import torchvision  # noqa: E402 - only with torch

from mdi_exit.model.backbones import BACKBONES, layers_of, small_resnet, small_vgg  # noqa: E402
from mdi_exit.model.heads import head_for  # noqa: E402


@pytest.mark.parametrize(
    "shape", [(8, 7, 5), (64, 8, 8), (8, 8, 8), (4, 4, 96), (1, 1, 768), (17, 32), (40,), (2, 3, 4, 5)]
)
def test_a_head_gives_logits_that_depend_on_each_sample_alone(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = head_for(shape, 7).eval()
    x = torch.randn(3, *shape)
    with torch.inference_mode():
        logits_NK = head(x)
        torch.testing.assert_close(head(x[1:2]), logits_NK[1:2])
    assert logits_NK.shape == (3, 7)
    assert not torch.allclose(logits_NK[0], logits_NK[1])


def test_channels_last_features_are_averaged_over_places_and_not_over_channels() -> None:
    head = head_for((4, 4, 96), 3).eval()
    x = torch.randn(2, 4, 4, 96)
    turned = x.flip(1).transpose(1, 2)
    torch.testing.assert_close(head(x), head(turned))


@pytest.mark.parametrize(("shape", "classes"), [((), 3), ((3, 0, 2), 3), ((4,), 0)])
def test_no_head_for_nothing(shape: tuple[int, ...], classes: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        head_for(shape, classes)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_a_small_resnet_has_the_blocks_of_torchvisions(depth: int) -> None:
    blocks, _ = layers_of(small_resnet(depth, classes=1000))
    published = getattr(torchvision.models, f"resnet{depth}")()
    published.conv1, published.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
    expected = sum(p.numel() for p in published.parameters())
    assert sum(p.numel() for p in small_resnet(depth, classes=1000).parameters()) == expected
    names = [f"layer{s}-{b}" for s in range(1, 5) for b in range(len(getattr(published, f"layer{s}")))]
    assert list(blocks) == names


def test_the_first_cut_of_a_small_resnet50_is_a_mebibyte_at_32_by_32() -> None:
    layers, _ = layers_of(small_resnet(50))
    with torch.inference_mode():
        y_NCHW = layers["layer1-0"].eval()(torch.zeros(1, 3, 32, 32))
    assert y_NCHW[0].numel() * 4 == 2**20


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("side", [28, 32])
def test_every_backbone_runs_and_trains_at_a_reduced_width(name: str, side: int) -> None:
    made = BACKBONES[name](width=0.125, classes=5, channels_in=1)
    layers, classifier = layers_of(made)
    logits_NK = made(torch.randn(3, 1, side, side))
    assert logits_NK.shape == (3, 5)
    logits_NK.sum().backward()
    assert all(p.grad is not None for p in made.parameters())
    assert [*layers.values(), classifier] == list(made)


def test_another_depth_or_width_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="18, 34, 50, got 101"):
        small_resnet(101)
    with pytest.raises(ValueError, match="got 12"):
        small_vgg(12)
    with pytest.raises(ValueError, match="above 0"):
        small_resnet(18, width=0)
