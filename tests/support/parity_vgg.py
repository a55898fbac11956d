"""VGG-16 as FCN has it, and with batch norm and switches as SegNet and DeconvNet have it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity import Case
from segdesk.nn.unpooling import SwitchedVgg
from segdesk_models.fcn import Encoder


def build_plain() -> nn.Module:
    # fc6 and fc7 are narrow: only the poolings are compared.
    return Encoder(
        3, width=64, hidden=2, padding=1, window_padding=3, dropout=0.0, levels=3
    ).requires_grad_(False)


def poolings(encoder: Any, x: Tensor) -> Tensor:
    """Return the third, fourth and fifth pooling, some of the values in a row."""
    _, fourth, third = encoder(x)
    return in_a_row([third, fourth, encoder.features(x)])


def with_switches(encoder: Any, x: Tensor) -> Tensor:
    """Return the fifth pooling, and the places of its and the fourth's maxima."""
    pooled, switches = encoder(x)
    return in_a_row([pooled, switches[3].float() / 100, switches[4].float() / 100])


def in_a_row(maps: list[Tensor]) -> Tensor:
    """Return every seventh value, each map's share of the largest alike."""
    return torch.cat([(values / values.abs().max()).flatten()[::7] for values in maps])


CASES = (
    Case("vgg16-96x64", build_plain, (1, 3, 96, 64), poolings),
    Case("vgg16-bn-64x96", lambda: SwitchedVgg(3, 64), (1, 3, 64, 96), with_switches),
)
