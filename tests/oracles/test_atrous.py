"""PSPNet and the DeepLab models against torchvision and segmentation_models.pytorch."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity import Case, assert_same, fill, freeze, image, ours
from parity_atrous import (
    BINS,
    ENCODER,
    PSP,
    PYRAMID,
    V2,
    V2_VGG,
    V3_SMP,
    V3_TORCHVISION,
    V3PLUS,
    V3PLUS_SMP,
    VGG,
    join,
    thin,
)
from segdesk.nn.torchvision_compat import import_transforms

import_transforms()
import segmentation_models_pytorch as smp  # noqa: E402
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPModule  # noqa: E402
from segmentation_models_pytorch.encoders._utils import (  # noqa: E402
    replace_strides_with_dilation,
)
from torchvision.models import segmentation  # noqa: E402
from torchvision.models.segmentation.deeplabv3 import ASPP  # noqa: E402
from torchvision.models.segmentation.fcn import FCNHead  # noqa: E402
from torchvision.models.vgg import make_layers  # noqa: E402

#: Ours to theirs, as regular expressions, in order.
Names = tuple[tuple[str, str], ...]
#: Inside an ASPP.
ASPP_NAMES: Names = (
    (r"branches\.4\.conv\.", "convs.4.1."),
    (r"branches\.4\.norm\.", "convs.4.2."),
    (r"branches\.", "convs."),
)


def rename(weights: dict[str, Tensor], names: Names) -> dict[str, Tensor]:
    result = {}
    for key, value in weights.items():
        new = key
        for pattern, replacement in names:
            new = re.sub(pattern, replacement, new)
        result[new] = value
    assert len(result) == len(weights)
    return result


def part(case: Case, prefix: str) -> dict[str, Tensor]:
    """Return the weights of one part of our network, filled as the comparison's are."""
    weights = fill(case.build()).state_dict()
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def compare(case: Case, theirs: Callable[[Tensor], Tensor]) -> None:
    with torch.inference_mode():
        expected = theirs(image(case.shape))
    found = ours(case)
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(f"{case.name}: relative difference {difference:.2g}")  # noqa: T201
    assert_same(found, expected)
    freeze(case, expected.contiguous())


def smp_encoder(case: Case, name: str, stride: int, prefix: str = "encoder.body.") -> nn.Module:
    encoder = smp.encoders.get_encoder(name, weights=None, output_stride=stride)
    # It takes fc.* out of what it is given, and has none.
    encoder.load_state_dict(part(case, prefix), strict=True)
    return encoder.eval()


