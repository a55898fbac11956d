"""U-Net with padded convolutions and batch norm.

Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image
Segmentation, MICCAI 2015.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter, init_he
from segdesk.nn.spec import ModelSpec, deviations_of

LEVELS = 4


class ConvBlock(nn.Sequential):
    """Twice: 3x3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
        )


class Encoder(nn.Module):
    """Contracting path: a block, then four times 2x2 max pooling and a block."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS + 1)]
        # The paper has dropout at the end of the contracting path only.
        rates = [0.0] * (LEVELS - 1) + [dropout, dropout]
        self.blocks = nn.ModuleList(
            ConvBlock(i, o, rate)
            for i, o, rate in zip([inputs, *widths[:-1]], widths, rates, strict=True)
        )
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps from full size down to 1/16."""
        features = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            features.append(block(self.pool(features[-1])))
        return features


class Decoder(nn.Module):
    """Expanding path: four times 2x2 up-convolution, concatenation and a block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(LEVELS, -1, -1)]
        self.ups = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in pairwise(widths))
        self.blocks = nn.ModuleList(ConvBlock(2 * o, o) for o in widths[1:])

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the feature map at full size; takes the others out of the list.

        The largest maps come last: those of the levels before need not be there then.
        """
        x = features.pop()
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = torch.cat((features.pop(), up(x)), 1)
            x = block(x)
        return x


class UNet(Segmenter):
    """Padded batch-norm U-Net.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    width
        Channels of the first level; doubled at each of the four below.
    dropout
        Rate at the end of the contracting path, as in the paper.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - Convolutions are padded, so that the mask has the size of the image (the paper: 572 to
      388 pixels).
    - Batch norm behind every 3x3 convolution (the paper has none).
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


SPEC = ModelSpec(
    name="unet",
    title="U-Net, padded",
    year=2015,
    reference="Ronneberger et al., MICCAI 2015",
    build=UNet,
    stride=16,
    options={"width": 64, "dropout": 0.5, "head": "A", "activation": "none"},
    small={"width": 16, "dropout": 0.1},
    has_dropout=True,
    deviations=deviations_of(UNet),
)
