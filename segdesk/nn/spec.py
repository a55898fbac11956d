"""What SegDesk must know of an architecture to build, check and train it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


class SegmentationModel(Protocol):
    """What every architecture offers.

    ``forward`` takes float32 (N, C, H, W), with H and W multiples of the spec's
    stride, and returns class maps (N, K, H, W) that go into a softmax. The
    three parts name every parameter once, for recipes and learning rates.
    """

    encoder: nn.Module
    decoder: nn.Module
    head: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        """Return class maps for a batch."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """An architecture.

    Attributes
    ----------
    name
        Registry name, such as ``unet``.
    build
        ``build(in_channels, classes, **options)`` makes an untrained network.
    stride
        Height and width of the input must be multiples of this, in pixels.
    options
        Defaults of the options, as the paper has them.
    deviations
        Where this differs from the paper, a sentence each.
    """

    name: str
    title: str
    year: int
    reference: str
    build: Callable[..., nn.Module]
    stride: int
    options: dict[str, Any]
    deviations: tuple[str, ...] = ()