def conv_norm(weights: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    """Convolve with zeros around, normalise, clip: by torch's functions."""
    kernel = weights[f"{name}.0.weight"]
    x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    norm = [weights[f"{name}.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *norm).relu()


def classify(weights: dict[str, Tensor], x: Tensor, name: str = "head.branches.0.output") -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


def test_a_dilated_resnet_is_that_of_segmentation_models() -> None:
    encoder = smp_encoder(ENCODER, "resnet18", 8, "body.")
    compare(ENCODER, lambda x: join(encoder(x)[1:]))


def test_aspp_is_that_of_torchvision() -> None:
    theirs = ASPP(6, (12, 24, 36), 2)
    theirs.load_state_dict(rename(part(PYRAMID, ""), ASPP_NAMES), strict=True)
    compare(PYRAMID, theirs.eval())


@pytest.mark.parametrize("auxiliary", [True, False])
def test_deeplab_v3_is_that_of_torchvision(auxiliary: bool) -> None:
    theirs = segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=2, aux_loss=auxiliary
    ).eval()
    names = (
        (r"^encoder\.body\.", "backbone."),
        (r"^head\.branches\.0\.output\.", "classifier.4."),
        (r"^decoder\.auxiliary\.features\.", "aux_classifier."),
        (r"^decoder\.auxiliary\.output\.", "aux_classifier.4."),
        (r"^decoder\.aspp\.", "classifier.0."),
        *ASPP_NAMES,
        (r"^decoder\.refine\.0\.", "classifier.1."),
        (r"^decoder\.refine\.1\.", "classifier.2."),
    )
    weights = rename(part(V3_TORCHVISION, ""), names)
    if not auxiliary:
        weights = {k: v for k, v in weights.items() if not k.startswith("aux")}
    theirs.load_state_dict(weights, strict=True)
    if auxiliary:
        compare(V3_TORCHVISION, lambda x: torch.cat(list(theirs(x).values()), 1))
        return
    with torch.inference_mode():
        assert_same(ours(V3_TORCHVISION)[:, :2], theirs(image(V3_TORCHVISION.shape))["out"])


def test_deeplab_v3_is_that_of_segmentation_models() -> None:
    theirs = smp.DeepLabV3("resnet18", encoder_weights=None, classes=2).eval()
    names = (
        (r"^encoder\.body\.", "encoder."),
        (r"^head\.branches\.0\.output\.", "segmentation_head.0."),
        *ASPP_NAMES,
        (r"^decoder\.refine\.0\.", "decoder.conv."),
        (r"^decoder\.refine\.1\.", "decoder.bn."),
    )
    theirs.load_state_dict(rename(part(V3_SMP, ""), names), strict=True)
    compare(V3_SMP, theirs)


def test_separable_deeplab_v3plus_is_that_of_segmentation_models() -> None:
    theirs = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=2).eval()
    names = (
        (r"^encoder\.body\.", "encoder."),
        (r"^head\.branches\.0\.output\.", "segmentation_head.0."),
        (r"^decoder\.aspp\.branches\.([123])\.([01])\.", r"decoder.aspp.0.convs.\1.0.\2."),
        (r"^decoder\.aspp\.branches\.([123])\.2\.", r"decoder.aspp.0.convs.\1.1."),
        (r"^decoder\.aspp\.(?!0)", "decoder.aspp.0."),
        *ASPP_NAMES,
        (r"^decoder\.refine\.([01])\.", r"decoder.aspp.1.\1."),
        (r"^decoder\.refine\.2\.", "decoder.aspp.2."),
        (r"^decoder\.low\.", "decoder.block1."),
        (r"^decoder\.fuse\.0\.([01])\.", r"decoder.block2.0.\1."),
        (r"^decoder\.fuse\.0\.2\.", "decoder.block2.1."),
    )
    theirs.load_state_dict(rename(part(V3PLUS_SMP, ""), names), strict=True)
    compare(V3PLUS_SMP, theirs)


def test_deeplab_v3plus_is_its_parts() -> None:
    weights = part(V3PLUS, "")
    encoder = smp_encoder(V3PLUS, "resnet18", 16)
    # Dilation 2 in the last stage, times 2 in its second block: the multi-grid.
    replace_strides_with_dilation(encoder.layer4[1], 4)
    aspp = ASPP(512, (6, 12, 18), 16).eval()
    aspp.load_state_dict(rename(part(V3PLUS, "decoder.aspp."), ASPP_NAMES), strict=True)

    def theirs(x: Tensor) -> Tensor:
        _, _, early, _, _, late = encoder(x)
        low = conv_norm(weights, early, "decoder.low")
        joined = torch.cat((enlarge(aspp(late), low), low), 1)
        for number in range(2):
            joined = conv_norm(weights, joined, f"decoder.fuse.{number}")
        return enlarge(classify(weights, joined), x)

    compare(V3PLUS, theirs)


def test_pspnet_is_its_parts() -> None:
    weights = part(PSP, "")
    encoder = smp_encoder(PSP, "resnet18", 8)
    pyramid = PSPModule(512, BINS).eval()
    names = (
        (r"^levels\.(\d)\.conv\.", r"blocks.\1.pool.1.0."),
        (r"^levels\.(\d)\.norm\.", r"blocks.\1.pool.1.1."),
    )
    pyramid.load_state_dict(rename(part(PSP, "decoder.pyramid."), names), strict=True)
    auxiliary = FCNHead(256, 2).eval()
    names = ((r"^features\.", ""), (r"^output\.", "4."))
    auxiliary.load_state_dict(rename(part(PSP, "decoder.auxiliary."), names), strict=True)

    def theirs(x: Tensor) -> Tensor:
        *_, third, fourth = encoder(x)
        joined = pyramid(fourth)
        # The authors have the features first; segmentation_models.pytorch has them last.
        joined = joined.roll(512, 1)
        maps = classify(weights, conv_norm(weights, joined, "decoder.fuse"))
        return torch.cat((enlarge(maps, x), enlarge(auxiliary(third), x)), 1)

    compare(PSP, lambda x: thin(theirs(x)))


def test_deeplab_v2_is_its_parts() -> None:
    weights = part(V2, "head.branches.0.output.convs.")
    encoder = smp_encoder(V2, "resnet50", 8)
    encoder.layer2[0].conv1.stride, encoder.layer2[0].conv2.stride = (2, 2), (1, 1)

    def score(x: Tensor) -> Tensor:
        features = encoder(x)[-1]
        maps = torch.zeros(())
        for number, rate in enumerate((6, 12, 18, 24)):
            kernel, bias = weights[f"{number}.weight"], weights[f"{number}.bias"]
            maps = maps + F.conv2d(features, kernel, bias, padding=rate, dilation=rate)
        return maps

    def theirs(x: Tensor) -> Tensor:
        # 65 and 97 pixels: 64 and 96 intervals, of which three quarters and a half.
        sizes = ((65, 97), (49, 73), (33, 49))
        scaled = [F.interpolate(x, s, mode="bilinear", align_corners=True) for s in sizes]
        whole, *others = (score(part) for part in scaled)
        scores = [whole, *(enlarge(other, whole) for other in others)]
        largest = torch.maximum(torch.maximum(scores[0], scores[1]), scores[2])
        return torch.cat([enlarge(maps, x) for maps in (largest, *scores)], 1)

    compare(V2, lambda x: thin(theirs(x)))


def test_deeplab_v2_on_vgg_is_its_parts() -> None:
    weights = part(V2_VGG, "")
    trunk = make_layers(list(VGG))
    trunk.load_state_dict(part(V2_VGG, "encoder.features."), strict=True)
    for index, stride in ((4, 2), (9, 2), (16, 2), (23, 1), (30, 1)):
        trunk[index] = nn.MaxPool2d(3, stride, 1)
    for index in (24, 26, 28):
        trunk[index].dilation = trunk[index].padding = (2, 2)

    def conv(x: Tensor, name: str, rate: int) -> Tensor:
        return F.conv2d(
            x,
            weights[f"{name}.weight"],
            weights[f"{name}.bias"],
            padding=rate,
            dilation=max(1, rate),
        )

    def theirs(x: Tensor) -> Tensor:
        features = trunk(x)
        maps = torch.zeros(())
        for number, rate in enumerate((6, 12, 18, 24)):
            hidden = conv(features, f"decoder.branches.{number}.fc6", rate).relu()
            hidden = conv(hidden, f"decoder.branches.{number}.fc7", 0).relu()
            maps = maps + conv(hidden, f"head.branches.{number}.output", 0)
        return enlarge(maps, x)

    compare(V2_VGG, theirs)
