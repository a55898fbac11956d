"""W-Net: learns to segment without labels.

Xia, Kulis: W-Net: A Deep Model for Fully Unsupervised Image Segmentation, 2017.

A first U-Net, U-Enc, makes soft segments of the image; a second one, U-Dec, makes the
image of the segments again. Segments are good if pixels that are near and alike lie in
the same one (the normalised cut is small) and if the image can be told from them. There
are more segments than classes, and those that look alike are merged.
Which class is which is unknown, until :meth:`WNet.assign` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.ncut import soft_ncut
from segdesk.nn.segmenter import Segmenter, init_he
from segdesk.nn.spec import ModelSpec, deviations_of

LEVELS = 4
#: One grey level of 255 in the units of an image that was scaled to 0..1 and then divided by
#: 0.25, as SegDesk does.
GREY_LEVEL = 1 / 255 / 0.25

#: How much one batch counts in the running means of what the segments look like.
MOMENTUM = 0.1
#: Probabilities below this are taken for it, so that their logarithm is finite.
LEAST = 1e-12

#: Makes a 3x3 convolution that keeps the size: ``convolution(inputs, outputs)``.
Convolution = Callable[[int, int], nn.Module]


def full(inputs: int, outputs: int) -> nn.Module:
    """Return a 3x3 convolution."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def separable(inputs: int, outputs: int) -> nn.Module:
    """Return a 3x3 convolution of each channel by itself, and a 1x1 one across them."""
    alone = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
    return nn.Sequential(alone, nn.Conv2d(inputs, outputs, 1))


class Module(nn.Sequential):
    """The paper's module, twice: 3x3 convolution, ReLU, batch norm."""

    def __init__(self, inputs: int, outputs: int, convolution: Convolution) -> None:
        super().__init__(
            convolution(inputs, outputs),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(outputs),
            convolution(outputs, outputs),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(outputs),
        )


