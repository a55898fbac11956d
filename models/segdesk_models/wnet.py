"""W-Net: learns to segment without labels.

Xia, Kulis: W-Net: A Deep Model for Fully Unsupervised Image Segmentation, 2017.

A first U-Net, U-Enc, makes soft segments of the image; a second one, U-Dec, makes the
image of the segments again. Segments are good if pixels that are near and alike lie in
the same one (the normalised cut is small) and if the image can be told from them. Which
segment is which class is unknown: the numbers of the classes are arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.ncut import soft_ncut
from segdesk.nn.segmenter import Segmenter, init_he
from segdesk.nn.spec import ModelSpec

LEVELS = 4
#: One grey level of 255 in the units of an image that was scaled to 0..1 and then divided by
#: 0.25, as SegDesk does.
GREY_LEVEL = 1 / 255 / 0.25

#: Makes a 3x3 convolution that keeps the size: ``convolution(inputs, outputs)``.
Convolution = Callable[[int, int], nn.Module]


def full(inputs: int, outputs: int) -> nn.Module:
    """Return a 3x3 convolution."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def separable(inputs: int, outputs: int) -> nn.Module:
    """Return a 3x3 convolution of each channel by itself, and a 1x1 one across them."""
    alone = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    return nn.Sequential(alone, nn.Conv2d(inputs, outputs, 1))


class Module(nn.Sequential):
    """The paper's module, twice: 3x3 convolution, ReLU, batch norm."""

    def __init__(self, inputs: int, outputs: int, convolution: Convolution) -> None:
        super().__init__(
            convolution(inputs, outputs),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(outputs),
            convolution(outputs, outputs),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(outputs),
        )


class ContractingPath(nn.Module):
    """A module, then four times 2x2 max pooling and a module with separable convolutions.

    Parameters
    ----------
    inputs
        Channels that come in.
    widths
        Channels of each level, the finest first.
    dropout
        Rate at the end of the path.
    """

    def __init__(self, inputs: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Module(inputs, widths[0], full)])
        self.blocks.extend(Module(above, here, separable) for above, here in pairwise(widths))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps from full size down to 1/16."""
        features = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            features.append(block(self.pool(features[-1])))
        return [*features[:-1], self.dropout(features[-1])]


class ExpandingPath(nn.Module):
    """Four times 2x2 up-convolution, concatenation and a module; the last is not separable.

    Parameters
    ----------
    widths
        Channels of the contracting path, the finest first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        steps = list(pairwise(reversed(widths)))
        kinds = [separable] * (LEVELS - 1) + [full]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in steps
        )
        self.blocks = nn.ModuleList(
            Module(2 * here, here, kind) for (_, here), kind in zip(steps, kinds, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the feature map at full size."""
        *skips, x = features
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = block(torch.cat((skips.pop(), up(x)), 1))
        return x


class UDec(nn.Module):
    """The second U-Net, which makes the image of the segments again.

    Parameters
    ----------
    classes
        Number of segments K.
    channels
        Channels of the image.
    widths
        Channels of each level, the finest first.
    """

    def __init__(self, classes: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.contract = ContractingPath(classes, widths)
        self.expand = ExpandingPath(widths)
        self.image = nn.Conv2d(widths[0], channels, 1)

    def forward(self, segments: Tensor) -> Tensor:
        """Return an image (N, C, H, W) for probabilities (N, K, H, W)."""
        image: Tensor = self.image(self.expand(self.contract(segments)))
        return image


class Decoder(nn.Module):
    """U-Enc's expanding path, and, for learning only, all of U-Dec as ``reconstruct``."""

    def __init__(self, classes: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.expand = ExpandingPath(widths)
        self.reconstruct = UDec(classes, channels, widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the features of which the segments are made, (N, width, H, W)."""
        found: Tensor = self.expand(features)
        return found


class WNet(Segmenter):
    """W-Net.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of segments.
    width
        Channels of the first level of both U-Nets; doubled at each of the four below.
    dropout
        Rate at the end of U-Enc's contracting path.
    intensity_sigma
        How unlike two pixels may be to belong together, in grey levels of 255.
    spatial_sigma
        How far apart, in pixels.
    radius
        From where on pixels are not compared, in pixels.
    head, activation
        See :mod:`segdesk.nn.heads`.
    """

    decoder: Decoder

    def __init__(
        self,
        in_channels: int,
        classes: int,
        width: int = 64,
        dropout: float = 0.65,
        intensity_sigma: float = 10.0,
        spatial_sigma: float = 4.0,
        radius: float = 5.0,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        widths = [width * 2**level for level in range(LEVELS + 1)]
        super().__init__(
            ContractingPath(in_channels, widths, dropout),
            Decoder(classes, in_channels, widths),
            Head(config, width),
        )
        self._intensity_sigma = intensity_sigma * GREY_LEVEL
        self._spatial_sigma = spatial_sigma
        self._radius = radius
        #: Which of the segments stands for which class; kept with the weights.
        self.order: Tensor
        self.register_buffer("order", torch.arange(classes))
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of the segments, (N, K, H, W), in the order of the classes."""
        return self.segments(x).index_select(1, self.order)

    def segments(self, x: Tensor) -> Tensor:
        """Return the maps of the segments in U-Enc's own order."""
        return super().forward(x)

    def assign(self, order: Tensor) -> None:
        """Let map ``order[k]`` of those that ``forward`` returns stand for class k.

        The cut is the same whatever the segments are called, so nothing else changes.
        """
        self.order.copy_(self.order[order.to(self.order.device)])

    def own_loss(self, image: Tensor) -> Tensor:
        """Return the soft normalised cut plus the error of the reconstructed image.

        Parameters
        ----------
        image
            Shape (N, C, H, W), scaled to 0..1, shifted, divided by 0.25.
        """
        segments = torch.softmax(self.segments(image), 1)
        cut = soft_ncut(
            segments,
            image,
            intensity_sigma=self._intensity_sigma,
            spatial_sigma=self._spatial_sigma,
            radius=self._radius,
        )
        return cut + F.mse_loss(self.decoder.reconstruct(segments), image)


SPEC = ModelSpec(
    name="wnet",
    title="W-Net",
    year=2017,
    reference="Xia and Kulis, arXiv 1711.08506",
    build=WNet,
    stride=16,
    options={
        "width": 64,
        "dropout": 0.65,
        "intensity_sigma": 10.0,
        "spatial_sigma": 4.0,
        "radius": 5.0,
        "head": "A",
        "activation": "none",
    },
    small={"width": 16, "dropout": 0.1},
    has_dropout=True,
    needs_labels=False,
    deviations=(
        "Each step lowers the sum of the normalised cut and the reconstruction error (the paper "
        "takes two steps in turn: one for the cut, which moves the first U-Net, and one for the "
        "reconstruction, which moves both).",
        "It makes as many segments as the model has classes (the paper makes more, and merges "
        "them afterwards).",
        "Segments are not refined by a fully connected CRF nor merged hierarchically; the CRF is "
        "a step of its own here.",
        "Dropout is placed at the end of the first U-Net's contracting path, as U-Net has it; "
        "its place and rate could not be checked against the paper.",
    ),
)
