"""The U-Nets against networks put together from the blocks of MONAI.

MONAI's own U-Nets differ from the papers' (its Attention U-Net has strided convolutions for the
poolings and learned enlargements), so its blocks are joined as the papers join theirs.
"""

from __future__ import annotations

from parity import Case
from segdesk_models.attention_unet import AttentionUNet
from segdesk_models.unet import UNet
from segdesk_models.unet2015 import UNet2015

#: Channels of the levels, but for the 2015 network: at 236 pixels it needs longer.
WIDTHS = (8, 16, 32, 64, 128)
VALID_WIDTHS = (4, 8, 16, 32, 64)

PADDED = Case("unet", lambda: UNet(3, 2, width=WIDTHS[0]), (1, 3, 48, 80))
VALID = Case(
    "unet2015",
    lambda: UNet2015(3, 2, width=VALID_WIDTHS[0]),
    (1, 3, 236, 252),
    lambda network, x: network.valid(x),
)
GRID = Case(
    "attention_unet_grid",
    lambda: AttentionUNet(3, 2, width=WIDTHS[0], gates="grid"),
    (1, 3, 48, 80),
)
SAME_RESOLUTION = Case(
    "attention_unet_same_resolution",
    lambda: AttentionUNet(3, 2, width=WIDTHS[0], gates="same_resolution"),
    (1, 3, 48, 80),
)
CASES = (PADDED, VALID, GRID, SAME_RESOLUTION)
