"""FCN: VGG-16 with its fully connected layers as convolutions, scores enlarged and summed.

Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015
(extended by Shelhamer, Long, Darrell, PAMI 2017).

FCN-32s enlarges the scores of the last layer 32 times. FCN-16s first enlarges them twice
and adds scores of the fourth pooling, FCN-8s does that once more with the third. The image
is padded by 100 pixels so that images of any size have a value behind fc6; where each map
begins in the image, and so what is cut off, follows from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.encoders import vgg_trunk
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter, init_he
from segdesk.nn.spec import Initialisation, ModelSpec, deviations_of

#: Side of fc6's kernel, and how far it reaches from its middle.
WINDOW = 7
REACH = WINDOW // 2


class Encoder(nn.Module):
    """VGG-16 with fc6 and fc7 as convolutions.

    Parameters
    ----------
    in_channels
        Channels of the image.
    width
        Channels of the first block; 64 in the paper.
    hidden
        Channels of fc6 and fc7.
    padding
        Of the first convolution, in pixels.
    window_padding
        Of fc6, in values of its map.
    dropout
        Rate behind fc6 and fc7, of whole channels.
    levels
        How many maps to return.

    Attributes
    ----------
    channels
        Of the maps returned.
    """

    #: Whose weights fit, for timm's own download.
    timm_name = "vgg16"

    def __init__(
        self,
        in_channels: int,
        width: int,
        hidden: int,
        padding: int,
        window_padding: int,
        dropout: float,
        levels: int,
    ) -> None:
        super().__init__()
        self.features = vgg_trunk(in_channels, width=width)
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        first.padding = (padding, padding)
        for part in self.features:
            if isinstance(part, nn.MaxPool2d):
                # What does not fill a window is pooled too, or the map would lose the border.
                part.ceil_mode = True
        third, fourth = (max(1, channels * width // 64) for channels in (256, 512))
        self.pre_logits = FullyConnected(fourth, hidden, window_padding, dropout)
        self.channels = [hidden, fourth, third][:levels]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return fc7 and then the fourth and third pooling, as many as there are levels."""
        pooled = []
        for part in self.features:
            x = part(x)
            if isinstance(part, nn.MaxPool2d):
                pooled.append(x)
        return [self.pre_logits(x), pooled[3], pooled[2]][: len(self.channels)]


class FullyConnected(nn.Sequential):
    """VGG's fc6 and fc7 as a 7x7 and a 1x1 convolution, under timm's names."""

    def __init__(self, inputs: int, hidden: int, padding: int, dropout: float) -> None:
        super().__init__()
        self.add_module("fc1", nn.Conv2d(inputs, hidden, WINDOW, padding=padding))
        self.add_module("act1", nn.ReLU(inplace=True))
        self.add_module("drop1", nn.Dropout2d(dropout))
        self.add_module("fc2", nn.Conv2d(hidden, hidden, 1))
        self.add_module("act2", nn.ReLU(inplace=True))
        self.add_module("drop2", nn.Dropout2d(dropout))


