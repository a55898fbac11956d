"""FCBFormer in two halves: PVTv2 (oracle: transformers), and all that follows it.

The oracle of the second half is written out in tests/oracles, from the paper: the authors'
code (ESandML/FCBFormer, Models/models.py at commit 042416e) is no installable library. Ours
was compared with it once, given the same weights and inputs; the largest difference was 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity import Case, image
from segdesk_models.fcbformer import Decoder, Encoder

#: Channels of PVTv2-B3's levels.
LEVELS = (64, 128, 320, 512)


def join(levels: list[Tensor]) -> Tensor:
    """Put feature maps of several sizes into one tensor."""
    return torch.cat([level.flatten(1) for level in levels], 1)


def encode(encoder: Any, x: Tensor) -> Tensor:
    _, *levels = encoder(x)
    return join(levels)


def decode(decoder: Any, x: Tensor) -> Tensor:
    """Decode an image and made-up features; every fourth pixel of every eighth map."""
    side = x.shape[-1]
    levels = [
        image((1, c, side // s, side // s)) for c, s in zip(LEVELS, (4, 8, 16, 32), strict=True)
    ]
    maps: Tensor = decoder([x, *levels])
    return maps[:, ::8, ::4, ::4]


PVT = Case("pvt_v2_b0", lambda: Encoder("pvt_v2_b0", 3), (1, 3, 32, 96), encode)
REST = Case("fcbformer_decoder", lambda: Decoder(LEVELS, 3, 32, 64, 32), (1, 3, 96, 96), decode)
CASES = (PVT, REST)
