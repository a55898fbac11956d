"""DeepLab v1: VGG-16 whose last layers are dilated, so that it keeps an eighth of the size.

Chen, Papandreou, Kokkinos, Murphy, Yuille: Semantic Image Segmentation with Deep
Convolutional Nets and Fully Connected CRFs, ICLR 2015. The CRF is a step of its own in
SegDesk.
"""

from __future__ import annotations

from segdesk.nn.atrous import AlignedSegmenter, DilatedVgg, FullyConnected, init_scores
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import init_he
from segdesk.nn.spec import ModelSpec, deviations_of

STRIDE = 8
#: Of fc6: side of the kernel, dilation, and channels. All three span 25 x 25 values of
#: the map, 224 pixels with what a value stands for; in the paper, DeepLab-LargeFOV,
#: DeepLab-4x4 and DeepLab-7x7.
FIELDS = {"large": (3, 12, 1024), "4x4": (4, 8, 4096), "7x7": (7, 4, 4096)}


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

    Deviations from the paper
    -------------------------
    - The fully connected CRF that refines the mask is a step of its own behind the model.
    - fc6 and fc7 start from random weights (the paper's, from a sample of the classifier's).
    - An image whose sides are not a multiple of 8 pixels plus one is extended by up to 7
      pixels below and on the right, repeating its border, and the mask is cut to the image
      again (the authors train on crops of 321 pixels, which need none of this).
    - The loss is taken on maps enlarged to the image (the authors shrink the labels to an
      eighth instead).
    - No average is taken over 3x3 values behind the last pooling (the authors' published
      network has one, which their paper does not mention).
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
        encoder = DilatedVgg(in_channels, encoder_width)
        super().__init__(
            encoder,
            FullyConnected(encoder.channels, width, rate, dropout, size=size),
            Head(config, width),
            grid=STRIDE,
        )
        init_he(self.decoder)
        init_scores(self.head)


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
    deviations=deviations_of(DeepLabV1),
)
