"""PSPNet: a dilated ResNet and a pyramid of means over 1, 4, 9 and 36 regions.

Zhao, Shi, Qi, Wang, Jia: Pyramid Scene Parsing Network, CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdesk.nn.atrous import AlignedSegmenter, AuxiliaryHead, DilatedResNet, RegionMeans, conv_norm
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import init_he
from segdesk.nn.spec import ModelSpec, deviations_of

STRIDE = 8
AUXILIARY_WEIGHT = 0.4


class PyramidPooling(nn.Module):
    """The features, and beside them their means over ever smaller regions.

    Parameters
    ----------
    inputs
        Channels that go in; twice as many come out.
    bins
        Regions along each side, a level each. The levels share ``inputs`` channels.
    """

    def __init__(self, inputs: int, bins: Sequence[int]) -> None:
        super().__init__()
        width = inputs // len(bins)
        self.levels = nn.ModuleList(RegionMeans(inputs, width, number) for number in bins)
        self.channels = inputs + len(bins) * width

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, H, W) for (N, inputs, H, W)."""
        return torch.cat([x, *(level(x) for level in self.levels)], 1)


class Decoder(nn.Module):
    """Pyramid pooling and a 3x3 convolution; auxiliary class maps aside.

    Parameters
    ----------
    channels
        Of the third and the fourth stage.
    width
        Channels that come out.
    auxiliary
        Class maps to make of the third stage; 0 makes none.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        bins: Sequence[int],
        dropout: float,
        auxiliary: int,
    ) -> None:
        super().__init__()
        third, fourth = channels
        self.pyramid = PyramidPooling(fourth, bins)
        self.fuse = conv_norm(self.pyramid.channels, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.auxiliary = AuxiliaryHead(third, auxiliary, dropout) if auxiliary else None

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (N, width, H/8, W/8) for the maps of the third and the fourth stage."""
        result: Tensor = self.dropout(self.fuse(self.pyramid(features[-1])))
        return result


class PSPNet(AlignedSegmenter):
    """Pyramid scene parsing network.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    encoder
        timm's name of a ResNet: ``resnet50s`` or ``resnet101s``, with a stem of three 3x3
        convolutions (64, 64, 128 channels), as the authors'; ``resnet50`` with one of 7x7.
    encoder_width
        Channels of the encoder's first stage; 64 in every published one.
    width
        Channels in front of the head.
    bins
        Regions along each side, for each level of the pyramid.
    dropout
        Share of channels dropped in front of the head.
    auxiliary
        Learn from the third stage, too, with a weight of 0.4.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - An image whose sides are not a multiple of 8 pixels plus one is extended by up to 7
      pixels below and on the right, repeating its border, and the mask is cut to the image
      again (the authors' code trains on crops of 473 pixels, which need none of this).
    - Where batch norm would see one value per channel only (one image in the batch, averaged
      to one pixel), it uses its running statistics (the paper trains on 16 images at once).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        encoder: str = "resnet101s",
        encoder_width: int = 64,
        width: int = 512,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary: bool = True,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        resnet = DilatedResNet(encoder, in_channels, (3, 4), STRIDE, width=encoder_width)
        extra = classes if auxiliary else 0
        decoder = Decoder(resnet.channels, width, bins, dropout, extra)
        super().__init__(
            resnet, decoder, Head(config, width), grid=STRIDE, auxiliary=AUXILIARY_WEIGHT
        )
        init_he(self.decoder)
        init_he(self.head)


SPEC = ModelSpec(
    name="pspnet",
    title="PSPNet",
    year=2017,
    reference="Zhao et al., CVPR 2017",
    build=PSPNet,
    stride=1,
    min_size=32,
    options={
        "encoder": "resnet101s",
        "encoder_width": 64,
        "width": 512,
        "bins": [1, 2, 3, 6],
        "dropout": 0.1,
        "auxiliary": True,
        "head": "A",
        "activation": "none",
    },
    small={"encoder": "resnet18", "encoder_width": 32, "width": 64},
    has_dropout=True,
    deviations=deviations_of(PSPNet),
)