class ContractingPath(nn.Module):
    """A module, then four times 2x2 max pooling and a module with separable convolutions.

    Parameters
    ----------
    inputs
        Channels that come in.
    widths
        Channels of each level, the finest first.
    dropout
        Rate at the end of the path.
    """

    def __init__(self, inputs: int, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Module(inputs, widths[0], full)])
        self.blocks.extend(Module(above, here, separable) for above, here in pairwise(widths))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps from full size down to 1/16."""
        features = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            features.append(block(self.pool(features[-1])))
        return [*features[:-1], self.dropout(features[-1])]


class ExpandingPath(nn.Module):
    """Four times 2x2 up-convolution, concatenation and a module; the last is not separable.

    Parameters
    ----------
    widths
        Channels of the contracting path, the finest first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        steps = list(pairwise(reversed(widths)))
        kinds = [separable] * (LEVELS - 1) + [full]
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(below, here, 2, stride=2) for below, here in steps
        )
        self.blocks = nn.ModuleList(
            Module(2 * here, here, kind) for (_, here), kind in zip(steps, kinds, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the feature map at full size."""
        *skips, x = features
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = block(torch.cat((skips.pop(), up(x)), 1))
        return x


class UDec(nn.Module):
    """The second U-Net, which makes the image of the segments again.

    Parameters
    ----------
    segments
        Number of segments S.
    channels
        Channels of the image.
    widths
        Channels of each level, the finest first.
    """

    def __init__(self, segments: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.contract = ContractingPath(segments, widths)
        self.expand = ExpandingPath(widths)
        self.image = nn.Conv2d(widths[0], channels, 1)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Return an image (N, C, H, W) for the probabilities of segments, (N, S, H, W)."""
        image: Tensor = self.image(self.expand(self.contract(probabilities)))
        return image


class Decoder(nn.Module):
    """U-Enc's expanding path, and, for learning only, all of U-Dec as ``reconstruct``."""

    def __init__(self, segments: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.expand = ExpandingPath(widths)
        self.reconstruct = UDec(segments, channels, widths)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the features of which the segments are made, (N, width, H, W)."""
        found: Tensor = self.expand(features)
        return found


class WNet(Segmenter):
    """W-Net.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    width
        Channels of the first level of both U-Nets; doubled at each of the four below.
    segments
        How many segments U-Enc makes; at least one per class. If there are only two, one
        is easily half of the background; of several, those halves are merged again.
    dropout
        Rate at the end of U-Enc's contracting path.
    intensity_sigma
        How unlike two pixels may be to belong together, in grey levels of 255.
    spatial_sigma
        How far apart, in pixels.
    radius
        From where on pixels are not compared, in pixels.
    head, activation
        See :mod:`segdesk.nn.heads`; its maps are those of the segments.

    Attributes
    ----------
    shares, colors
        Of each segment the share of all pixels, and the sum of their values in relation to
        all pixels: running means, shapes (S,) and (S, C).
    owner
        The group that each segment was merged into, int64 (S,).
    order
        The group that stands for each class, int64 (K,).

    Deviations from the paper
    -------------------------
    - It makes 8 segments, or one per class if there are more classes, and merges those of the
      most similar mean colour until there is one per class (the paper merges them by the
      strength of the outlines between them).
    - The segments are not refined by a fully connected CRF, which is a step of its own here.
    - Dropout is placed at the end of the first U-Net's contracting path, as U-Net has it; its
      place and rate could not be checked against the paper.
    """

    decoder: Decoder
    shares: Tensor
    colors: Tensor
    owner: Tensor
    order: Tensor

    def __init__(
        self,
        in_channels: int,
        classes: int,
        width: int = 64,
        segments: int = 8,
        dropout: float = 0.65,
        intensity_sigma: float = 10.0,
        spatial_sigma: float = 4.0,
        radius: float = 5.0,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        segments = max(segments, classes)
        config = HeadConfig.of(segments, head, activation)
        widths = [width * 2**level for level in range(LEVELS + 1)]
        super().__init__(
            ContractingPath(in_channels, widths, dropout),
            Decoder(segments, in_channels, widths),
            Head(config, width),
        )
        self._intensity_sigma = intensity_sigma * GREY_LEVEL
        self._spatial_sigma = spatial_sigma
        self._radius = radius
        # Kept with the weights: without them a mask could not be told from the segments.
        self.register_buffer("shares", torch.zeros(segments))
        self.register_buffer("colors", torch.zeros(segments, in_channels))
        self.register_buffer("owner", torch.arange(segments) % classes)
        self.register_buffer("order", torch.arange(classes))
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps (N, K, H, W), the logarithms of the classes' probabilities."""
        probabilities = torch.softmax(self.segments(x), 1)
        belongs = (self.owner == self.order[:, None]).to(probabilities.dtype)
        merged = belongs @ probabilities.flatten(2)
        maps = torch.log(merged.clamp_min(LEAST))
        return maps.reshape(x.shape[0], -1, *x.shape[-2:])

    def segments(self, x: Tensor) -> Tensor:
        """Return the maps of U-Enc's segments, (N, S, H, W), that go into a softmax."""
        return super().forward(x)

    def assign(self, order: Tensor) -> None:
        """Let map ``order[k]`` of those that ``forward`` returns stand for class k.

        The cut is the same whatever the classes are called, so nothing else changes.
        """
        self.order.copy_(self.order[order.to(self.order.device)])

    def own_loss(self, image: Tensor, turn: int) -> Tensor:
        """Return one of the two losses that are lowered in turn, as in the paper's algorithm.

        Parameters
        ----------
        image
            Shape (N, C, H, W), scaled to 0..1, shifted, divided by 0.25.
        turn
            0: the soft normalised cut, which moves U-Enc; while it learns, which segments
            are merged is kept up to date. 1: the error of the reconstructed image, which
            moves both U-Nets.
        """
        probabilities = torch.softmax(self.segments(image), 1)
        if turn == 1:
            return F.mse_loss(self.decoder.reconstruct(probabilities), image)
        if self.training:
            self._merge(probabilities.detach(), image)
        return soft_ncut(
            probabilities,
            image,
            intensity_sigma=self._intensity_sigma,
            spatial_sigma=self._spatial_sigma,
            radius=self._radius,
        )

    def _merge(self, probabilities: Tensor, image: Tensor) -> None:
        """Look what the segments look like, and merge those that look alike."""
        flat = probabilities.transpose(0, 1).flatten(1)
        values = image.transpose(0, 1).flatten(1)
        self.shares.lerp_(flat.mean(1), MOMENTUM)
        self.colors.lerp_(flat @ values.T / values.shape[1], MOMENTUM)
        self.owner.copy_(merge_alike(self.shares, self.colors, len(self.order)))


def merge_alike(shares: Tensor, colors: Tensor, groups: int) -> Tensor:
    """Merge segments, two at a time those whose pixels differ least in colour.

    Painted in the mean colour of its group, the image of the segments then loses as little
    as it can with each merging.

    Parameters
    ----------
    shares
        Pixels of each segment, in any unit, shape (S,).
    colors
        Sum of their values, in the same unit, shape (S, C).
    groups
        How many are to be left.

    Returns
    -------
    Tensor
        The group of every segment, int64 (S,). Group 0 is the largest: usually the
        background.

    Notes
    -----
    Ward: Hierarchical Grouping to Optimize an Objective Function, JASA 1963.
    """
    shares, colors = shares.detach().double().cpu(), colors.detach().double().cpu()
    # Which segments are in which group, shape (groups, S); at first each is alone.
    members = torch.eye(len(shares), dtype=torch.float64)
    while len(members) > groups:
        sizes = (members @ shares).clamp_min(LEAST)
        means = members @ colors / sizes[:, None]
        apart = (means[:, None] - means).square().sum(2)
        loss = apart * sizes[:, None] * sizes / (sizes[:, None] + sizes)
        first, second = divmod(int(loss.fill_diagonal_(math.inf).argmin()), len(members))
        members[first] += members[second]
        members = torch.cat((members[:second], members[second + 1 :]))
    largest_first = (members @ shares).argsort(descending=True, stable=True)
    return members[largest_first].argmax(0)


SPEC = ModelSpec(
    name="wnet",
    title="W-Net",
    year=2017,
    reference="Xia and Kulis, arXiv 1711.08506",
    build=WNet,
    stride=16,
    options={
        "width": 64,
        "segments": 8,
        "dropout": 0.65,
        "intensity_sigma": 10.0,
        "spatial_sigma": 4.0,
        "radius": 5.0,
        "head": "A",
        "activation": "none",
    },
    small={"width": 16, "dropout": 0.1},
    has_dropout=True,
    needs_labels=False,
    turns=2,
    deviations=deviations_of(WNet),
)
