"""Fine-tuning heads A to D, and CBAM.

Pixels a model gets wrong lie mostly where its probability is near 0.5. The heads
strengthen the features in front of the output and give the background and every
class output weights of their own, each followed by an activation.

====  =========================================================================
A     one convolution to all class maps
B     a convolution of its own for the background and for every class, each map
      through an output activation
C     B with CBAM on the features in front
D     C with the spatial gate of CBAM changed from a sigmoid to tanh
====  =========================================================================

The published description of D says "sigmoid and tanh" and no more; ours is a
reading of it, and :class:`CBAM` is the one place that holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.config.model import Activation, HeadKind
from segdesk.nn.norms import PooledNorm

__all__ = ["CBAM", "Activation", "Head", "HeadConfig", "HeadKind", "SeparateOutputs"]


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    Activation.NONE: nn.Identity,
    Activation.TANH: nn.Tanh,
    Activation.RELU: nn.ReLU,
    Activation.LEAKY_RELU: nn.LeakyReLU,
    Activation.SELU: nn.SELU,
    Activation.GELU: nn.GELU,
}

#: Makes the layer from features to maps: ``layer(channels, maps)``.
OutputLayer = Callable[[int, int], nn.Module]


def pointwise(channels: int, maps: int) -> nn.Module:
    """Return a 1x1 convolution, the output layer of most architectures."""
    return nn.Conv2d(channels, maps, 1)


#: Hidden units of a channel gate are at least so many.
LEAST_HIDDEN = 4


class ChannelAttention(nn.Module):
    """CBAM's channel gate: one small perceptron on the mean and the maximum.

    Parameters
    ----------
    channels
        Feature channels C.
    reduction
        The perceptron's hidden layer has ``max(4, C // reduction)`` units.

    Notes
    -----
    Woo et al., CBAM, ECCV 2018, equation 2; with biases, as its authors' code. That has C // 16
    units, whatever their signs. Of 16 features, as small models have them, that is a single one,
    and features behind a ReLU are not negative: in half of all cases no image would ever switch
    it on, and the gate could not learn. So there are four at least, drawn positive, and smaller.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(LEAST_HIDDEN, channels // reduction)
        squeeze = nn.Linear(channels, hidden)
        with torch.no_grad():
            # So much smaller that the gate begins as near to one half as with random signs.
            squeeze.weight.abs_().div_(math.sqrt(3 * channels))
        self.mlp = nn.Sequential(squeeze, nn.ReLU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of ``x``, shape (N, C, H, W)."""
        # Five times as fast as ``amax`` where the channels lie last.
        highest = F.adaptive_max_pool2d(x, 1).flatten(1)
        gate = self.mlp(x.mean((2, 3))) + self.mlp(highest)
        return x * torch.sigmoid(gate)[:, :, None, None]


class SpatialAttention(nn.Module):
    """CBAM's spatial gate: a 7x7 convolution over channel maximum and mean.

    Parameters
    ----------
    gate
        What turns the convolution's result into weights.

    Notes
    -----
    Woo et al., equation 3; batch norm with momentum 0.01, as its authors' code.
    """

    def __init__(self, gate: Callable[[Tensor], Tensor], kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        # The deepest maps of a small crop can be a single pixel.
        self.norm = PooledNorm(1, momentum=0.01)
        self._gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the positions of ``x``, shape (N, C, H, W)."""
        pooled = torch.cat((x.amax(1, keepdim=True), x.mean(1, keepdim=True)), 1)
        return x * self._gate(self.norm(self.conv(pooled)))


class CBAM(nn.Sequential):
    """Channel attention, then spatial attention.

    Parameters
    ----------
    channels
        Feature channels.
    signed
        The spatial gate is tanh and not a sigmoid, so that it may turn a feature's
        sign: head D.
    """

    def __init__(self, channels: int, reduction: int = 16, *, signed: bool = False) -> None:
        gate = torch.tanh if signed else torch.sigmoid
        super().__init__(ChannelAttention(channels, reduction), SpatialAttention(gate))


class SeparateOutputs(nn.Module):
    """An output layer of its own for each class.

    They are kept separate in the weights (``maps.0``, ``maps.1``, ...), so that one
    class can be tuned or transplanted alone.
    """

    def __init__(self, channels: int, classes: int, layer: OutputLayer = pointwise) -> None:
        super().__init__()
        self.maps = nn.ModuleList(layer(channels, 1) for _ in range(classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return class maps, shape (N, classes, H, W)."""
        return torch.cat([layer(x) for layer in self.maps], 1)


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """Which head: its kind, its activation and the number of classes K."""

    classes: int
    kind: HeadKind = HeadKind.A
    activation: Activation = Activation.NONE

    @classmethod
    def of(cls, classes: int, head: str, activation: str) -> HeadConfig:
        """Read the options ``head`` and ``activation``.

        Raises
        ------
        ValueError
            One of them is unknown.
        """
        return cls(classes, HeadKind(head), Activation(activation))

    def output_activation(self) -> nn.Module:
        """Return the activation of the class maps; head A has none."""
        if self.kind is HeadKind.A:
            return nn.Identity()
        return _ACTIVATIONS[self.activation]()

    def branch(self, channels: int, layer: OutputLayer = pointwise) -> nn.Module:
        """Return what turns features (N, C, H, W) into class maps, without activation.

        Its parts are ``attention`` (C and D only) and ``output``.
        """
        parts = nn.Sequential()
        if self.kind.has_cbam:
            parts.add_module("attention", CBAM(channels, signed=self.kind is HeadKind.D))
        is_joint = self.kind is HeadKind.A
        output = (
            layer(channels, self.classes)
            if is_joint
            else SeparateOutputs(channels, self.classes, layer)
        )
        parts.add_module("output", output)
        return parts


class Head(nn.Module):
    """One head, or several whose maps are summed, and the output activation.

    Parameters
    ----------
    config
        Kind, activation, classes.
    channels
        Channels of each feature map that goes in.
    layer
        Makes the output layer; a 1x1 convolution unless the architecture has
        another one.
    """

    def __init__(
        self, config: HeadConfig, channels: int | Sequence[int], layer: OutputLayer = pointwise
    ) -> None:
        super().__init__()
        widths = [channels] if isinstance(channels, int) else list(channels)
        self.branches = nn.ModuleList(config.branch(width, layer) for width in widths)
        self.activation = config.output_activation()

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Return class maps (N, K, H, W), to go into a softmax."""
        inputs = [features] if isinstance(features, Tensor) else features
        maps: Tensor = self.activation(self.fuse(self.scores(inputs)))
        return maps

    def scores(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return each branch's maps, without activation."""
        return [branch(feature) for branch, feature in zip(self.branches, features, strict=True)]

    def fuse(self, scores: list[Tensor]) -> Tensor:
        """Make one set of maps of the branches' maps: their sum."""
        total = scores[0]
        for score in scores[1:]:
            total = total + score
        return total
