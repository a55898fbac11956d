from __future__ import annotations

from typing import Any

import pytest
import torch

from segdesk.nn.weights import count_parameters
from segdesk_models.deeplabv3 import SPEC, DeepLabV3

SMALL = {**SPEC.options, **SPEC.small}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 58_040_661),
        ({"refine": True}, 58_630_997),
        ({"refine": True, "auxiliary": True}, 60_996_202),
        ({"refine": True, "encoder": "resnet50"}, 39_638_869),
        ({"refine": True, "encoder": "resnet50", "auxiliary": True}, 42_004_074),
    ],
)
def test_it_has_the_known_number_of_parameters(options: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(DeepLabV3(3, 21, **options)) == expected


@pytest.mark.parametrize(
    ("stride", "blocks", "rates"), [(16, [2, 4, 8], [6, 12, 18]), (8, [4, 8, 16], [12, 24, 36])]
)
def test_dilations_double_when_the_stride_is_halved(
    stride: int, blocks: list[int], rates: list[int]
) -> None:
    with torch.device("meta"):
        network: Any = DeepLabV3(3, 2, output_stride=stride)
    assert [block.conv2.dilation[0] for block in network.encoder.body.layer4] == blocks
    branches = network.decoder.aspp.branches
    assert [branch[0].dilation[0] for branch in branches[1:4]] == rates
    assert [branch[0].padding[0] for branch in branches[1:4]] == rates


@pytest.mark.parametrize("stride", [8, 16])
def test_features_have_the_stride_asked_for(stride: int) -> None:
    network = DeepLabV3(3, 2, **{**SMALL, "output_stride": stride}).eval()
    with torch.inference_mode():
        third, fourth = network.encoder(network.extend(torch.zeros(1, 3, 64, 96)))
    assert third.shape[-2:] == fourth.shape[-2:] == (64 // stride + 1, 96 // stride + 1)


def test_a_pixel_knows_the_mean_of_the_whole_image() -> None:
    """Image pooling: far beyond every dilated convolution, a change is felt."""
    torch.manual_seed(0)
    network = DeepLabV3(1, 2, **SMALL).eval()
    x = torch.zeros(1, 1, 32, 2048)
    changed = x.clone()
    changed[..., -8:] = 10
    with torch.inference_mode():
        assert (network(x) != network(changed))[..., :8].any()


def test_a_single_crop_is_a_batch_to_learn_from() -> None:
    torch.manual_seed(0)
    network = DeepLabV3(3, 2, **{**SMALL, "auxiliary": True}).train()
    (_, maps), (weight, auxiliary) = network.training_maps(torch.randn(1, 3, 64, 64))
    assert weight == 0.5
    (maps.square().mean() + auxiliary.square().mean()).backward()
    pooling: Any = network.decoder.get_submodule("aspp.branches.4")
    assert pooling.conv.weight.grad.any()
    assert not pooling.norm.running_mean.any()
