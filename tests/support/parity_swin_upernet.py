"""UPerNet on a narrow Swin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity import Case
from segdesk_models.swin_upernet import SwinUPerNet

DEPTHS = [2, 2, 2, 2]
CHANNELS = 32
WIDTH = 16
CLASSES = 3


def build() -> nn.Module:
    return SwinUPerNet(3, CLASSES, depths=DEPTHS, embed_dim=CHANNELS, width=WIDTH)


def both_outputs(network: Any, x: Tensor) -> Tensor:
    """Return every fifth pixel of the class maps and of the auxiliary output's."""
    maps = [maps for _, maps in network.training_maps(x)]
    return thinned(torch.cat(maps, 1))


def thinned(maps: Tensor) -> Tensor:
    return maps[:, :, ::5, ::5]


def four_stages(network: Any, x: Tensor) -> Tensor:
    return sampled(network.encoder(x))


def sampled(stages: list[Tensor]) -> Tensor:
    """Return some of each stage's features, in a row."""
    return torch.cat([stage[:, ::4, ::5, ::5].flatten() for stage in stages])


#: With 224 pixels every stage holds whole windows, with 96x160 none does.
CASES = (
    Case("swin-upernet-224", build, (1, 3, 224, 224), both_outputs),
    Case("swin-upernet-96x160", build, (2, 3, 96, 160), both_outputs),
)

#: torchvision does not shift windows where a stage has one only, as at 224 pixels.
STAGES = Case("swin-stages-448", build, (1, 3, 448, 448), four_stages)
