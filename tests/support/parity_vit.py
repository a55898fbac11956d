"""ViT, and SETR's encoder, which is one without its last norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from parity import Case
from segdesk_models.setr import SETRMLA
from segdesk_models.vit import ViT

CLASSES = 7
DEPTH = 4
SIDE = 64


def build_vit() -> nn.Module:
    return ViT(3, CLASSES, encoder="tiny", depth=DEPTH, image_size=SIDE)


def logits_and_attention(network: Any, x: Tensor) -> Tensor:
    """Return the logits, then the attention maps, of each image in a row."""
    logits, attention = network.classify(x)
    return torch.cat((logits, attention.flatten(1)), 1)


def build_setr() -> nn.Module:
    return SETRMLA(3, 2, encoder="tiny", depth=DEPTH, width=8, image_size=SIDE)


def four_layers(network: Any, x: Tensor) -> Tensor:
    return torch.cat(network.encoder(x), 1)


VIT = Case("vit-classify", build_vit, (2, 3, SIDE, SIDE), logits_and_attention)
SETR = Case("setr-layers", build_setr, (1, 3, SIDE, SIDE), four_layers)
CASES = (VIT, SETR)
