from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segdesk.nn.atrous import (
    ASPP,
    AlignedSegmenter,
    DilatedResNet,
    RegionMeans,
    conv_norm,
)
from segdesk.nn.norms import PooledNorm


def dilations(stage: nn.Module) -> list[int]:
    """Return the dilation of every 3x3 convolution of a stage, in order."""
    parts = [part for part in stage.modules() if isinstance(part, nn.Conv2d)]
    assert all(p.padding == p.dilation for p in parts if p.kernel_size == (3, 3))
    return [p.dilation[0] for p in parts if p.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("stride", "grid", "first", "third", "fourth"),
    [
        (16, None, True, [1] * 6, [2, 2, 2]),
        (16, (1, 2, 4), True, [1] * 6, [2, 4, 8]),
        (8, None, True, [2] * 6, [4, 4, 4]),
        (8, (1, 2, 4), True, [2] * 6, [4, 8, 16]),
        # A block that would have halved the map looks, in torchvision, as wide as before.
        (8, None, False, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
    ],
)
def test_the_last_stages_of_a_resnet_are_dilated(
    stride: int, grid: tuple[int, ...] | None, first: bool, third: list[int], fourth: list[int]
) -> None:
    with torch.device("meta"):
        encoder = DilatedResNet("resnet50", 3, (3, 4), stride, multi_grid=grid, dilate_first=first)
    assert dilations(encoder.body.layer2) == [1] * 4
    assert dilations(encoder.body.layer3) == third
    assert dilations(encoder.body.layer4) == fourth
    assert encoder.reductions == [min(stride, 16), stride]


def test_a_grid_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 factors"):
        DilatedResNet("resnet50", 3, (4,), 16, multi_grid=(1, 2))


def test_one_value_per_channel_is_normalised_with_what_was_seen_before() -> None:
    norm = PooledNorm(3).train()
    with torch.no_grad():
        norm.running_mean += torch.tensor([1.0, 2.0, 3.0])
        norm.running_var *= 4
    x = torch.tensor([3.0, 2.0, -1.0]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([1.0, 0.0, -2.0]))
    torch.testing.assert_close(norm.running_mean, torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 1, 2)])
def test_several_values_per_channel_are_normalised_as_ever(shape: tuple[int, ...]) -> None:
    ours, torchs = PooledNorm(3).train(), nn.BatchNorm2d(3).train()
    x = torch.randn(shape)
    assert torch.equal(ours(x), torchs(x))
    assert torch.equal(ours.running_var, torchs.running_var)


def test_means_over_regions_are_spread_over_the_map() -> None:
    """Of four quadrants: their means in the corners, and a straight line between."""
    means = RegionMeans(1, 1, bins=2).eval()
    nn.init.ones_(means.conv.weight)
    means.norm.eps = 0
    x = torch.zeros(1, 1, 6, 6)
    x[..., :3, :3], x[..., :3, 3:], x[..., 3:, :3], x[..., 3:, 3:] = 10, 20, 30, 40
    with torch.inference_mode():
        spread = means(x)[0, 0]
    torch.testing.assert_close(spread[0], torch.tensor([10.0, 12, 14, 16, 18, 20]))
    torch.testing.assert_close(spread[:, 5], torch.tensor([20.0, 24, 28, 32, 36, 40]))


def test_aspp_looks_as_far_as_its_rates_and_at_all_of_the_image() -> None:
    torch.manual_seed(0)
    aspp = ASPP(2, 8, (2, 5), dropout=0.0).eval()
    x = torch.randn(1, 2, 21, 21, requires_grad=True)
    seen = []
    for branch in aspp.branches:
        (gradient,) = torch.autograd.grad(branch(x)[..., 10, 10].sum(), x)
        seen.append({(int(i), int(j)) for i, j in gradient.abs().sum(1)[0].nonzero() - 10})
    taps = {r: {(i * r, j * r) for i in (-1, 0, 1) for j in (-1, 0, 1)} for r in (2, 5)}
    assert seen[0] == {(0, 0)}
    assert seen[1] == taps[2]
    assert seen[2] == taps[5]
    assert len(seen[3]) == 21 * 21


def test_a_separable_convolution_is_two() -> None:
    parts = conv_norm(6, 4, 3, dilation=2, separable=True)
    assert [tuple(p.weight.shape) for p in parts[:2]] == [(6, 1, 3, 3), (4, 6, 1, 1)]
    assert parts(torch.randn(2, 6, 9, 9)).shape == (2, 4, 9, 9)


class Every(nn.Module):
    """Every eighth pixel, as maps of stride 8 have it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::8, ::8]


@pytest.mark.parametrize(("height", "width"), [(33, 41), (32, 40), (37, 34), (1, 8)])
def test_scores_return_to_the_pixel_they_were_made_of(height: int, width: int) -> None:
    """Of an image that is a slope, every eighth pixel tells all: it comes back the same."""
    network = AlignedSegmenter(Every(), nn.Identity(), nn.Identity(), grid=8)
    inner = [8 * ((side - 1) // 8) + 1 for side in (height, width)]
    rows = torch.arange(height, dtype=torch.float32)[:, None]
    columns = torch.arange(width, dtype=torch.float32)
    x = (3 * rows + columns).expand(1, 2, height, width)
    maps = network(x)
    assert maps.shape == x.shape
    # Between the last score and the border the image was extended.
    torch.testing.assert_close(maps[..., : inner[0], : inner[1]], x[..., : inner[0], : inner[1]])


def test_the_border_is_repeated_where_an_image_is_extended() -> None:
    """An image of one grey comes back so, to its last row and column."""
    network = AlignedSegmenter(Every(), nn.Identity(), nn.Identity(), grid=8)
    x = torch.full((1, 1, 30, 36), 3.0)
    torch.testing.assert_close(network(x), x)


def test_without_alignment_nothing_is_extended() -> None:
    network = AlignedSegmenter(Every(), nn.Identity(), nn.Identity(), grid=8, align_corners=False)
    x = torch.randn(1, 2, 20, 30)
    assert network.extend(x) is x
    assert network(x).shape == x.shape
