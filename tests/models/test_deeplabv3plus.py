from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from segdesk.nn.weights import count_parameters
from segdesk_models.deeplabv3plus import SPEC, DeepLabV3Plus

SMALL = {**SPEC.options, **SPEC.small}


def test_it_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count_parameters(DeepLabV3Plus(3, 21)) == 59_344_309


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("resnet18", 12_334_437),
        ("resnet34", 22_442_597),
        ("resnet50", 26_682_725),
        ("resnet101", 45_674_853),
    ],
)
def test_it_has_those_of_segmentation_models_with_separable_convolutions(
    encoder: str, expected: int
) -> None:
    with torch.device("meta"):
        network = DeepLabV3Plus(
            3, 21, encoder, multi_grid=None, separable=True, refine=True, convolutions=1
        )
    assert count_parameters(network) == expected


def test_early_features_have_a_quarter_of_the_image_and_48_of_304_channels() -> None:
    with torch.device("meta"):
        network: Any = DeepLabV3Plus(3, 2)
    assert network.encoder.reductions == [4, 16]
    assert network.encoder.channels == [256, 2048]
    first, second = network.decoder.fuse
    assert (first[0].in_channels, second[0].in_channels) == (304, 256)
    network = DeepLabV3Plus(3, 2, **SMALL).eval()
    with torch.inference_mode():
        features = network.decoder(network.encoder(torch.zeros(1, 3, 65, 97)))
    assert features.shape == (1, 64, 17, 25)


def test_a_fine_line_is_seen_through_the_early_features_alone() -> None:
    """With the pyramid silenced, maps still follow the image, and only nearby."""
    torch.manual_seed(0)
    network = DeepLabV3Plus(1, 2, **SMALL).eval()
    for part in network.decoder.get_submodule("aspp").modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.zeros_(part.weight)
    x = torch.zeros(1, 1, 64, 256)
    changed = x.clone()
    changed[..., 32, 20:40] = 10
    with torch.inference_mode():
        felt = (network(x) != network(changed)).any(1)[0]
    assert felt[32, 20:40].all()
    assert not felt[:, 150:].any()


def test_a_single_crop_is_a_batch_to_learn_from() -> None:
    torch.manual_seed(0)
    network = DeepLabV3Plus(3, 2, **SMALL).train()
    network(torch.randn(1, 3, 64, 64)).square().mean().backward()
    pooling: Any = network.decoder.get_submodule("aspp.branches.4")
    assert pooling.conv.weight.grad.any()
