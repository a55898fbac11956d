"""SegNet: an encoder that remembers where its maxima were, and a decoder that mirrors it.

Badrinarayanan, Kendall, Cipolla: SegNet: A Deep Convolutional Encoder-Decoder Architecture
for Image Segmentation, PAMI 2017.
"""

from __future__ import annotations

from torch import Tensor, nn

from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter, init_he
from segdesk.nn.spec import ModelSpec, deviations_of
from segdesk.nn.unpooling import SwitchedVgg, UnpoolingDecoder, scaled

#: Channels behind each unpooling, for a first block of 64. The last convolution, to the
#: class maps, is the head.
STAGES = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64,))


def conv_layer(inputs: int, outputs: int) -> nn.Module:
    """Return 3x3 convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def output_layer(channels: int, maps: int) -> nn.Module:
    """Return the 3x3 convolution to the class maps."""
    return nn.Conv2d(channels, maps, 3, padding=1)


class Decoder(UnpoolingDecoder):
    """Five times unpooling and convolutions."""

    def __init__(self, inputs: int, width: int) -> None:
        stages = [[scaled(channels, width) for channels in stage] for stage in STAGES]
        super().__init__(inputs, stages, conv_layer)


class SegNet(Segmenter):
    """SegNet.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    width
        Channels of the first block; 64 in the paper, and up to eight times that below.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - The image is normalised as for all of SegDesk's models (the authors' network begins with
      a local response normalisation).
    """

    encoder: SwitchedVgg

    def __init__(
        self,
        in_channels: int,
        classes: int,
        width: int = 64,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        encoder = SwitchedVgg(in_channels, width)
        super().__init__(
            encoder,
            Decoder(encoder.channels, width),
            Head(config, scaled(STAGES[-1][-1], width), output_layer),
        )
        init_he(self.decoder)
        init_he(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps (N, K, H, W) for images (N, C, H, W)."""
        features, switches = self.encoder(x)
        maps: Tensor = self.head(self.decoder(features, switches))
        return maps


SPEC = ModelSpec(
    name="segnet",
    title="SegNet",
    year=2017,
    reference="Badrinarayanan et al., PAMI 2017",
    build=SegNet,
    stride=32,
    options={"width": 64, "head": "A", "activation": "none"},
    small={"width": 16},
    deviations=deviations_of(SegNet),
)
