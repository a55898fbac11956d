"""DeepLab v3+: DeepLab v3 with a decoder that adds the features of an early stage.

Chen, Zhu, Papandreou, Schroff, Adam: Encoder-Decoder with Atrous Separable Convolution
for Semantic Image Segmentation, ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdesk.nn.atrous import ASPP, AlignedSegmenter, DilatedResNet, conv_norm
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import init_he, resize
from segdesk.nn.spec import ModelSpec, deviations_of

#: The stride for which the dilations of the pyramid are given.
REFERENCE_STRIDE = 16


class Decoder(nn.Module):
    """Pyramid, enlarged and joined with the first stage's features; 3x3 convolutions.

    Parameters
    ----------
    channels
        Of the first and the fourth stage.
    width
        Channels of the pyramid and of what comes out.
    low_width
        Channels to which the first stage's are reduced before joining.
    rates
        Dilations of the pyramid.
    convolutions
        Number of 3x3 convolutions behind the join.
    refine
        Add a 3x3 convolution behind the pyramid.
    separable
        The 3x3 convolutions are split, see :func:`segdesk.nn.atrous.conv_norm`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        low_width: int,
        rates: Sequence[int],
        dropout: float,
        convolutions: int,
        refine: bool,
        separable: bool,
        align_corners: bool,
    ) -> None:
        super().__init__()
        first, fourth = channels
        self.aspp = ASPP(fourth, width, rates, dropout, separable=separable)
        self.refine = conv_norm(width, width, 3, separable=separable) if refine else nn.Identity()
        self.low = conv_norm(first, low_width, 1)
        inputs = [width + low_width] + [width] * (convolutions - 1)
        self.fuse = nn.Sequential(*(conv_norm(i, width, 3, separable=separable) for i in inputs))
        self._align_corners = align_corners

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (N, width, H/4, W/4) for the maps of the first and the fourth stage."""
        early, late = features
        low = self.low(early)
        pyramid = resize(self.refine(self.aspp(late)), low, align_corners=self._align_corners)
        result: Tensor = self.fuse(torch.cat((pyramid, low), 1))
        return result


class DeepLabV3Plus(AlignedSegmenter):
    """DeepLab v3+ on a ResNet.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    encoder
        timm's name of a ResNet.
    encoder_width
        Channels of the encoder's first stage; 64 in every published one.
    output_stride
        Stride of the encoder's last features, 16 or 8.
    multi_grid
        Factors of the dilation in the blocks of the last stage; None are ones.
    rates
        Dilations of the pyramid at stride 16; doubled at 8.
    width
        Channels of the pyramid and of the decoder.
    low_width
        Channels to which the first stage's are reduced before joining.
    dropout
        Behind the pyramid.
    convolutions
        Number of 3x3 convolutions behind the join; 2 are the paper's best.
    refine
        A 3x3 convolution behind the pyramid; the paper has none.
    separable
        The 3x3 convolutions of pyramid and decoder are split into one per channel and
        a 1x1 across the channels. With ``refine``, one convolution and pyramid rates 12,
        24, 36 this is the network of segmentation_models.pytorch.
    align_corners
        See :class:`segdesk.nn.atrous.AlignedSegmenter`.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - The encoder is ResNet-101 with whole 3x3 convolutions behind it, one of the paper's
      variants (its best result has an Xception-65 and separable convolutions).
    - An image whose sides are not a multiple of 16 pixels plus one is extended by up to 15
      pixels below and on the right, repeating its border, and the mask is cut to the image
      again (the paper trains on crops of 513 pixels, which need none of this).
    - Where batch norm would see one value per channel only (one image in the batch, averaged
      to one pixel), it uses its running statistics (the paper trains on 16 images at once).
    - A tenth of the features behind the pyramid is dropped while learning, as in the authors'
      code (the paper does not say).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        encoder: str = "resnet101",
        encoder_width: int = 64,
        output_stride: int = 16,
        multi_grid: Sequence[int] | None = (1, 2, 4),
        rates: Sequence[int] = (6, 12, 18),
        width: int = 256,
        low_width: int = 48,
        dropout: float = 0.1,
        convolutions: int = 2,
        refine: bool = False,
        separable: bool = False,
        align_corners: bool = True,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        resnet = DilatedResNet(
            encoder, in_channels, (1, 4), output_stride, width=encoder_width, multi_grid=multi_grid
        )
        dilations = [rate * REFERENCE_STRIDE // output_stride for rate in rates]
        decoder = Decoder(
            resnet.channels, width, low_width, dilations, dropout,
            convolutions, refine, separable, align_corners,
        )  # fmt: skip
        super().__init__(
            resnet, decoder, Head(config, width), grid=output_stride, align_corners=align_corners
        )
        init_he(self.decoder)
        init_he(self.head)


SPEC = ModelSpec(
    name="deeplab-v3plus",
    title="DeepLab v3+",
    year=2018,
    reference="Chen et al., ECCV 2018",
    build=DeepLabV3Plus,
    stride=1,
    min_size=32,
    options={
        "encoder": "resnet101",
        "encoder_width": 64,
        "output_stride": 16,
        "multi_grid": [1, 2, 4],
        "rates": [6, 12, 18],
        "width": 256,
        "low_width": 48,
        "dropout": 0.1,
        "convolutions": 2,
        "refine": False,
        "separable": False,
        "align_corners": True,
        "head": "A",
        "activation": "none",
    },
    small={
        "encoder": "resnet18",
        "encoder_width": 32,
        "multi_grid": [1, 2],
        "width": 64,
        "low_width": 24,
    },
    has_dropout=True,
    deviations=deviations_of(DeepLabV3Plus),
)
