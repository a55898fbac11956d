"""U-Net as published in 2015: without padding, so that every pixel is judged by real context.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image
Segmentation, MICCAI 2015.

Unpadded convolutions cost a border of 92 pixels: :meth:`UNet2015.valid` makes 388x388
pixels of class maps of a 572x572 image. To give every pixel of an image its class,
``forward`` mirrors the image at its borders first, as the paper does.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter, init_he
from segdesk.nn.spec import ModelSpec, deviations_of

#: How often the map is halved on the way down.
LEVELS = 4
STRIDE: int = 2**LEVELS
#: Pixels that a block's two 3x3 convolutions cut off along a side.
BLOCK_LOSS = 4
#: Pixels lost along a side of the image. A block at 1/n of its size costs n times as much:
#: 1 + 2 + 4 + 8 times on the way down, 16 times at the bottom, 8 + 4 + 2 + 1 times on the way up.
LOSS = BLOCK_LOSS * ((STRIDE - 1) + STRIDE + (STRIDE - 1))
#: The smallest side of which every block leaves something, and every pooling gets even numbers.
SMALLEST = LOSS + BLOCK_LOSS


class ValidBlock(nn.Sequential):
    """Twice: 3x3 convolution without padding, ReLU."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
        )


class Encoder(nn.Module):
    """Contracting path: a block, then four times 2x2 max pooling and a block."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS + 1)]
        # At the end of the contracting path only: its last two blocks.
        rates = [0.0] * (LEVELS - 1) + [dropout, dropout]
        self.blocks = nn.ModuleList(
            ValidBlock(i, o, rate)
            for i, o, rate in zip([inputs, *widths[:-1]], widths, rates, strict=True)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features, finest first; for 572 pixels 568, 280, 136, 64 and 28."""
        features = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            features.append(block(self.pool(features[-1])))
        return features


class Decoder(nn.Module):
    """Expanding path: four times 2x2 up-convolution, crop and concatenate, and a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS, -1, -1)]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairwise(widths))
        self.blocks = nn.ModuleList(ValidBlock(2 * o, o) for o in widths[1:])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return (N, width, h, w), the middle of the image."""
        x = features[-1]
        for up, block, skip in zip(self.ups, self.blocks, reversed(features[:-1]), strict=True):
            x = up(x)
            x = block(torch.cat((crop_middle(skip, x), x), 1))
        return x


def crop_middle(x: Tensor, like: Tensor) -> Tensor:
    """Cut the middle out of ``x``, as high and wide as ``like``."""
    height, width = like.shape[-2:]
    top = (x.shape[-2] - height) // 2
    left = (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def nearest_valid(side: int) -> int:
    """Return the nearest number of pixels that a side may have; of two, the larger."""
    steps = (side - SMALLEST + STRIDE // 2) // STRIDE
    return SMALLEST + STRIDE * max(0, steps)


def next_valid(side: int) -> int:
    """Return the least number of pixels from ``side`` on that a side may have."""
    steps = -(-(side - SMALLEST) // STRIDE)
    return SMALLEST + STRIDE * max(0, steps)


def mirror(x: Tensor) -> Tensor:
    """Extend an image by its mirror image, so that its valid result covers it.

    The border pixel itself is not repeated. An image smaller than the border is
    mirrored again and again, like a room between two mirrors.

    Parameters
    ----------
    x
        Shape (N, C, H, W), of any size.

    Returns
    -------
    Tensor
        Shape (N, C, H', W'), valid sizes. The image begins ``LOSS // 2`` pixels from
        the upper and the left border.
    """
    for axis in (-2, -1):
        length = x.shape[axis]
        total = next_valid(length + LOSS)
        # There and back again: so many pixels on, the row repeats.
        period = max(1, 2 * (length - 1))
        place = (torch.arange(total, device=x.device) - LOSS // 2) % period
        x = x.index_select(axis, torch.minimum(place, period - place))
    return x


class UNet2015(Segmenter):
    """U-Net with unpadded convolutions.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    width
        Channels of the first level; doubled at each of the four below.
    dropout
        Rate at the end of the contracting path.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - Each crop it learns from is mirrored at its own borders (the paper mirrors at the
      borders of the whole image only; so does prediction).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        width: int = 64,
        dropout: float = 0.5,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        super().__init__(Encoder(in_channels, width, dropout), Decoder(width), Head(config, width))
        init_he(self)  # std sqrt(2/N), section 3 of the paper

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps (N, K, H, W) for images (N, C, H, W), mirrored at the borders."""
        height, width = x.shape[-2:]
        return self.valid(mirror(x))[..., :height, :width]

    def valid(self, x: Tensor) -> Tensor:
        """Return class maps of the middle of an image, without mirroring it.

        Parameters
        ----------
        x
            Shape (N, C, H, W); sides are 188, 204, 220, ... pixels: 16 n + 12, from 188 on.

        Returns
        -------
        Tensor
            Class maps (N, K, H - 184, W - 184). The first pixel is the image's (92, 92).

        Raises
        ------
        ValueError
            A side has another length; the message names the nearest one that fits.
        """
        height, width = x.shape[-2:]
        nearest = nearest_valid(height), nearest_valid(width)
        if (height, width) != nearest:
            raise ValueError(
                f"An image of {height}x{width} pixels does not fit a U-Net without padding: "
                f"sides must be {SMALLEST} pixels or {STRIDE}, {2 * STRIDE}, ... more; the "
                f"nearest size is {nearest[0]}x{nearest[1]}."
            )
        maps: Tensor = self.head(self.decoder(self.encoder(x)))
        return maps


SPEC = ModelSpec(
    name="unet-2015",
    title="U-Net 2015",
    year=2015,
    reference="Ronneberger et al., MICCAI 2015",
    build=UNet2015,
    stride=STRIDE,
    options={"width": 64, "dropout": 0.5, "head": "A", "activation": "none"},
    small={"width": 16, "dropout": 0.1},
    has_dropout=True,
    context=LOSS // 2,
    smallest_valid=BLOCK_LOSS,
    deviations=deviations_of(UNet2015),
)
