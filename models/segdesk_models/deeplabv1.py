"""DeepLab v1: VGG-16 whose last layers are dilated, so that it keeps an eighth of the size.

Chen, Papandreou, Kokkinos, Murphy, Yuille: Semantic Image Segmentation with Deep
Convolutional Nets and Fully Connected CRFs, ICLR 2015. The CRF is a step of its own in
SegDesk.
"""

from __future__ import annotations

from torch import Tensor, nn

from segdesk.nn.atrous import AlignedSegmenter, dilate
from segdesk.nn.encoders import vgg_trunk
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import init_he
from segdesk.nn.spec import ModelSpec

STRIDE = 8
#: Of fc6: side of the kernel, dilation, and channels. All three span 25 x 25 values of
#: the map, 224 pixels with what a value stands for; in the paper, DeepLab-LargeFOV,
#: DeepLab-4x4 and DeepLab-7x7.
FIELDS = {"large": (3, 12, 1024), "4x4": (4, 8, 4096), "7x7": (7, 4, 4096)}


class Encoder(nn.Module):
    """VGG-16 up to its fifth pooling, at stride 8.

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


class Decoder(nn.Sequential):
    """VGG's fc6 and fc7 as a dilated and a 1x1 convolution."""

    def __init__(self, inputs: int, size: int, rate: int, width: int, dropout: float) -> None:
        super().__init__()
        # An even kernel has no middle: 4x4 reaches as far to the left as to the right, too.
        around = (size - 1) * rate // 2
        self.add_module("fc6", nn.Conv2d(inputs, width, size, padding=around, dilation=rate))
        self.add_module("relu6", nn.ReLU(inplace=True))
        self.add_module("drop6", nn.Dropout(dropout))
        self.add_module("fc7", nn.Conv2d(width, width, 1))
        self.add_module("relu7", nn.ReLU(inplace=True))
        self.add_module("drop7", nn.Dropout(dropout))


class DeepLabV1(AlignedSegmenter):
    """DeepLab v1.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    field_of_view
        Kernel of fc6: ``large`` is 3x3 and dilated by 12; ``4x4``, by 8; ``7x7``, the
        classifier's own, by 4.
    encoder_width
        Channels of the first block; 64 in the paper.
    width
        Channels of fc6 and fc7; None: the paper's, 1024 for ``large`` and 4096 else.
    dropout
        Behind fc6 and fc7.
    head, activation
        See :mod:`segdesk.nn.heads`.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        field_of_view: str = "large",
        encoder_width: int = 64,
        width: int | None = None,
        dropout: float = 0.5,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        if field_of_view not in FIELDS:
            raise ValueError(f"field_of_view is one of {', '.join(FIELDS)}, not {field_of_view!r}")
        size, rate, papers_width = FIELDS[field_of_view]
        width = width or papers_width
        config = HeadConfig.of(classes, head, activation)
        encoder = Encoder(in_channels, encoder_width)
        super().__init__(
            encoder,
            Decoder(encoder.channels, size, rate, width, dropout),
            Head(config, width),
            grid=STRIDE,
        )
        init_he(self.decoder)
        init_scores(self.head)


def init_scores(head: nn.Module) -> None:
    """Draw the output layers from a normal distribution of 0.01; biases are 0."""
    for name, part in head.named_modules():
        if isinstance(part, nn.Conv2d) and "attention" not in name:
            nn.init.normal_(part.weight, std=0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


SPEC = ModelSpec(
    name="deeplab-v1",
    title="DeepLab v1",
    year=2015,
    reference="Chen et al., ICLR 2015",
    build=DeepLabV1,
    stride=1,
    options={
        "field_of_view": "large",
        "encoder_width": 64,
        "width": None,
        "dropout": 0.5,
        "head": "A",
        "activation": "none",
    },
    small={"encoder_width": 16, "width": 256, "dropout": 0.1},
    has_dropout=True,
    deviations=(
        "The fully connected CRF that refines the mask is a step of its own behind the model.",
        "fc6 and fc7 start from random weights (the paper's, from a sample of the classifier's).",
        "An image whose sides are not a multiple of 8 pixels plus one is extended by up to 7 "
        "pixels below and on the right, repeating its border, and the mask is cut to the image "
        "again (the authors train on crops of 321 pixels, which need none of this).",
        "The loss is taken on maps enlarged to the image (the authors shrink the labels to an "
        "eighth instead).",
        "No average is taken over 3x3 values behind the last pooling (the authors' published "
        "network has one, which their paper does not mention).",
    ),
)
