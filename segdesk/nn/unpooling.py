"""Parts that DeconvNet and SegNet share: pooling that remembers, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.encoders import vgg_trunk

#: Channels of the last convolutions of VGG-16, for a first block of 64.
_LAST = 512


def scaled(channels: int, width: int) -> int:
    """Return how many channels a layer has when the first block has ``width``, not 64."""
    return max(1, channels * width // 64)


class SwitchedVgg(nn.Module):
    """VGG-16 with batch norm up to its fifth pooling, and where each maximum was.

    Parameters
    ----------
    in_channels
        Channels of the image.
    width
        Channels of the first block; 64 in the paper.

    Attributes
    ----------
    channels
        Of the last map.
    """

    #: Whose weights fit, for timm's own download.
    timm_name = "vgg16_bn"

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.features = vgg_trunk(in_channels, width=width, batch_norm=True)
        self.channels = scaled(_LAST, width)
        for part in self.features:
            if isinstance(part, nn.MaxPool2d):
                part.return_indices = True

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the last map and the switches of every pooling, the first one first.

        Parameters
        ----------
        x
            Shape (N, C, H, W); sides are multiples of 32.

        Returns
        -------
        map, switches
            Shape (N, channels, H/32, W/32). A switch is the place of a maximum in the
            map before pooling, counted row by row; each tensor has the pooled map's shape.
        """
        switches = []
        for part in self.features:
            if isinstance(part, nn.MaxPool2d):
                x, places = part(x)
                switches.append(places)
            else:
                x = part(x)
        return x, switches


class UnpoolingDecoder(nn.Module):
    """Back up to the image's size: unpooling, and convolutions that fill the gaps.

    Unpooling puts every value where its maximum was found; all else is 0.

    Parameters
    ----------
    inputs
        Channels that come in.
    stages
        Channels of the layers behind each unpooling.
    layer
        Makes a layer: ``layer(inputs, outputs)``. It keeps the size.
    """

    def __init__(
        self,
        inputs: int,
        stages: Sequence[Sequence[int]],
        layer: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for widths in stages:
            befores = [inputs, *widths[:-1]]
            self.stages.append(
                nn.Sequential(*(layer(i, o) for i, o in zip(befores, widths, strict=True)))
            )
            inputs = widths[-1]

    def forward(self, x: Tensor, switches: Sequence[Tensor]) -> Tensor:
        """Return a map as large as the one in front of the first pooling.

        Parameters
        ----------
        x
            Shape (N, inputs, h, w).
        switches
            From :class:`SwitchedVgg`, the first pooling's first.
        """
        for stage, places in zip(self.stages, reversed(switches), strict=True):
            x = stage(F.max_unpool2d(x, places, [2, 2]))
        return x
