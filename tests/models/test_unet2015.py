from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segdesk.nn.weights import count_parameters
from segdesk_models.unet2015 import SPEC, UNet2015, crop_middle, mirror

pytestmark = pytest.mark.usefixtures("one_thread")


def small(width: int = 4) -> UNet2015:
    torch.manual_seed(0)
    return UNet2015(1, 2, width=width).eval()


@pytest.mark.parametrize(
    ("channels", "classes", "expected"),
    [(1, 2, 31_030_658), (3, 2, 31_031_810), (3, 21, 31_033_045)],
)
def test_it_has_the_papers_number_of_parameters(channels: int, classes: int, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(UNet2015(channels, classes, **SPEC.options)) == expected


def test_it_has_the_papers_23_convolutions() -> None:
    with torch.device("meta"):
        layers = list(UNet2015(1, 2).modules())
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 23
    assert all(m.bias is not None for m in convolutions)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layers)


def test_572_pixels_become_388_through_the_sizes_of_the_papers_figure() -> None:
    with torch.device("meta"):
        network = UNet2015(1, 2)
        image = torch.empty(1, 1, 572, 572)
        features = network.encoder(image)
        assert network.valid(image).shape == (1, 2, 388, 388)
    assert [f.shape[-1] for f in features] == [568, 280, 136, 64, 28]
    assert [f.shape[1] for f in features] == [64, 128, 256, 512, 1024]


def test_the_smallest_image_leaves_four_pixels() -> None:
    with torch.device("meta"):
        assert UNet2015(1, 2).valid(torch.empty(1, 1, 188, 204)).shape == (1, 2, 4, 20)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((570, 572), "572x572"), ((563, 564), "556x572"), ((172, 10), "188x188")],
)
def test_a_size_that_does_not_fit_is_refused_and_the_nearest_named(
    size: tuple[int, int], nearest: str
) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"nearest size is {nearest}"):
        UNet2015(1, 2).valid(torch.empty(1, 1, *size))


def test_the_middle_of_a_skip_connection_is_kept() -> None:
    skip = torch.arange(48.0).reshape(1, 1, 6, 8)
    found = crop_middle(skip, torch.empty(1, 1, 2, 2))
    assert found.flatten().tolist() == [19, 20, 27, 28]


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Compare up to the order of float32 sums."""
    assert found.shape == expected.shape
    assert float(expected.std()) > 0.01
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_crop_is_judged_as_the_same_pixels_in_the_whole_image() -> None:
    """So tiles cut with their context can be joined without a seam."""
    network = small()
    image = torch.randn(1, 1, 252, 236)
    with torch.inference_mode():
        whole = network.valid(image)
        crop = network.valid(image[..., 32 : 32 + 204, 16 : 16 + 220])
    assert_equal(crop, whole[..., 32 : 32 + 20, 16 : 16 + 36])


def test_pixels_far_from_the_border_are_judged_by_what_is_really_around_them() -> None:
    """The image begins 92 pixels inside the mirrored one, and 96 are a multiple of 16.

    A crop that begins 4 pixels later is therefore pooled as there.
    """
    network = small()
    image = torch.randn(1, 1, 224, 256)
    with torch.inference_mode():
        found = network(image)[..., 96 : 96 + 36, 96 : 96 + 68]
        expected = network.valid(image[..., 4 : 4 + 220, 4 : 4 + 252])
    assert_equal(found, expected)


@pytest.mark.parametrize(("height", "width"), [(300, 93), (92, 40), (16, 7), (2, 1)])
def test_the_mirror_image_is_numpys_also_when_it_repeats(height: int, width: int) -> None:
    image = torch.arange(float(height * width)).reshape(1, 1, height, width)
    found = mirror(image)[0, 0]
    after = [total - side - 92 for total, side in zip(found.shape, (height, width), strict=True)]
    expected = np.pad(image[0, 0].numpy(), ((92, after[0]), (92, after[1])), mode="reflect")
    assert min(after) >= 92
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("size", [(16, 16), (16, 48), (20, 33), (1, 1)])
def test_images_smaller_than_the_border_work(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        maps = small()(torch.randn(2, 1, *size))
    assert maps.shape == (2, 2, *size)
    assert torch.isfinite(maps).all()


def test_no_frame_of_zeros_is_seen_around_a_constant_image() -> None:
    """Up-convolutions leave a pattern that repeats every 16 pixels, up to the border."""
    with torch.inference_mode():
        maps = small()(torch.full((1, 1, 48, 64), 0.7))
    assert_equal(maps[..., 16:, :], maps[..., :-16, :])
    assert_equal(maps[..., 16:], maps[..., :-16])


def test_features_drop_out_at_the_end_of_the_contracting_path() -> None:
    network = UNet2015(1, 2, width=2, dropout=0.3)
    rates = [m.p for m in network.encoder.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0, 0, 0, 0.3, 0.3]
    assert {m.p for m in network.decoder.modules() if isinstance(m, nn.Dropout)} == {0}
