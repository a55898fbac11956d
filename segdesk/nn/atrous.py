"""Parts that PSPNet and the DeepLab models share: dilated ResNets, ASPP, aligned grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.encoders import TimmEncoder, vgg_trunk
from segdesk.nn.norms import PooledNorm
from segdesk.nn.segmenter import Segmenter, resize


class DilatedResNet(TimmEncoder):
    """A ResNet of timm whose last stages dilate their 3x3 convolutions and keep the size.

    Parameters
    ----------
    name
        timm's name, such as ``resnet101``, or ``resnet50s`` with three 3x3 convolutions
        in the place of the first 7x7.
    in_channels
        Channels of the image.
    levels
        Which feature maps to return: 1 is the first stage's (stride 4), 4 the last's.
    output_stride
        Stride of the last map, 8 or 16.
    width
        Channels of the first stage, 64 in every published ResNet. Others are timm's
        layers, narrower or wider, for which no pre-trained weights exist.
    multi_grid
        Factors of the dilation in the blocks of the last stage; None are ones.
    dilate_first
        A dilated stage's first block is dilated as the others. Otherwise it keeps the
        dilation of the stage before, as in timm and torchvision.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        levels: Sequence[int],
        output_stride: int,
        *,
        width: int = 64,
        multi_grid: Sequence[int] | None = None,
        dilate_first: bool = True,
    ) -> None:
        super().__init__(
            name,
            in_channels,
            levels,
            output_stride=output_stride,
            channels=tuple(width * 2**stage for stage in range(4)),
            # Drawn as zero, the last norm of a block would at first pass no gradient on.
            zero_init_last=False,
        )
        stages: list[Any] = [self.body.layer3, self.body.layer4]
        factors = [None, multi_grid]
        for stage, stride, grid in zip(stages, (16, 32), factors, strict=True):
            dilation = stride // output_stride
            if dilation == 1:
                continue
            rates = [dilation * factor for factor in grid or [1] * len(stage)]
            if len(rates) != len(stage):
                raise ValueError(f"multi_grid must have {len(stage)} factors for {name}")
            for number, (block, rate) in enumerate(zip(stage, rates, strict=True)):
                if number > 0 or dilate_first:
                    dilate(block, rate)


def dilate(module: nn.Module, rate: int) -> None:
    """Set the dilation of every 3x3 convolution in ``module``; the size stays."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            part.dilation = part.padding = (rate, rate)


class DilatedVgg(nn.Module):
    """VGG-16 up to its fifth pooling, at stride 8, as DeepLab v1 and v2 have it.

    Pooling windows are 3x3, which keeps maps on pixels 0, 2, 4, ...; the last two move
    by one pixel, and the convolutions between them are dilated by 2 instead.

    Parameters
    ----------
    width
        Channels of the first block; 64 in the paper.
    """

    #: Whose weights fit ``features``, for timm's own download.
    timm_name = "vgg16"

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.features = vgg_trunk(in_channels, width=width)
        self.channels = max(1, 512 * width // 64)
        pools = [i for i, part in enumerate(self.features) if isinstance(part, nn.MaxPool2d)]
        for place, stride in zip(pools, (2, 2, 2, 1, 1), strict=True):
            self.features[place] = nn.MaxPool2d(3, stride, padding=1)
        dilate(self.features[pools[3] : pools[4]], 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, H/8, W/8)."""
        result: Tensor = self.features(x)
        return result


class FullyConnected(nn.Sequential):
    """VGG's fc6 and fc7 as a dilated and a 1x1 convolution.

    Parameters
    ----------
    size
        Height and width of fc6's kernel. An even one has no middle: 4x4 reaches as far
        to the left as to the right, too.
    """

    def __init__(
        self, inputs: int, width: int, rate: int, dropout: float, *, size: int = 3
    ) -> None:
        super().__init__()
        around = (size - 1) * rate // 2
        self.add_module("fc6", nn.Conv2d(inputs, width, size, padding=around, dilation=rate))
        self.add_module("relu6", nn.ReLU(inplace=True))
        self.add_module("drop6", nn.Dropout(dropout))
        self.add_module("fc7", nn.Conv2d(width, width, 1))
        self.add_module("relu7", nn.ReLU(inplace=True))
        self.add_module("drop7", nn.Dropout(dropout))


