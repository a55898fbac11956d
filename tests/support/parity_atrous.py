"""PSPNet and DeepLab v2, v3, v3+ against torchvision, segmentation_models.pytorch and their parts.

Whole networks exist for DeepLab v3 (torchvision; segmentation_models.pytorch) and for v3+ with
separable convolutions (the latter). The others are compared with networks put together from those
libraries' encoders, ASPP, pyramid pooling and auxiliary head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity import Case
from segdesk.nn.atrous import ASPP, DilatedResNet
from segdesk.nn.segmenter import resize
from segdesk_models.deeplabv2 import DeepLabV2
from segdesk_models.deeplabv3 import DeepLabV3
from segdesk_models.deeplabv3plus import DeepLabV3Plus
from segdesk_models.pspnet import PSPNet

#: Regions of the pyramid; segmentation_models.pytorch has no batch norm for 1.
BINS = (2, 3, 6)
#: VGG-16 at an eighth of its width, as torchvision lists it.
VGG = (8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M")


def all_maps(network: Any, x: Tensor) -> Tensor:
    """Return the class maps and the auxiliary ones."""
    return torch.cat([maps for _, maps in network.training_maps(x)], 1)


def thin(maps: Tensor) -> Tensor:
    """Return every second pixel."""
    return maps[..., ::2, ::2]


def unextended(network: Any, x: Tensor) -> Tensor:
    """Run without extending the image, which segmentation_models.pytorch does not do."""
    maps = network.head(network.decoder(network.encoder(x)))
    return resize(maps, x, align_corners=True)


def join(levels: list[Tensor]) -> Tensor:
    """Put every eighth channel of feature maps of several sizes into one tensor."""
    return torch.cat([level[:, ::8].flatten(1) for level in levels], 1)


ENCODER = Case(
    "dilated_resnet18",
    lambda: DilatedResNet("resnet18", 3, (0, 1, 2, 3, 4), 8),
    (1, 3, 48, 64),
    lambda encoder, x: join(encoder(x)),
)
PYRAMID = Case("aspp", lambda: ASPP(6, 2, (12, 24, 36), 0.5), (1, 6, 48, 80))
V3_TORCHVISION = Case(
    "deeplabv3_torchvision",
    lambda: DeepLabV3(
        3, 2, "resnet50", output_stride=8, multi_grid=None, dilate_first=False,
        refine=True, auxiliary=True, align_corners=False,
    ),
    (1, 3, 50, 67),
    all_maps,
)  # fmt: skip
V3_SMP = Case(
    "deeplabv3_smp",
    lambda: DeepLabV3(3, 2, "resnet18", output_stride=8, multi_grid=None, refine=True),
    (1, 3, 64, 96),
    unextended,
)
V3PLUS_SMP = Case(
    "deeplabv3plus_smp",
    lambda: DeepLabV3Plus(
        3, 2, "resnet18", multi_grid=None, rates=(12, 24, 36),
        refine=True, separable=True, convolutions=1,
    ),
    (1, 3, 64, 96),
    unextended,
)  # fmt: skip
V3PLUS = Case(
    "deeplabv3plus",
    lambda: DeepLabV3Plus(3, 2, "resnet18", multi_grid=(1, 2), width=16, low_width=8),
    (1, 3, 65, 97),
)
PSP = Case(
    "pspnet",
    lambda: PSPNet(3, 2, "resnet18", bins=BINS, width=16),
    (1, 3, 57, 73),
    lambda network, x: thin(all_maps(network, x)),
)
V2 = Case(
    "deeplabv2_resnet50",
    lambda: DeepLabV2(3, 2, "resnet50"),
    (1, 3, 65, 97),
    lambda network, x: thin(all_maps(network, x)),
)
V2_VGG = Case(
    "deeplabv2_vgg16",
    lambda: DeepLabV2(3, 2, "vgg16", encoder_width=8, width=16, multi_scale=False),
    (1, 3, 65, 97),
)
CASES = (ENCODER, PYRAMID, V3_TORCHVISION, V3_SMP, V3PLUS_SMP, V3PLUS, PSP, V2, V2_VGG)