def bilinear_kernel(factor: int) -> Tensor:
    """Return the weights of bilinear enlargement, shape (2 factor, 2 factor).

    A transposed convolution with it, moving by ``factor``, puts the middle of value ``i``
    at ``factor * i + factor - 0.5`` and goes straight from one to the next.
    """
    distance = (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    return torch.outer(1 - distance, 1 - distance)


class Bilinear(nn.Module):
    """Bilinear enlargement as a transposed convolution; nothing in it is learned.

    Parameters
    ----------
    factor
        How many times larger.
    """

    kernel: Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        self._factor = factor
        self.register_buffer("kernel", bilinear_kernel(factor)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, K, factor (h + 1), factor (w + 1)) for (N, K, h, w)."""
        count, maps, height, width = x.shape
        alone = x.reshape(count * maps, 1, height, width)
        large = F.conv_transpose2d(alone, self.kernel, stride=self._factor)
        return large.reshape(count, maps, *large.shape[-2:])


def learned_upsampling(maps: int, factor: int) -> nn.Module:
    """Return a transposed convolution of all maps to all maps, bilinear at first."""
    layer = nn.ConvTranspose2d(maps, maps, 2 * factor, stride=factor, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        for k in range(maps):
            layer.weight[k, k] = bilinear_kernel(factor)
    return layer


def overlap(fine: Tensor, coarse: Tensor, begin: int) -> tuple[Tensor, Tensor]:
    """Cut two maps of the same scale to what both cover.

    Parameters
    ----------
    begin
        Where in ``fine`` the first row and column of ``coarse`` lies; may be negative.
    """
    fine = fine[..., max(0, begin) :, max(0, begin) :]
    coarse = coarse[..., max(0, -begin) :, max(0, -begin) :]
    height, width = (min(fine.shape[axis], coarse.shape[axis]) for axis in (-2, -1))
    return fine[..., :height, :width], coarse[..., :height, :width]


class FCNHead(Head):
    """Scores of several maps, each enlarged twice and added to the next finer ones.

    The sum goes through the output activation and is enlarged to the image's scale.

    Parameters
    ----------
    config
        Kind, activation, classes.
    channels
        Of the maps that go in, the coarsest first.
    factor
        How many times the sum is enlarged.
    begins
        Where in each of the finer maps the enlarged scores of the one before begin.
    learn_upsampling
        Learn the enlargement.

    Attributes
    ----------
    begins
        As above.
    """

    def __init__(
        self,
        config: HeadConfig,
        channels: Sequence[int],
        factor: int,
        begins: Sequence[int],
        *,
        learn_upsampling: bool,
    ) -> None:
        super().__init__(config, channels)
        self.begins = list(begins)
        factors = [2] * len(self.begins) + [factor]
        self.upsamplings = nn.ModuleList(
            learned_upsampling(config.classes, f) if learn_upsampling else Bilinear(f)
            for f in factors
        )
        for branch in self.branches:
            init_scores(branch.get_submodule("output"))

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Return class maps at the image's scale, with a border around the image."""
        maps: Tensor = self.upsamplings[-1](super().forward(features))
        return maps

    def fuse(self, scores: list[Tensor]) -> Tensor:
        """Enlarge the coarsest scores and add the finer, one after the other."""
        total, *finer = scores
        for score, begin, enlarge in zip(finer, self.begins, self.upsamplings, strict=False):
            score, total = overlap(score, enlarge(total), begin)
            total = score + total
        return total


def init_scores(output: nn.Module) -> None:
    """Draw output layers from a normal distribution of 0.01; biases are 0."""
    for part in output.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.01)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class FCN(Segmenter):
    """Base of the three.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    width
        Channels of the first block; 64 in the paper, and up to eight times that below.
    hidden
        Channels of fc6 and fc7.
    padding
        Pixels of 0 around the image. With less than 97 of them fc6 is padded, too.
    dropout
        Rate behind fc6 and fc7, of whole channels.
    learn_upsampling
        Learn how maps are enlarged, from bilinear on; otherwise it stays bilinear.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Attributes
    ----------
    crop
        Where in the enlarged maps the image begins, in pixels.

    Deviations from the paper
    -------------------------
    - Output layers are drawn from a normal distribution of 0.01 (the paper's begin with
      zeros), so that all layers learn from the first step.
    - The small variant pads the image by one pixel instead of 100, and fc6 by 3 values.
    """

    head: FCNHead
    #: How many times the last enlargement enlarges, and how many maps there are before.
    FACTOR: int
    LEVELS: int

    def __init__(
        self,
        in_channels: int,
        classes: int,
        width: int = 64,
        hidden: int = 4096,
        padding: int = 100,
        dropout: float = 0.5,
        learn_upsampling: bool = False,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        if padding < 1:
            raise ValueError(f"padding is at least 1 pixel, not {padding}")
        config = HeadConfig.of(classes, head, activation)
        # With both borders, an image of one pixel must fill fc6's window: seven values of
        # 32 pixels each, the last of which one pixel is enough for.
        window_padding = max(0, math.ceil((97 - padding) / 32))
        lost = REACH - window_padding
        encoder = Encoder(in_channels, width, hidden, padding, window_padding, dropout, self.LEVELS)
        begins = where_scores_begin(lost, self.LEVELS)
        output = FCNHead(
            config,
            encoder.channels,
            self.FACTOR,
            begins[1:],
            learn_upsampling=learn_upsampling,
        )
        # The scores go to the head as they are: there is nothing between.
        super().__init__(encoder, nn.Identity(), output)
        init_he(encoder.pre_logits)
        # The first score stands for FACTOR pixels of the padded image, its middle half of
        # that from their beginning; the last enlargement puts it another half further in.
        self.crop = self.FACTOR // 2 + padding - 1 - self.FACTOR * max(0, begins[-1])

    def enlarge(self, maps: Tensor, image: Tensor) -> Tensor:
        """Cut the border off."""
        height, width = image.shape[-2:]
        return maps[..., self.crop : self.crop + height, self.crop : self.crop + width]


def where_scores_begin(lost: int, levels: int) -> list[int]:
    """Return where in each map the sum of scores begins, the coarsest map first.

    Parameters
    ----------
    lost
        Values of the last pooling's map that fc6 has none for, on each side.
    levels
        Number of maps.

    Notes
    -----
    The middle of value ``i`` lies at ``2 i + 1/2`` in the next finer map, and enlarging
    twice puts the middle of the first score at 1 1/2. So the enlarged scores begin at
    ``2 i - 1``. A negative number means that many of them are cut off.
    """
    begins = [lost]
    for _ in range(levels - 1):
        begins.append(2 * max(0, begins[-1]) - 1)
    return begins


class FCN32s(FCN):
    """Scores of fc7."""

    FACTOR = 32
    LEVELS = 1


class FCN16s(FCN):
    """Scores of fc7 and the fourth pooling.

    Deviations from the paper
    -------------------------
    - All enlargements are fixed to bilinear unless learn_upsampling is set, as in the
      authors' published networks (the paper learns all but the last).
    - It learns in one go (the paper: from the weights of an FCN-32s), and does not scale
      the fourth pooling by 0.01, as the authors' at-once network does.
    """

    FACTOR = 16
    LEVELS = 2


class FCN8s(FCN):
    """Scores of fc7, the fourth and the third pooling.

    Deviations from the paper
    -------------------------
    - All enlargements are fixed to bilinear unless learn_upsampling is set, as in the
      authors' published networks (the paper learns all but the last).
    - It learns in one go (the paper: from the weights of an FCN-16s), and does not scale
      the fourth and third pooling by 0.01 and 0.0001, as the authors' at-once network does.
    """

    FACTOR = 8
    LEVELS = 3


def _spec(build: type[FCN], name: str, title: str) -> ModelSpec:
    return ModelSpec(
        name=name,
        title=title,
        year=2015,
        reference="Long et al., CVPR 2015",
        build=build,
        stride=1,
        options={
            "width": 64,
            "hidden": 4096,
            "padding": 100,
            "dropout": 0.5,
            "learn_upsampling": False,
            "head": "A",
            "activation": "none",
        },
        small={"width": 16, "hidden": 256, "padding": 1, "dropout": 0.1},
        initialisation=Initialisation.NORMAL_001,
        has_dropout=True,
        deviations=deviations_of(build),
    )


SPECS = (
    _spec(FCN32s, "fcn-32s", "FCN-32s"),
    _spec(FCN16s, "fcn-16s", "FCN-16s"),
    _spec(FCN8s, "fcn-8s", "FCN-8s"),
)
