"""Encoders from timm, under timm's own names, so that weights made elsewhere fit.

An encoder is a timm network without its classifier, kept whole in ``body``: its
state-dict keys are timm's, and a user's pre-trained weights load strictly.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segdesk.nn.segmenter import init_he
from segdesk.nn.torchvision_compat import import_transforms


def import_timm() -> Any:
    """Return ``timm``; it imports torchvision, which must have been mended first."""
    import_transforms()
    import timm

    return timm


class TimmEncoder(nn.Module):
    """A timm network that returns feature maps.

    Parameters
    ----------
    name
        timm's name, such as ``resnet101``.
    in_channels
        Channels of the image.
    levels
        Which of timm's feature maps to return, in order (see ``feature_info`` there).
    options
        Passed to ``timm.create_model``.

    Attributes
    ----------
    body
        The timm network.
    channels, reductions
        Channels and stride of each returned map.
    timm_name
        For timm's own download of weights.

    Raises
    ------
    ValueError
        timm has no network of that name.
    """

    def __init__(self, name: str, in_channels: int, levels: Sequence[int], **options: Any) -> None:
        super().__init__()
        timm = import_timm()
        if not timm.is_model(name):
            # Not `registry.suggest`: it lists all there are, and here there are over a thousand.
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no encoder {name!r} in timm{meant}")
        body: Any = timm.create_model(
            name, pretrained=False, in_chans=in_channels, num_classes=0, **options
        )
        info = list(body.feature_info)
        self.timm_name = name
        self.levels = list(levels)
        body.prune_intermediate_layers(self.levels, prune_head=True)
        self.body = body
        self.channels = [int(info[level]["num_chs"]) for level in levels]
        self.reductions = [int(info[level]["reduction"]) for level in levels]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps, (N, channels[i], H/reductions[i], W/reductions[i])."""
        maps: list[Tensor] = self.body.forward_intermediates(
            x, indices=self.levels, intermediates_only=True
        )
        return maps


def vgg_trunk(
    in_channels: int, *, depth: int = 16, width: int = 64, batch_norm: bool = False
) -> nn.Sequential:
    """Return timm's VGG convolutions and poolings, ``features.*`` of its weights.

    Parameters
    ----------
    depth
        11, 13, 16 or 19.
    width
        Channels of the first block; 64 in the paper. Others are timm's layers,
        narrower, for which no pre-trained weights exist.
    """
    import_timm()
    from timm.models.vgg import VGG, cfgs

    wide = cfgs[f"vgg{depth}"]
    plan = [c if c == "M" else max(1, int(c) * width // 64) for c in wide]
    norm = nn.BatchNorm2d if batch_norm else None
    # timm builds the 4096-wide classifier too; on the meta device that costs nothing.
    with torch.device("meta"):
        features: nn.Sequential = VGG(
            plan, num_classes=0, in_chans=in_channels, norm_layer=norm
        ).features
    features.to_empty(device="cpu" if torch.get_default_device().type != "meta" else "meta")
    for part in features.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
    init_he(features)
    return features
