"""SETR: a vision transformer as encoder, and three decoders of rising effort.

Zheng et al.: Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with
Transformers, CVPR 2021.

The transformer works at 1/16 of the image's size from the first layer to the last.
SETR-Naive classifies its patches and enlarges the result, SETR-PUP enlarges it in four
steps with convolutions between, SETR-MLA joins what four of its layers found.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.encoders import TimmEncoder
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter, init_he
from segdesk.nn.spec import ModelSpec, deviations_of

#: Sizes of the transformer; timm has each as ``vit_<size>_patch16_384``.
ENCODERS = ("tiny", "small", "base", "large")
#: Layers of the large one, in which the paper counts.
PAPER_DEPTH = 24
#: How much each auxiliary output counts in training.
AUXILIARY_WEIGHT = 0.4


class PatchNorm(nn.LayerNorm):
    """Layer norm over the channels of each patch of (N, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int, *, bias: bool) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=bias),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Decoder(nn.Module):
    """Base of the decoders.

    Parameters
    ----------
    channels
        Of the transformer.
    width
        Of the decoder.
    classes
        Class maps of each auxiliary output.
    auxiliary
        Have auxiliary outputs.

    Attributes
    ----------
    channels
        Of the features it returns.
    """

    #: Layers whose features it uses, as the paper counts them: from 1 to 24.
    LAYERS: tuple[int, ...] = (24,)
    #: Layers whose features have an auxiliary output.
    AUXILIARY_LAYERS: tuple[int, ...] = ()

    def __init__(self, channels: int, width: int, classes: int, *, auxiliary: bool) -> None:
        super().__init__()
        self.channels = width
        outputs = self.auxiliary_outputs(channels, width, classes) if auxiliary else []
        self.auxiliary = nn.ModuleList(outputs)

    def auxiliary_outputs(self, channels: int, width: int, classes: int) -> list[nn.Module]:
        """Return what makes class maps of the features of AUXILIARY_LAYERS."""
        raise NotImplementedError

    @staticmethod
    def output(channels: int, maps: int) -> nn.Module:
        """Return the output layer of the head."""
        return nn.Conv2d(channels, maps, 1)

    def with_auxiliary(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the features for the head, and the auxiliary outputs' class maps."""
        # The auxiliary layers come first in the features; see SETR.
        pairs = zip(self.auxiliary, features, strict=False)
        return self(features), [output(feature) for output, feature in pairs]


class NaiveDecoder(Decoder):
    """Layer norm, 1x1 convolution, batch norm and ReLU, at 1/16."""

    AUXILIARY_LAYERS = (10, 15, 20)

    def __init__(self, channels: int, width: int, classes: int, *, auxiliary: bool) -> None:
        super().__init__(channels, width, classes, auxiliary=auxiliary)
        self.norm = PatchNorm(channels)
        self.block = ConvBlock(channels, width, 1, bias=True)

    def auxiliary_outputs(self, channels: int, width: int, classes: int) -> list[nn.Module]:
        """Return one like the decoder with its head for each layer."""
        return [
            nn.Sequential(
                PatchNorm(channels),
                ConvBlock(channels, width, 1, bias=True),
                nn.Conv2d(width, classes, 1),
            )
            for _ in self.AUXILIARY_LAYERS
        ]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (N, width, H/16, W/16)."""
        x: Tensor = self.block(self.norm(features[-1]))
        return x


class ProgressiveDecoder(Decoder):
    """Progressive upsampling: 3x3 convolutions with bilinear steps of two between.

    Three of the four steps are here; the fourth enlarges the class maps.
    """

    AUXILIARY_LAYERS = (10, 15, 20, 24)

    def __init__(self, channels: int, width: int, classes: int, *, auxiliary: bool) -> None:
        super().__init__(channels, width, classes, auxiliary=auxiliary)
        self.norm = PatchNorm(channels)
        self.blocks = nn.ModuleList(
            ConvBlock(inputs, width, 3, bias=True) for inputs in (channels, width, width, width)
        )

    def auxiliary_outputs(self, channels: int, width: int, classes: int) -> list[nn.Module]:
        """Return one for each layer, with a single step of four."""
        return [
            nn.Sequential(
                PatchNorm(channels),
                ConvBlock(channels, width, 3, bias=True),
                nn.Upsample(scale_factor=4, mode="bilinear"),
                nn.Conv2d(width, classes, 1),
            )
            for _ in self.AUXILIARY_LAYERS
        ]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (N, width, H/2, W/2)."""
        x: Tensor = self.blocks[0](self.norm(features[-1]))
        for block in self.blocks[1:]:
            x = block(F.interpolate(x, scale_factor=2, mode="bilinear"))
        return x


class MultiLevelDecoder(Decoder):
    """Multi-level aggregation: a stream for each of four layers, joined top-down.

    Every stream adds the sum of the deeper ones to its own features. All have their own
    convolutions and are concatenated at 1/4.
    """

    LAYERS = (6, 12, 18, 24)

    def __init__(self, channels: int, width: int, classes: int, *, auxiliary: bool) -> None:
        super().__init__(channels, width, classes, auxiliary=auxiliary)
        half = width // 2
        self.channels = len(self.LAYERS) * half
        self.norms = nn.ModuleList(PatchNorm(channels) for _ in self.LAYERS)
        self.reductions = nn.ModuleList(
            ConvBlock(channels, width, 1, bias=False) for _ in self.LAYERS
        )
        self.sums = nn.ModuleList(ConvBlock(width, width, 3, bias=False) for _ in self.LAYERS)
        self.streams = nn.ModuleList(
            nn.Sequential(
                ConvBlock(width, half, 3, bias=False),
                ConvBlock(half, half, 3, bias=False),
                nn.Upsample(scale_factor=4, mode="bilinear", align_corners=True),
            )
            for _ in self.LAYERS
        )

    def auxiliary_outputs(self, channels: int, width: int, classes: int) -> list[nn.Module]:
        """Return a 1x1 convolution for each stream."""
        return [nn.Conv2d(width, classes, 1, bias=False) for _ in self.LAYERS]

    @staticmethod
    def output(channels: int, maps: int) -> nn.Module:
        """Return the output layer of the head, a 3x3 convolution."""
        return nn.Conv2d(channels, maps, 3, padding=1)

    def aggregate(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return (N, width, H/16, W/16) for each layer, the first one first."""
        reduced = [
            reduce(norm(feature))
            for reduce, norm, feature in zip(self.reductions, self.norms, features, strict=True)
        ]
        # From the last layer to the first, each with all behind it.
        total = reduced[-1]
        totals = [total]
        for feature in reversed(reduced[:-1]):
            total = total + feature
            totals.append(total)
        return [block(total) for block, total in zip(self.sums, reversed(totals), strict=True)]

    def join(self, levels: Sequence[Tensor]) -> Tensor:
        """Return (N, 2 width, H/4, W/4)."""
        return torch.cat(
            [stream(level) for stream, level in zip(self.streams, levels, strict=True)], 1
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return (N, 2 width, H/4, W/4)."""
        return self.join(self.aggregate(features))

    def with_auxiliary(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the features for the head, and class maps of the aggregated ones."""
        levels = self.aggregate(features)
        pairs = zip(self.auxiliary, levels, strict=False)
        return self.join(levels), [output(level) for output, level in pairs]


class SETR(Segmenter):
    """Base of the three.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    encoder
        Size of the transformer, one of :data:`ENCODERS`.
    depth
        Its layers; None: as many as that size has. With another number than the
        paper's 24, layers are taken at the same share of the depth.
    width
        Channels of the decoder.
    image_size
        Side in pixels of the images the position embeddings are for. For others they
        are interpolated.
    auxiliary
        Have auxiliary outputs, which learn too.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - The transformer keeps the class token of the classifier it comes from: patches attend to
      it, and it is left out of the result (the paper has none).
    - An image of another size than the position embeddings were learned for is taken whole,
      with the embeddings interpolated (the paper: in windows of that size).
    """

    DECODER: type[Decoder]
    decoder: Decoder

    def __init__(
        self,
        in_channels: int,
        classes: int,
        encoder: str = "large",
        depth: int | None = None,
        width: int = 256,
        image_size: int = 512,
        auxiliary: bool = True,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        if encoder not in ENCODERS:
            raise ValueError(f"encoder is one of {', '.join(ENCODERS)}, not {encoder!r}")
        layers = depth or (PAPER_DEPTH if encoder == "large" else 12)
        if layers < 4:
            raise ValueError(f"SETR uses four layers of the transformer; depth is {layers}")
        wanted = {*self.DECODER.LAYERS, *(self.DECODER.AUXILIARY_LAYERS if auxiliary else ())}
        transformer = TimmEncoder(
            f"vit_{encoder}_patch16_384",
            in_channels,
            [layer * layers // PAPER_DEPTH - 1 for layer in sorted(wanted)],
            depth=layers,
            img_size=image_size,
            dynamic_img_size=True,
            final_norm=False,
        )
        decoder = self.DECODER(transformer.channels[-1], width, classes, auxiliary=auxiliary)
        config = HeadConfig.of(classes, head, activation)
        super().__init__(transformer, decoder, Head(config, decoder.channels, decoder.output))
        init_he(self.decoder)
        init_he(self.head)

    def training_maps(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """Return the class maps and those of the auxiliary outputs, at the image's size."""
        features, auxiliary = self.decoder.with_auxiliary(self.encoder(x))
        return [
            (1.0, self.enlarge(self.head(features), x)),
            *((AUXILIARY_WEIGHT, self.enlarge(maps, x)) for maps in auxiliary),
        ]


class SETRNaive(SETR):
    """SETR with the naive decoder."""

    DECODER = NaiveDecoder


class SETRPUP(SETR):
    """SETR with progressive upsampling."""

    DECODER = ProgressiveDecoder


class SETRMLA(SETR):
    """SETR with multi-level aggregation."""

    DECODER = MultiLevelDecoder


def _spec(build: type[SETR], name: str, title: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        title=title,
        year=2021,
        reference="Zheng et al., CVPR 2021",
        build=build,
        stride=16,
        # A single patch leaves batch norm nothing to average over.
        min_size=32,
        options={
            "encoder": "large",
            "depth": None,
            "width": 256,
            "image_size": 512,
            "auxiliary": True,
            "head": "A",
            "activation": "none",
        },
        small={"encoder": "tiny", "depth": 4, "width": 64, "image_size": 224},
        deviations=deviations_of(build),
    )


SPECS = (
    _spec(SETRNaive, "setr-naive", "SETR, naive decoder"),
    _spec(SETRPUP, "setr-pup", "SETR, progressive upsampling"),
    _spec(SETRMLA, "setr-mla", "SETR, multi-level aggregation"),
)
