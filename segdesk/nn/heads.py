"""Fine-tuning heads A and C, and CBAM.

Pixels a model gets wrong lie mostly where its probability is near 0.5. Head C
strengthens the features in front of the output (CBAM) and gives the background
and every class output weights of their own, each followed by an activation.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

import torch
from torch import Tensor, nn


class HeadKind(StrEnum):
    """Forms of the output layers."""

    A = "A"
    C = "C"


class Activation(StrEnum):
    """Activations of the class maps, in front of the softmax."""

    NONE = "none"
    TANH = "tanh"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    SELU = "selu"
    GELU = "gelu"


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    Activation.NONE: nn.Identity,
    Activation.TANH: nn.Tanh,
    Activation.RELU: nn.ReLU,
    Activation.LEAKY_RELU: nn.LeakyReLU,
    Activation.SELU: nn.SELU,
    Activation.GELU: nn.GELU,
}


class ChannelAttention(nn.Module):
    """CBAM's channel gate: one small perceptron on the mean and the maximum.

    Parameters
    ----------
    channels
        Feature channels C.
    reduction
        The perceptron's hidden layer has ``max(1, C // reduction)`` units.

    Notes
    -----
    Woo et al., CBAM, ECCV 2018, equation 2; with biases, as its authors' code.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of ``x``, shape (N, C, H, W)."""
        gate = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        return x * torch.sigmoid(gate)[:, :, None, None]


class SpatialAttention(nn.Module):
    """CBAM's spatial gate: a 7x7 convolution over channel maximum and mean.

    Notes
    -----
    Woo et al., equation 3; batch norm with momentum 0.01, as its authors' code.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the positions of ``x``, shape (N, C, H, W)."""
        pooled = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), 1)
        return x * torch.sigmoid(self.norm(self.conv(pooled)))


class CBAM(nn.Sequential):
    """Channel attention, then spatial attention."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__(ChannelAttention(channels, reduction), SpatialAttention())


class SeparateOutputs(nn.Module):
    """A 1x1 convolution of its own for each class, each with an activation.

    The separate convolutions are kept separate in the weights (``maps.0``,
    ``maps.1``, ...), so that one class can be tuned or transplanted alone.
    """

    def __init__(self, channels: int, classes: int, activation: Activation) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in range(classes))
        self.activation = _ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps, shape (N, classes, H, W), to go into a softmax."""
        return torch.cat([self.activation(conv(x)) for conv in self.maps], 1)


def make_head(
    kind: HeadKind, channels: int, classes: int, activation: Activation = Activation.NONE
) -> nn.Module:
    """Build a head that turns features (N, C, H, W) into class maps (N, K, H, W).

    The softmax is not part of it: losses want what goes into the softmax.
    """
    if kind is HeadKind.A:
        return nn.Conv2d(channels, classes, 1)
    return nn.Sequential(CBAM(channels), SeparateOutputs(channels, classes, activation))
