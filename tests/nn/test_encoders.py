"""Encoders have the published number of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segdesk.nn.encoders import TimmEncoder, import_timm, vgg_trunk
from segdesk.nn.weights import count_parameters


@pytest.mark.parametrize(
    ("name", "levels", "expected"),
    [
        ("resnet18", [4], 11_176_512),
        ("resnet34", [4], 21_284_672),
        ("resnet50", [4], 23_508_032),
        ("resnet101", [4], 42_500_160),
        ("vit_tiny_patch16_224", [11], 5_524_416),
        ("vit_small_patch16_224", [11], 21_665_664),
        ("vit_base_patch16_224", [11], 85_798_656),
        ("vit_large_patch16_384", [23], 303_690_752),
        ("swin_tiny_patch4_window7_224", [3], 27_519_354),
        ("swin_small_patch4_window7_224", [3], 48_837_258),
        ("swin_base_patch4_window7_224", [3], 86_743_224),
        ("pvt_v2_b0", [3], 3_409_760),
        ("pvt_v2_b2", [3], 24_849_856),
        ("pvt_v2_b3", [3], 44_725_696),
    ],
)
def test_an_encoder_is_the_whole_published_one(name: str, levels: list[int], expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(TimmEncoder(name, 3, levels)) == expected


@pytest.mark.parametrize(("batch_norm", "expected"), [(False, 14_714_688), (True, 14_723_136)])
def test_the_vgg_trunk_is_the_published_one(batch_norm: bool, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(vgg_trunk(3, batch_norm=batch_norm)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vgg16", 138_357_544),
        ("vgg16_bn", 138_365_992),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("vit_base_patch16_224", 86_567_656),
        ("swin_tiny_patch4_window7_224", 28_288_354),
        ("pvt_v2_b3", 45_238_696),
    ],
)
def test_with_a_classifier_of_1000_it_is_the_published_network(name: str, expected: int) -> None:
    with torch.device("meta"):
        theirs = import_timm().create_model(name)
        assert count_parameters(theirs) == expected
        behind = [theirs.get_classifier()]
        ours: nn.Module
        if name.startswith("vgg"):
            ours = vgg_trunk(3, batch_norm=name.endswith("_bn"))
            behind.append(theirs.pre_logits)
        else:
            ours = TimmEncoder(name, 3, [len(theirs.feature_info) - 1])
    assert sum(map(count_parameters, (ours, *behind))) == expected


def test_a_narrow_vgg_keeps_the_layout() -> None:
    narrow, wide = vgg_trunk(3, width=8), vgg_trunk(3, width=16)
    assert [type(a) for a in narrow] == [type(b) for b in wide]
    with torch.inference_mode():
        assert narrow(torch.randn(1, 3, 64, 32)).shape == (1, 64, 2, 1)


def test_the_keys_are_timms_own() -> None:
    """What a user has from elsewhere must fit strictly."""
    timm = import_timm()
    with torch.device("meta"):
        theirs: nn.Module = timm.create_model("resnet18", num_classes=0)
        ours = TimmEncoder("resnet18", 3, [1, 2, 3, 4])
    assert set(ours.body.state_dict()) == set(theirs.state_dict())


def test_maps_have_the_channels_and_strides_that_are_promised() -> None:
    encoder = TimmEncoder("resnet18", 5, [1, 3], output_stride=8).eval()
    with torch.inference_mode():
        maps = encoder(torch.randn(1, 5, 64, 96))
    assert [m.shape[1] for m in maps] == encoder.channels == [64, 256]
    assert [(64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [(4, 4), (8, 8)]
    assert encoder.reductions == [4, 8]
