from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segdesk.nn.weights import count_parameters
from segdesk_models.deeplabv2 import (
    SPEC,
    DeepLabV2,
    DilatedClassifiers,
    move_stride,
    shrink,
)

SMALL = {**SPEC.options, **SPEC.small}
VGG = {"encoder": "vgg16", "encoder_width": 8, "width": 16}


@pytest.mark.parametrize(
    ("encoder", "expected"), [("resnet101", 44_048_532), ("vgg16", 37_877_652)]
)
def test_it_has_the_known_number_of_parameters(encoder: str, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(DeepLabV2(3, 21, encoder)) == expected


def test_a_class_map_is_the_sum_of_four_dilated_convolutions() -> None:
    """A single bright feature leaves the four kernels' weights around it, each at its rate."""
    layer = DilatedClassifiers(1, 1, (1, 3))
    with torch.no_grad():
        for conv, value in zip(layer.convs, (2.0, 5.0), strict=True):
            conv.weight.fill_(value)
            conv.bias.fill_(0.5)
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    expected = torch.full((9, 9), 1.0)
    expected[3:6, 3:6] += 2
    expected[1::3, 1::3] += 5
    with torch.inference_mode():
        torch.testing.assert_close(layer(x)[0, 0], expected)


def test_the_dilated_classifiers_are_the_head_and_each_class_may_have_its_own() -> None:
    with torch.device("meta"):
        whole: Any = DeepLabV2(3, 5).head
        separate: Any = DeepLabV2(3, 5, head="B").head
    classifiers = whole.branches[0].output
    assert [conv.dilation[0] for conv in classifiers.convs] == [6, 12, 18, 24]
    assert {conv.weight.shape for conv in classifiers.convs} == {(5, 2048, 3, 3)}
    maps = separate.branches[0].output.maps
    assert len(maps) == 5
    assert {tuple(c.weight.shape) for m in maps for c in m.convs} == {(1, 2048, 3, 3)}
    assert count_parameters(whole) == count_parameters(separate)


@pytest.mark.parametrize("options", [{}, VGG])
@pytest.mark.parametrize("head", ["A", "C"])
def test_classifiers_begin_at_a_hundredth(options: dict[str, Any], head: str) -> None:
    torch.manual_seed(0)
    network = DeepLabV2(3, 8, **{**SMALL, **options, "head": head})
    outputs = [
        part
        for name, part in network.head.named_modules()
        if isinstance(part, nn.Conv2d) and ".output" in name
    ]
    drawn = torch.cat([conv.weight.detach().flatten() for conv in outputs])
    assert 0.009 < drawn.std() < 0.011
    assert not torch.stack([conv.bias.detach().abs().max() for conv in outputs]).any()


def test_every_second_pixel_is_taken_before_the_first_convolution() -> None:
    """As in the ResNet the authors had: half of the stage's input is never looked at."""
    torch.manual_seed(0)
    network: Any = DeepLabV2(3, 2, "resnet50", encoder_width=8)
    block = network.encoder.body.layer2[0].eval()
    x = torch.randn(1, 32, 9, 13, requires_grad=True)
    (gradient,) = torch.autograd.grad(block(x).square().sum(), x)
    looked_at = gradient.abs().sum((0, 1)) > 0
    assert looked_at[::2, ::2].all()
    assert looked_at.sum() == 5 * 7
    usual: Any = DeepLabV2(3, 2, "resnet50", encoder_width=8, stride_on_first=False)
    assert usual.encoder.body.layer2[0].conv2.stride == (2, 2)
    move_stride(usual.encoder.body.layer2[0])
    assert usual.encoder.body.layer2[0].conv2.stride == (1, 1)


def test_vgg_keeps_an_eighth_of_the_image_and_dilates_its_last_convolutions() -> None:
    network: Any = DeepLabV2(3, 2, **VGG).eval()
    trunk = network.encoder.features
    convs = [part.dilation[0] for part in trunk if isinstance(part, nn.Conv2d)]
    assert convs == [1] * 10 + [2] * 3
    with torch.inference_mode():
        assert network.encoder(torch.zeros(1, 3, 65, 97)).shape == (1, 64, 9, 13)
    assert [b.fc6.dilation[0] for b in network.decoder.branches] == [6, 12, 18, 24]


def test_vggs_classifiers_see_as_far_as_their_rates() -> None:
    network: Any = DeepLabV2(3, 2, **VGG).eval()
    x = torch.zeros(1, 64, 61, 61, requires_grad=True)
    for branch, rate in zip(network.decoder.branches, (6, 12, 18, 24), strict=True):
        nn.init.ones_(branch.fc6.weight)
        nn.init.ones_(branch.fc7.weight)
        # Zero features would stop at the ReLU.
        nn.init.ones_(branch.fc6.bias)
        (gradient,) = torch.autograd.grad(branch(x)[..., 30, 30].sum(), x)
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten() - 30
        assert rows.tolist() == [-rate, 0, rate]


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((321, 321), 0.75, (241, 241)), ((321, 321), 0.5, (161, 161)), ((33, 41), 0.75, (25, 33))],
)
def test_smaller_copies_are_those_of_the_paper(
    size: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    assert shrink(torch.zeros(1, 1, *size), scale).shape[-2:] == expected


@pytest.mark.parametrize("options", [{}, VGG])
def test_three_scales_are_joined_by_their_largest_score(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    # Exact at every eighth pixel, where nothing was interpolated after joining.
    x = torch.randn(2, 3, 65, 97)
    network = DeepLabV2(3, 4, **{**SMALL, **options, "multi_scale": True}).eval()
    with torch.inference_mode():
        maps = network.training_maps(x)
        assert [weight for weight, _ in maps] == [1.0] * 4
        fused, *scales = (m[..., ::8, ::8] for _, m in maps)
        torch.testing.assert_close(fused, torch.stack(scales).amax(0))
        assert torch.equal(network(x), maps[0][1])
        single = DeepLabV2(3, 4, **{**SMALL, **options, "multi_scale": False}).eval()
        single.load_state_dict(network.state_dict())
        torch.testing.assert_close(single(x), maps[1][1])
        assert len(single.training_maps(x)) == 1


def test_the_activation_comes_after_the_largest_score_was_chosen() -> None:
    """GELU falls before it rises: of two scores below -0.75 it would raise the lower one."""
    torch.manual_seed(0)
    options = {**SMALL, "head": "B", "multi_scale": True}
    network = DeepLabV2(3, 2, **{**options, "activation": "gelu"}).eval()
    for name, value in network.head.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(value, -0.25)  # of four convolutions: -1 in all
    plain = DeepLabV2(3, 2, **options).eval()
    plain.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        scores = plain(x)[..., ::8, ::8]
        found = network(x)[..., ::8, ::8]
    assert (scores < -0.75).any()
    torch.testing.assert_close(found, nn.functional.gelu(scores))
