"""Attention U-Net: a U-Net whose skip connections pass on only what matters.

Oktay et al.: Attention U-Net: Learning Where to Look for the Pancreas, MIDL 2018.

A gate weighs every pixel of a skip connection, by what the coarser features say of its
surroundings. Two networks go by this name, and ``gates`` chooses between them:

================  ========================  ===========================
``gates``         ``grid`` (the paper)      ``same_resolution``
================  ========================  ===========================
gated skips       the three coarser ones    all four
gating signal     one scale coarser         enlarged to the skip's scale
gate's channels   those of the skip         half of those
in the gate       no batch norm             batch norm
behind the gate   1x1 convolution and norm  nothing
enlargement       bilinear                  repeated pixels, 3x3 convolution
class maps        from all four scales      from the finest scale
================  ========================  ===========================

The second is what widely used 2D ports on PyTorch compute. The paper's network is 3D;
here its kernels are 2D and its widths U-Net's.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from itertools import pairwise

import torch
from torch import Tensor, nn

from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.segmenter import Segmenter, init_he, resize
from segdesk.nn.spec import ModelSpec, deviations_of

LEVELS = 4


class Gates(StrEnum):
    """Which of the two networks."""

    GRID = "grid"
    SAME_RESOLUTION = "same_resolution"


def conv_layer(inputs: int, outputs: int, size: int = 3) -> nn.Sequential:
    """Return convolution, batch norm and ReLU; the map's size stays."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    """Return two 3x3 layers."""
    return nn.Sequential(conv_layer(inputs, outputs), conv_layer(outputs, outputs))


class Encoder(nn.Module):
    """Contracting path: a block, then four times 2x2 max pooling and a block."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        befores = [inputs, *widths[:-1]]
        self.blocks = nn.ModuleList(conv_block(i, o) for i, o in zip(befores, widths, strict=True))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the feature maps from full size down to 1/16."""
        features = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            features.append(block(self.pool(features[-1])))
        return features


