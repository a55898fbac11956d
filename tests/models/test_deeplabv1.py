from __future__ import annotations

import pytest
import torch
from torch import nn

from segdesk.nn.atrous import DilatedVgg
from segdesk.nn.encoders import vgg_trunk
from segdesk.nn.weights import count_parameters
from segdesk_models.deeplabv1 import FIELDS, DeepLabV1


def narrow(**options: object) -> DeepLabV1:
    torch.manual_seed(0)
    return DeepLabV1(1, 2, encoder_width=4, width=8, **options).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "expected"), [("large", 20_505_429), ("4x4", 65_140_565), ("7x7", 134_346_581)]
)
def test_it_has_the_known_number_of_parameters(field: str, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(DeepLabV1(3, 21, field_of_view=field)) == expected


def test_an_unknown_field_of_view_is_named() -> None:
    with pytest.raises(ValueError, match="one of large, 4x4, 7x7, not 'huge'"):
        DeepLabV1(3, 2, field_of_view="huge")


@pytest.mark.parametrize(("field", "taps"), [("large", 9), ("4x4", 16), ("7x7", 49)])
def test_fc6_sees_25_values_across(field: str, taps: int) -> None:
    """At stride 8, about 224 pixels; a larger kernel looks at more places within."""
    fc6 = narrow(field_of_view=field).decoder.get_submodule("fc6")
    x = torch.zeros(1, 32, 41, 41, requires_grad=True)
    y = fc6(x)
    assert y.shape[-2:] == x.shape[-2:]
    y[0, :, 20, 20].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().amax(0).nonzero()
    assert len(seen) == taps
    assert seen.amin(0).tolist() == [8, 8]
    assert seen.amax(0).tolist() == [32, 32]


def test_dilation_gives_the_values_of_the_undilated_vgg_and_those_between() -> None:
    """The hole algorithm: behind a pooling that moves by one, kernels skip every second."""
    torch.manual_seed(0)
    encoder = DilatedVgg(1, 4).eval()
    plain = vgg_trunk(1, width=4).eval()
    for number, part in enumerate(plain):
        if isinstance(part, nn.MaxPool2d):
            plain[number] = nn.MaxPool2d(3, 2, padding=1)
    plain.load_state_dict(encoder.features.state_dict())
    x = torch.randn(1, 1, 129, 161)
    with torch.inference_mode():
        # Up to the last pooling, whose windows differ.
        dense, sparse = encoder.features[:-1](x), plain[:-1](x)
    assert dense.shape[-2:] == (17, 21)
    assert sparse.shape[-2:] == (9, 11)
    torch.testing.assert_close(dense[..., ::2, ::2], sparse)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("size", [65, 321])
def test_a_mirrored_image_gives_the_mirrored_maps(field: str, size: int) -> None:
    """With mirrored kernels; were maps off their pixels by one, it would show."""
    network = narrow(field_of_view=field)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 4:
                weight.copy_((weight + weight.flip(3)) / 2)
        network.double()
        image = torch.randn(1, 1, 33, size, dtype=torch.float64)
        torch.testing.assert_close(network(image.flip(3)), network(image).flip(3))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (40, 56), (33, 65)])
def test_images_of_any_size_work(size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert narrow()(torch.randn(2, 1, *size)).shape == (2, 2, *size)


def test_scores_lie_on_every_eighth_pixel() -> None:
    network = narrow()
    x = torch.randn(1, 1, 65, 97)
    with torch.inference_mode():
        scores = network.head(network.decoder(network.encoder(x)))
        maps = network(x)
    assert scores.shape[-2:] == (9, 13)
    torch.testing.assert_close(maps[..., ::8, ::8], scores)
