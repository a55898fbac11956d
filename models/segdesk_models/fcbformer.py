"""FCBFormer: a transformer branch for what is where, a convolutional one for the outlines.

Sanderson, Matuszewski: FCN-Transformer Feature Fusion for Polyp Segmentation, MIUA 2022.

The transformer branch (PVTv2-B3) sees the image at a quarter of its size and below; the
fully convolutional branch sees it at full size. Both results are concatenated at full
size and go through the prediction head. The paper's images have 352x352 pixels; here any
multiples of 32 do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.encoders import TimmEncoder
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter
from segdesk.nn.spec import Initialisation, ModelSpec, deviations_of

#: Channels of the convolutional branch by level, in multiples of its width.
MULTIPLES = (1, 1, 2, 2, 4, 4)
#: Residual blocks by level on the way down; on the way up there is one more.
BLOCKS = 2


class Encoder(TimmEncoder):
    """PVTv2, and the image beside its features: the convolutional branch needs it too."""

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__(name, in_channels, range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the image and the features at 1/4, 1/8, 1/16 and 1/32 of its size."""
        return [x, *super().forward(x)]


class ResidualBlock(nn.Module):
    """Twice group norm, SiLU and 3x3 convolution, added to the input.

    The input goes through a 1x1 convolution where the number of channels changes.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.first = _norm_silu_conv(inputs, outputs, groups)
        self.second = _norm_silu_conv(outputs, outputs, groups)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H, W)."""
        change: Tensor = self.second(self.first(x))
        kept: Tensor = self.skip(x)
        return kept + change


def _norm_silu_conv(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
    )


def _two_blocks(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(inputs, outputs, groups), ResidualBlock(outputs, outputs, groups)
    )


class TransformerBranch(nn.Module):
    """What PVTv2 found, brought to a quarter of the image's size and fused.

    Local emphasis (LE) treats each level by itself; stepwise feature aggregation (SFA)
    then joins the levels, the coarsest first, one finer level at a time.

    Parameters
    ----------
    channels
        Of PVTv2's levels, the finest first.
    features
        Channels of every level from here on.
    """

    def __init__(self, channels: Sequence[int], features: int, groups: int) -> None:
        super().__init__()
        self.emphasis = nn.ModuleList(_two_blocks(c, features, groups) for c in channels)
        self.aggregation = nn.ModuleList(
            _two_blocks(2 * features, features, groups) for _ in channels[1:]
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return (N, features, H/4, W/4) for levels from 1/4 to 1/32."""
        size = levels[0].shape[-2:]
        emphasised = [
            F.interpolate(emphasise(level), size, mode="nearest")
            for emphasise, level in zip(self.emphasis, levels, strict=True)
        ]
        fused = emphasised[-1]
        # aggregation[i] takes in level i, so the last of them comes first.
        for aggregate, finer in zip(
            reversed(self.aggregation), reversed(emphasised[:-1]), strict=True
        ):
            fused = aggregate(torch.cat((finer, fused), 1))
        return fused


class ConvolutionalBranch(nn.Module):
    """A U-Net of residual blocks at six sizes, in which every single result is skipped over.

    On the way down each block and each strided convolution leaves its result behind; on
    the way up each block takes one of them back in, the latest first.

    Parameters
    ----------
    width
        Channels at full size; four times as many at 1/32.
    """

    def __init__(self, in_channels: int, width: int, groups: int) -> None:
        super().__init__()
        widths = [multiple * width for multiple in MULTIPLES]
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        kept = [width]
        for level, channels in enumerate(widths):
            if level > 0:
                self.down.append(nn.Conv2d(kept[-1], kept[-1], 3, stride=2, padding=1))
                kept.append(kept[-1])
            for _ in range(BLOCKS):
                self.down.append(ResidualBlock(kept[-1], channels, groups))
                kept.append(channels)
        self.middle = _two_blocks(kept[-1], kept[-1], groups)
        self.up = nn.ModuleList()
        self.enlarge = nn.ModuleList()
        current = kept[-1]
        for level, channels in enumerate(reversed(widths)):
            if level > 0:
                double = nn.Upsample(scale_factor=2, mode="nearest")
                conv = nn.Conv2d(current, current, 3, padding=1)
                self.enlarge.append(nn.Sequential(double, conv))
            blocks = nn.ModuleList()
            for _ in range(BLOCKS + 1):
                blocks.append(ResidualBlock(current + kept.pop(), channels, groups))
                current = channels
            self.up.append(blocks)

    def forward(self, image: Tensor) -> Tensor:
        """Return (N, width, H, W) for an image (N, C, H, W)."""
        kept = [self.stem(image)]
        for step in self.down:
            kept.append(step(kept[-1]))
        x: Tensor = self.middle(kept[-1])
        for level, blocks in enumerate(self.up):
            if level > 0:
                x = self.enlarge[level - 1](x)
            for block in cast("nn.ModuleList", blocks):
                x = block(torch.cat((x, kept.pop()), 1))
        return x


class Decoder(nn.Module):
    """Both branches and the prediction head but for its last convolution."""

    def __init__(
        self, channels: Sequence[int], in_channels: int, width: int, features: int, groups: int
    ) -> None:
        super().__init__()
        self.transformer = TransformerBranch(channels, features, groups)
        self.convolutional = ConvolutionalBranch(in_channels, width, groups)
        self.prediction = _two_blocks(features + width, features, groups)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return (N, features, H, W) for an image (N, C, H, W) and PVTv2's levels."""
        image, *levels = inputs
        coarse = F.interpolate(self.transformer(levels), image.shape[-2:], mode="nearest")
        fused: Tensor = self.prediction(torch.cat((coarse, self.convolutional(image)), 1))
        return fused


class FCBFormer(Segmenter):
    """FCBFormer.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    encoder
        timm's name of a PVTv2.
    width
        Channels of the convolutional branch at full size.
    features
        Channels of the transformer branch behind PVTv2, and of the prediction head.
    groups
        Of every group norm; must divide ``width`` and ``features``.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - Any image whose sides are multiples of 32 pixels is taken (the paper: 352x352).
    - Every class has a map of its own, and a softmax over them follows (the paper: one map
      and a sigmoid).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        encoder: str = "pvt_v2_b3",
        width: int = 32,
        features: int = 64,
        groups: int = 32,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        body = Encoder(encoder, in_channels)
        super().__init__(
            body,
            Decoder(body.channels, in_channels, width, features, groups),
            Head(config, features),
        )


SPEC = ModelSpec(
    name="fcbformer",
    title="FCBFormer",
    year=2022,
    reference="Sanderson and Matuszewski, MIUA 2022",
    build=FCBFormer,
    stride=32,
    min_size=32,
    options={
        "encoder": "pvt_v2_b3",
        "width": 32,
        "features": 64,
        "groups": 32,
        "head": "A",
        "activation": "none",
    },
    # Two channels or more to a group, or a group norm would erase 1x1 pixel features.
    small={"encoder": "pvt_v2_b0", "width": 8, "features": 16, "groups": 4},
    initialisation=Initialisation.TORCH,
    deviations=deviations_of(FCBFormer),
)