def init_scores(head: nn.Module) -> None:
    """Draw the output layers from a normal distribution of 0.01; biases are 0."""
    for name, part in head.named_modules():
        if isinstance(part, nn.Conv2d) and "attention" not in name:
            nn.init.normal_(part.weight, std=0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def conv_norm(
    inputs: int, outputs: int, size: int, *, dilation: int = 1, separable: bool = False
) -> nn.Sequential:
    """Return convolution, batch norm and ReLU; the map's size stays.

    Parameters
    ----------
    size
        Height and width of the kernel; odd.
    separable
        The convolution is split into one per channel and a 1x1 across the channels.
    """
    around = dilation * (size // 2)
    layers: list[nn.Module] = []
    if separable:
        layers.append(
            nn.Conv2d(
                inputs, inputs, size, padding=around, dilation=dilation, groups=inputs, bias=False
            )
        )
        layers.append(nn.Conv2d(inputs, outputs, 1, bias=False))
    else:
        layers.append(
            nn.Conv2d(inputs, outputs, size, padding=around, dilation=dilation, bias=False)
        )
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class RegionMeans(nn.Module):
    """Means over a grid of regions, through a 1x1 convolution, enlarged to the map again.

    Parameters
    ----------
    inputs, outputs
        Channels.
    bins
        Regions along each side; 1 is the mean over the image.
    """

    def __init__(self, inputs: int, outputs: int, bins: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(bins)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = PooledNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H, W) for (N, inputs, H, W)."""
        means = F.relu(self.norm(self.conv(self.pool(x))))
        return resize(means, x, align_corners=True)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling, as DeepLab v3 has it.

    A 1x1 convolution, a dilated 3x3 convolution per rate and the image's mean, side by
    side; then a 1x1 convolution and dropout.

    Parameters
    ----------
    inputs, outputs
        Channels that go in, and of each branch and the result.
    rates
        Dilations.
    separable
        See :func:`conv_norm`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rates: Sequence[int],
        dropout: float,
        *,
        separable: bool = False,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm(inputs, outputs, 1)])
        for rate in rates:
            self.branches.append(conv_norm(inputs, outputs, 3, dilation=rate, separable=separable))
        self.branches.append(RegionMeans(inputs, outputs, 1))
        self.project = conv_norm(len(self.branches) * outputs, outputs, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H, W) for (N, inputs, H, W)."""
        joined = torch.cat([branch(x) for branch in self.branches], 1)
        result: Tensor = self.dropout(self.project(joined))
        return result


class AuxiliaryHead(nn.Sequential):
    """Class maps from an earlier stage, to learn from: 3x3 to a quarter, dropout, 1x1."""

    def __init__(self, inputs: int, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.add_module("features", conv_norm(inputs, inputs // 4, 3))
        self.add_module("dropout", nn.Dropout2d(dropout))
        # Under the name by which class maps are found when the classes change.
        self.add_module("output", nn.Conv2d(inputs // 4, classes, 1))


class AlignedSegmenter(Segmenter):
    """A segmenter whose feature maps sit on a grid that begins and ends on image pixels.

    A convolution of stride 2 looks at pixels 0, 2, 4, ...: feature i of a map of
    stride s sits on pixel s * i. The authors therefore train on crops of s * k + 1
    pixels (321, 473, 513) and enlarge with aligned corners, which puts every class
    score back on its pixel. Images of any other size are extended here to such a one,
    repeating the last row and column, and the maps are cut to the image again.

    Parameters
    ----------
    grid
        The stride s, in pixels.
    align_corners
        Do so. Otherwise nothing is extended and the maps are enlarged with their
        borders aligned, as torchvision does.
    auxiliary
        Weight of what the decoder's part ``auxiliary``, where it has one, makes of the
        first of the encoder's maps. Only learning uses that.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        *,
        grid: int,
        align_corners: bool = True,
        auxiliary: float = 0.4,
    ) -> None:
        super().__init__(encoder, decoder, head, align_corners=align_corners)
        self._grid = grid
        self._auxiliary_weight = auxiliary

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps (N, K, H, W) for images (N, C, H, W) of any size."""
        maps: Tensor = self.head(self.decoder(self.encoder(self.extend(x))))
        return self.enlarge(maps, x)

    def training_maps(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """Return the class maps and, where the decoder has them, auxiliary ones."""
        features = self.encoder(self.extend(x))
        maps = [(1.0, self.enlarge(self.head(self.decoder(features)), x))]
        auxiliary = getattr(self.decoder, "auxiliary", None)
        if auxiliary is not None:
            maps.append((self._auxiliary_weight, self.enlarge(auxiliary(features[0]), x)))
        return maps

    def extend(self, image: Tensor) -> Tensor:
        """Extend an image below and on the right to a multiple of the grid, plus one."""
        right, below = self._missing(image.shape[-1]), self._missing(image.shape[-2])
        if right == below == 0:
            return image
        return F.pad(image, (0, right, 0, below), mode="replicate")

    def enlarge(self, maps: Tensor, image: Tensor) -> Tensor:
        """Enlarge maps of the extended image bilinearly and cut them to the image."""
        height, width = image.shape[-2:]
        extended = image.new_empty(
            1, 1, height + self._missing(height), width + self._missing(width)
        )
        return resize(maps, extended, align_corners=self._align_corners)[..., :height, :width]

    def _missing(self, length: int) -> int:
        return -(length - 1) % self._grid if self._align_corners else 0
