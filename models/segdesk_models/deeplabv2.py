"""DeepLab v2: four dilated classifiers side by side, on ResNet-101 or VGG-16, at three scales.

Chen, Papandreou, Kokkinos, Murphy, Yuille: DeepLab: Semantic Image Segmentation with Deep
Convolutional Nets, Atrous Convolution, and Fully Connected CRFs, PAMI 2018 (arXiv
1606.00915, 2016). The CRF is a step of its own in SegDesk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from segdesk.nn.atrous import (
    AlignedSegmenter,
    DilatedResNet,
    DilatedVgg,
    FullyConnected,
    init_scores,
)
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import init_he, resize
from segdesk.nn.spec import Initialisation, ModelSpec, deviations_of

STRIDE = 8
RATES = (6, 12, 18, 24)
#: Scales at which an image is looked at besides its own.
SCALES = (0.75, 0.5)
VGG = "vgg16"


class DilatedClassifiers(nn.Module):
    """ASPP on ResNet-101: the sum of four dilated 3x3 convolutions to class maps."""

    def __init__(self, channels: int, maps: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, maps, 3, padding=rate, dilation=rate) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, maps, H, W) for (N, channels, H, W)."""
        return torch.stack([conv(x) for conv in self.convs]).sum(0)


class VggDecoder(nn.Module):
    """ASPP on VGG-16: fc6 and fc7 four times, with a dilation of its own each."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.branches = nn.ModuleList(FullyConnected(inputs, width, r, dropout) for r in rates)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map of (N, width, H, W) for each rate."""
        return [branch(x) for branch in self.branches]


class DeepLabV2(AlignedSegmenter):
    """DeepLab v2 with ASPP.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    encoder
        ``vgg16``, or timm's name of a ResNet.
    encoder_width
        Channels of the encoder's first stage; 64 in every published one.
    rates
        Dilations of the classifiers.
    multi_scale
        The image is looked at in half and three quarters of its size, too, and every
        class map is the largest of the three. Each scale's maps learn by themselves, too.
    stride_on_first
        ResNet's second stage takes every second pixel in its first 1x1 convolution, as
        the networks the authors began with; timm's weights were made with the 3x3
        convolution behind it doing so.
    width
        Channels of fc6 and fc7, on VGG-16 only.
    dropout
        Behind fc6 and fc7, on VGG-16 only.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - The fully connected CRF that refines the mask is a step of its own behind the model.
    - An image whose sides are not a multiple of 8 pixels plus one is extended by up to 7
      pixels below and on the right, repeating its border, and the mask is cut to the image
      again (the paper trains on crops of 321 pixels, which need none of this).
    - Smaller copies of the image are rounded to sides of a multiple of 8 pixels plus one.
    - The loss is taken on maps enlarged to the image (the authors' code shrinks the labels to
      an eighth instead).
    - Batch norm learns its statistics (the authors' code keeps those of the classifier it
      starts from).
    """

    head: Head

    def __init__(
        self,
        in_channels: int,
        classes: int,
        encoder: str = "resnet101",
        encoder_width: int = 64,
        rates: Sequence[int] = RATES,
        multi_scale: bool = True,
        stride_on_first: bool = True,
        width: int = 1024,
        dropout: float = 0.5,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        features: nn.Module
        decoder: nn.Module
        if encoder == VGG:
            features = trunk = DilatedVgg(in_channels, encoder_width)
            decoder = VggDecoder(trunk.channels, width, rates, dropout)
            output = Head(config, [width] * len(rates))
        else:
            features = resnet = DilatedResNet(
                encoder, in_channels, (4,), STRIDE, width=encoder_width
            )
            if stride_on_first:
                move_stride(resnet.body.layer2[0])
            # The dilated convolutions are the output layer: there is nothing in front.
            decoder = nn.Identity()
            output = Head(config, resnet.channels, partial(DilatedClassifiers, rates=rates))
        super().__init__(features, decoder, output, grid=STRIDE)
        self._scales = SCALES if multi_scale else ()
        init_he(self.decoder)
        init_scores(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps (N, K, H, W), at every position the largest over the scales."""
        return self._finish(self._fuse(self._scores(x)), x)

    def training_maps(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """Return the fused maps and those of each scale, which count alike."""
        scores = self._scores(x)
        if len(scores) == 1:
            return [(1.0, self._finish(scores[0], x))]
        return [(1.0, self._finish(maps, x)) for maps in (self._fuse(scores), *scores)]

    def _scores(self, x: Tensor) -> list[Tensor]:
        """Return each scale's maps at stride 8, without the head's activation."""
        image = self.extend(x)
        scores = [self._score(image)]
        for scale in self._scales:
            scaled = self._score(shrink(image, scale))
            scores.append(resize(scaled, scores[0], align_corners=True))
        return scores

    def _score(self, image: Tensor) -> Tensor:
        features = self.decoder(self.encoder(image))
        return self.head.fuse(self.head.scores(features))

    def _fuse(self, scores: list[Tensor]) -> Tensor:
        return torch.stack(scores).amax(0)

    def _finish(self, scores: Tensor, image: Tensor) -> Tensor:
        return self.enlarge(self.head.activation(scores), image)


def move_stride(block: nn.Module) -> None:
    """Let a residual block's first convolution take every second pixel, not the second."""
    first, second = block.get_submodule("conv1"), block.get_submodule("conv2")
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    first.stride, second.stride = (2, 2), (1, 1)


def shrink(image: Tensor, scale: float) -> Tensor:
    """Scale an image whose sides are 8 k + 1 pixels; the sides stay of that form."""
    height, width = (
        STRIDE * max(1, round((side - 1) / STRIDE * scale)) + 1 for side in image.shape[-2:]
    )
    return resize(image, image.new_empty(1, 1, height, width), align_corners=True)


SPEC = ModelSpec(
    name="deeplab-v2",
    title="DeepLab v2",
    year=2016,
    reference="Chen et al., PAMI 2018 (arXiv 1606.00915)",
    build=DeepLabV2,
    stride=1,
    min_size=32,
    options={
        "encoder": "resnet101",
        "encoder_width": 64,
        "rates": list(RATES),
        "multi_scale": True,
        "stride_on_first": True,
        "width": 1024,
        "dropout": 0.5,
        "head": "A",
        "activation": "none",
    },
    small={"encoder": "resnet18", "encoder_width": 32, "multi_scale": False},
    initialisation=Initialisation.NORMAL_001,
    deviations=deviations_of(DeepLabV2),
)