class Gate(nn.Module):
    """An additive gate: it compares a skip connection with a gating signal.

    Parameters
    ----------
    theta
        Skip connection to (N, inner, h, w).
    phi
        Gating signal to the same shape.
    psi
        Their sum, clipped at 0, to (N, 1, h, w).
    """

    def __init__(self, theta: nn.Module, phi: nn.Module, psi: nn.Module) -> None:
        super().__init__()
        self.theta = theta
        self.phi = phi
        self.psi = psi

    def weigh(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return how much each place matters, between 0 and 1, shape (N, 1, h, w)."""
        joined = torch.relu(self.theta(skip) + self.phi(signal))
        return torch.sigmoid(self.psi(joined))


class GridGate(Gate):
    """The paper's gate, at half the resolution of the skip connection.

    Parameters
    ----------
    channels
        Of the skip connection.
    gating
        Channels of the gating signal.
    inner
        Channels in which both are added.
    """

    def __init__(self, channels: int, gating: int, inner: int) -> None:
        super().__init__(
            nn.Conv2d(channels, inner, 2, stride=2, bias=False),
            nn.Conv2d(gating, inner, 1),
            nn.Conv2d(inner, 1, 1),
        )
        self.project = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return what the skip connection passes on, (N, channels, 2 h, 2 w).

        Parameters
        ----------
        skip
            Shape (N, channels, 2 h, 2 w).
        signal
            Shape (N, gating, h, w).
        """
        weights = resize(self.weigh(skip, signal), skip)
        gated: Tensor = self.project(skip * weights)
        return gated


class SameResolutionGate(Gate):
    """The 2D ports' gate, whose gating signal is as large as the skip connection.

    Parameters
    ----------
    channels
        Of the skip connection and of the gating signal.
    inner
        Channels in which both are added.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner)),
            nn.Sequential(nn.Conv2d(channels, inner, 1), nn.BatchNorm2d(inner)),
            nn.Sequential(nn.Conv2d(inner, 1, 1), nn.BatchNorm2d(1)),
        )

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Return what the skip connection passes on; all have shape (N, channels, h, w)."""
        return skip * self.weigh(skip, signal)


class GridDecoder(nn.Module):
    """The paper's expanding path, in which coarser features gate and then meet the skips.

    Parameters
    ----------
    widths
        Channels of the encoder's maps, the finest first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        coarse_first = list(pairwise(reversed(widths)))
        # What gates the coarsest skip connection; the others are gated by the blocks' results.
        self.signal = conv_layer(widths[-1], widths[-1], 1)
        # The finest features know too little of their surroundings to be compared with others.
        self.gates = nn.ModuleList(
            GridGate(skip, below, inner=skip) for below, skip in coarse_first[:-1]
        )
        self.blocks = nn.ModuleList(conv_block(skip + below, skip) for below, skip in coarse_first)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the features of each scale, from full size down to 1/8."""
        *skips, x = features
        signal = self.signal(x)
        found: list[Tensor] = []
        for level, block in enumerate(self.blocks):
            skip = skips.pop()
            enlarged = resize(x, skip)
            if level < len(self.gates):
                skip = self.gates[level](skip, signal)
            x = signal = block(torch.cat((skip, enlarged), 1))
            found.insert(0, x)
        return found


class SameResolutionDecoder(nn.Module):
    """The 2D ports' expanding path: enlarge, gate the skip with that, concatenate, block.

    Parameters
    ----------
    widths
        Channels of the encoder's maps, the finest first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        coarse_first = list(pairwise(reversed(widths)))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), conv_layer(below, skip))
            for below, skip in coarse_first
        )
        self.gates = nn.ModuleList(
            SameResolutionGate(skip, inner=max(1, skip // 2)) for _, skip in coarse_first
        )
        self.blocks = nn.ModuleList(conv_block(2 * skip, skip) for _, skip in coarse_first)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the features at full size, alone."""
        *skips, x = features
        for up, gate, block in zip(self.ups, self.gates, self.blocks, strict=True):
            x = up(x)
            x = block(torch.cat((gate(skips.pop(), x), x), 1))
        return [x]


class EveryScale(Head):
    """Class maps of every scale, enlarged to the first one's and summed.

    So each scale's features are made to tell the classes apart: deep supervision.
    """

    def fuse(self, scores: list[Tensor]) -> Tensor:
        """Return the sum, shape (N, K, H, W)."""
        return super().fuse([resize(score, scores[0]) for score in scores])


class AttentionUNet(Segmenter):
    """Attention U-Net.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    width
        Channels of the first level; doubled at each of the four below.
    gates
        ``grid`` or ``same_resolution``: see the module.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - It sees planes, with 2D kernels and the channels of the 2D U-Net (the paper: volumes,
      with 3D kernels and a quarter of the channels).
    - Each skip connection has one gate, as the paper draws it (the authors' code has variants
      with two, whose results are merged).
    - The class maps of the four scales are summed; the authors' code combines them with one
      more 1x1 convolution, which can do no more than the 1x1 convolutions in front of the
      sum.
    - The option gates=same_resolution is not the paper's network but that of widely used 2D
      ports: it gates all four skip connections, each with features enlarged to its own
      resolution, has batch norm in the gates, and takes the class maps from the finest scale
      alone.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        width: int = 64,
        gates: str = "grid",
        head: str = "A",
        activation: str = "none",
    ) -> None:
        config = HeadConfig.of(classes, head, activation)
        widths = [width * 2**level for level in range(LEVELS + 1)]
        is_grid = Gates(gates) is Gates.GRID
        super().__init__(
            Encoder(in_channels, widths),
            GridDecoder(widths) if is_grid else SameResolutionDecoder(widths),
            EveryScale(config, widths[:-1] if is_grid else widths[:1]),
        )
        init_he(self)


SPEC = ModelSpec(
    name="attention-unet",
    title="Attention U-Net",
    year=2018,
    reference="Oktay et al., MIDL 2018",
    build=AttentionUNet,
    stride=16,
    options={"width": 64, "gates": "grid", "head": "A", "activation": "none"},
    small={"width": 16},
    deviations=deviations_of(AttentionUNet),
)
