from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segdesk.nn.weights import count_parameters
from segdesk_models.pspnet import SPEC, PSPNet, PyramidPooling

SMALL = {**SPEC.options, **SPEC.small}


@pytest.mark.parametrize(
    ("encoder", "classes", "auxiliary", "expected"),
    [
        ("resnet50s", 21, False, 46_716_373),
        ("resnet50s", 21, True, 49_081_578),
        ("resnet50s", 150, False, 46_782_550),
        ("resnet50s", 150, True, 49_180_908),
        ("resnet101s", 21, False, 65_708_501),
        ("resnet101s", 21, True, 68_073_706),
    ],
)
def test_it_has_the_known_number_of_parameters(
    encoder: str, classes: int, auxiliary: bool, expected: int
) -> None:
    with torch.device("meta"):
        network = PSPNet(3, classes, encoder=encoder, auxiliary=auxiliary)
    assert count_parameters(network) == expected


def test_its_parts_have_the_known_numbers_of_parameters() -> None:
    with torch.device("meta"):
        network: Any = PSPNet(3, 21)
    stem = nn.ModuleList([network.encoder.body.conv1, network.encoder.body.bn1])
    assert count_parameters(stem) == 112_832
    assert count_parameters(network.decoder.pyramid) == 4_198_400
    assert count_parameters(network.decoder.auxiliary) == 2_365_205
    classifier = nn.ModuleList([network.decoder.fuse, network.head])
    assert count_parameters(classifier) == 18_886_165


def test_the_pyramid_puts_the_means_of_1_and_4_regions_beside_the_features() -> None:
    pyramid = PyramidPooling(2, (1, 2)).eval()
    for level in pyramid.levels:
        # Each level passes on the sum of both channels.
        nn.init.ones_(level.conv.weight)
        level.norm.eps = 0
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
    x = torch.stack((x, torch.zeros(4, 4)))[None]
    with torch.inference_mode():
        found = pyramid(x)
    assert found.shape == (1, 4, 4, 4)
    assert torch.equal(found[:, :2], x)
    torch.testing.assert_close(found[0, 2], torch.full((4, 4), 8.5))
    # The means of the quadrants, 3.5, 5.5, 11.5 and 13.5, and thirds of the way between.
    sides = torch.tensor([0.0, 1, 2, 3]) / 3
    expected = 3.5 + 8 * sides[:, None] + 2 * sides
    torch.testing.assert_close(found[0, 3], expected)


def test_the_last_two_stages_keep_the_size_and_dilate_all_their_blocks() -> None:
    with torch.device("meta"):
        body: Any = PSPNet(3, 2).encoder.body
    for stage, dilation in ((body.layer3, 2), (body.layer4, 4)):
        assert {block.conv2.dilation for block in stage} == {(dilation, dilation)}
        assert stage[0].conv2.stride == stage[0].downsample[0].stride == (1, 1)


def test_auxiliary_maps_count_four_tenths_and_only_while_learning() -> None:
    torch.manual_seed(0)
    network = PSPNet(3, 4, **SMALL).eval()
    x = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        (one, maps), (less, auxiliary) = network.training_maps(x)
        assert (one, less) == (1.0, 0.4)
        assert auxiliary.shape == maps.shape == (2, 4, 40, 56)
        assert torch.equal(maps, network(x))
        for value in network.decoder.get_submodule("auxiliary").parameters():
            value.fill_(torch.nan)
        assert torch.equal(maps, network(x))


def test_without_auxiliary_maps_there_is_one_set() -> None:
    network = PSPNet(3, 2, **{**SMALL, "auxiliary": False}).eval()
    with torch.inference_mode():
        assert len(network.training_maps(torch.randn(1, 3, 32, 32))) == 1
    assert not [name for name, _ in network.named_parameters() if "auxiliary" in name]


def test_a_single_crop_is_a_batch_to_learn_from() -> None:
    """One level of the pyramid is one pixel, of which batch norm alone can make nothing."""
    torch.manual_seed(0)
    network = PSPNet(3, 2, **SMALL).train()
    (_, maps), (_, auxiliary) = network.training_maps(torch.randn(1, 3, 64, 64))
    (maps.square().mean() + auxiliary.square().mean()).backward()
    level: Any = network.decoder.get_submodule("pyramid.levels.0")
    assert level.conv.weight.grad.any()
