"""DeconvNet: VGG-16 with its fully connected layers, and its mirror image behind it.

Noh, Hong, Han: Learning Deconvolution Network for Semantic Segmentation, ICCV 2015.

The mirrored half puts values back where the poolings found them and fills the gaps with
transposed convolutions. It needs 224 pixels, of which fc6 sees all; of larger images it
sees every window of 224. The CRF is a step of its own in SegDesk.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.norms import PooledNorm
from segdesk.nn.segmenter import Segmenter, init_he
from segdesk.nn.spec import ModelSpec, deviations_of
from segdesk.nn.unpooling import SwitchedVgg, UnpoolingDecoder, scaled

#: Channels behind each unpooling, for a first block of 64.
STAGES = ((512, 512, 512), (512, 512, 256), (256, 256, 128), (128, 64), (64, 64))
#: Side of the map that fc6 makes one vector of.
WINDOW = 7


class VggBody(SwitchedVgg):
    """VGG-16 with fc6 and fc7 as convolutions, under timm's names.

    Parameters
    ----------
    hidden
        Channels of fc6 and fc7.
    """

    def __init__(self, in_channels: int, width: int, hidden: int) -> None:
        super().__init__(in_channels, width)
        self.pre_logits = nn.ModuleDict(
            {"fc1": nn.Conv2d(self.channels, hidden, WINDOW), "fc2": nn.Conv2d(hidden, hidden, 1)}
        )


class Encoder(nn.Module):
    """VGG-16 with batch norm behind every layer.

    The classifier has none behind fc6 and fc7. These two norms are therefore no part of
    ``body``, into which a classifier's weights go.
    """

    def __init__(self, in_channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.timm_name = VggBody.timm_name
        self.body = VggBody(in_channels, width, hidden)
        self.channels = hidden
        # From 224 pixels on fc6 makes a single pixel.
        self.norms = nn.ModuleList(PooledNorm(hidden) for _ in range(2))
        init_he(self.body.pre_logits)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return fc7, shape (N, hidden, H/32 - 6, W/32 - 6), and the poolings' switches."""
        x, switches = self.body(x)
        for layer, norm in zip(self.body.pre_logits.values(), self.norms, strict=True):
            x = F.relu(norm(layer(x)))
        return x, switches


def deconv_layer(inputs: int, outputs: int, size: int = 3, padding: int = 1) -> nn.Module:
    """Return transposed convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, size, padding=padding),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Decoder(UnpoolingDecoder):
    """fc6 backwards, then five times unpooling and transposed convolutions."""

    def __init__(self, inputs: int, bottom: int, width: int) -> None:
        stages = [[scaled(channels, width) for channels in stage] for stage in STAGES]
        super().__init__(bottom, stages, deconv_layer)
        self.fc6 = deconv_layer(inputs, bottom, WINDOW, padding=0)

    def forward(self, x: Tensor, switches: Any) -> Tensor:
        """Return (N, width, H, W)."""
        return super().forward(self.fc6(x), switches)


class DeconvNet(Segmenter):
    """DeconvNet.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    width
        Channels of the first block; 64 in the paper, and up to eight times that below.
    hidden
        Channels of fc6 and fc7, the fully connected layers.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - It sees the whole image, or tiles of it, and learns from crops in one stage (the paper
      cuts out what may be an object, 224x224 pixels each, learns from crops with one object
      in the middle first, and joins the masks of all of them).
    - The mask is this network's alone: the paper's best results average it with that of an
      FCN-8s and refine it with a fully connected CRF, which is a step of its own here.
    - Where batch norm would see one value per channel only (one image in the batch, one pixel
      in the middle), it uses its running statistics (the paper trains on 64 images at once).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        width: int = 64,
        hidden: int = 4096,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        encoder = Encoder(in_channels, width, hidden)
        super().__init__(
            encoder,
            Decoder(hidden, encoder.body.channels, width),
            Head(config, scaled(STAGES[-1][-1], width)),
        )
        for layer in self.decoder.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                # Backwards, a layer's inputs are what torch calls its outputs.
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        init_he(self.head)

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps (N, K, H, W) for images (N, C, H, W) of at least 224 pixels."""
        features, switches = self.encoder(x)
        maps: Tensor = self.head(self.decoder(features, switches))
        return maps


SPEC = ModelSpec(
    name="deconvnet",
    title="DeconvNet",
    year=2015,
    reference="Noh et al., ICCV 2015",
    build=DeconvNet,
    stride=32,
    min_size=224,
    options={"width": 64, "hidden": 4096, "head": "A", "activation": "none"},
    small={"width": 8, "hidden": 128},
    deviations=deviations_of(DeconvNet),
)
