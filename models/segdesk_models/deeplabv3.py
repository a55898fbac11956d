"""DeepLab v3: a dilated ResNet and atrous spatial pyramid pooling with batch norm.

Chen, Papandreou, Schroff, Adam: Rethinking Atrous Convolution for Semantic Image
Segmentation, arXiv 1706.05587, 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segdesk.nn.atrous import ASPP, AlignedSegmenter, AuxiliaryHead, DilatedResNet, conv_norm
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import init_he
from segdesk.nn.spec import ModelSpec, deviations_of

#: The stride for which the dilations of the pyramid are given.
REFERENCE_STRIDE = 16
#: torchvision's training program has it; the paper has no auxiliary maps.
AUXILIARY_WEIGHT = 0.5


class Decoder(nn.Module):
    """Atrous spatial pyramid pooling; auxiliary class maps aside.

    Parameters
    ----------
    channels
        Of the encoder's maps; the last goes into the pyramid, the first into the
        auxiliary maps.
    width
        Channels that come out.
    refine
        Add a 3x3 convolution.
    auxiliary
        Class maps to make of the third stage; 0 makes none.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        rates: Sequence[int],
        dropout: float,
        refine: bool,
        auxiliary: int,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(channels[-1], width, rates, dropout)
        self.refine = conv_norm(width, width, 3) if refine else nn.Identity()
        self.auxiliary = AuxiliaryHead(channels[0], auxiliary) if auxiliary else None

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (N, width, H/s, W/s) for the maps of the third and the fourth stage."""
        result: Tensor = self.refine(self.aspp(features[-1]))
        return result


class DeepLabV3(AlignedSegmenter):
    """DeepLab v3.

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
        Stride of the features, 16 or 8.
    multi_grid
        Factors of the dilation in the blocks of the last stage; None are ones.
    dilate_first
        The first block of a dilated stage is dilated, too; torchvision's is not.
    rates
        Dilations of the pyramid at stride 16; doubled at 8, as in the paper.
    width
        Channels of the pyramid's branches and of what comes out of it.
    dropout
        Behind the pyramid.
    refine
        A 3x3 convolution behind the pyramid, which torchvision added.
    auxiliary
        Learn from the third stage, too, with a weight of 0.5, as torchvision.
    align_corners
        See :class:`segdesk.nn.atrous.AlignedSegmenter`.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
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
        dilate_first: bool = True,
        rates: Sequence[int] = (6, 12, 18),
        width: int = 256,
        dropout: float = 0.1,
        refine: bool = False,
        auxiliary: bool = False,
        align_corners: bool = True,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        resnet = DilatedResNet(
            encoder, in_channels, (3, 4), output_stride,
            width=encoder_width, multi_grid=multi_grid, dilate_first=dilate_first,
        )  # fmt: skip
        dilations = [rate * REFERENCE_STRIDE // output_stride for rate in rates]
        extra = classes if auxiliary else 0
        super().__init__(
            resnet,
            Decoder(resnet.channels, width, dilations, dropout, refine, extra),
            Head(config, width),
            grid=output_stride,
            align_corners=align_corners,
            auxiliary=AUXILIARY_WEIGHT,
        )
        init_he(self.decoder)
        init_he(self.head)


SPEC = ModelSpec(
    name="deeplab-v3",
    title="DeepLab v3",
    year=2017,
    reference="Chen et al., arXiv 1706.05587",
    build=DeepLabV3,
    stride=1,
    min_size=32,
    options={
        "encoder": "resnet101",
        "encoder_width": 64,
        "output_stride": 16,
        "multi_grid": [1, 2, 4],
        "dilate_first": True,
        "rates": [6, 12, 18],
        "width": 256,
        "dropout": 0.1,
        "refine": False,
        "auxiliary": False,
        "align_corners": True,
        "head": "A",
        "activation": "none",
    },
    small={"encoder": "resnet18", "encoder_width": 32, "multi_grid": [1, 2], "width": 64},
    has_dropout=True,
    deviations=deviations_of(DeepLabV3),
)
