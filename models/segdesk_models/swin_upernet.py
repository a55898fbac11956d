"""UPerNet on a Swin transformer.

Liu et al.: Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, ICCV
2021; Xiao et al.: Unified Perceptual Parsing for Scene Understanding, ECCV 2018.

Swin attends within windows of 7x7 patches, shifted by half a window in every second layer,
and halves height and width three times. UPerNet pools the coarsest features at four
scales, adds them to the finer ones step by step and joins all at 1/4 of the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.encoders import TimmEncoder
from segdesk.nn.heads import Head, HeadConfig
from segdesk.nn.norms import PooledNorm
from segdesk.nn.segmenter import Segmenter, init_he, resize
from segdesk.nn.spec import ModelSpec, deviations_of

#: Layers by stage and channels of the first stage, by size of Swin; channels double at
#: each stage, and every attention head has 32 of them.
SIZES = {
    "tiny": ((2, 2, 6, 2), 96),
    "small": ((2, 2, 18, 2), 96),
    "base": ((2, 2, 18, 2), 128),
}
HEAD_CHANNELS = 32
#: Pooled features have so many rows and columns.
BINS = (1, 2, 3, 6)
#: Stage, from 0, with the auxiliary output.
AUXILIARY_STAGE = 2
#: How much the auxiliary output counts in training.
AUXILIARY_WEIGHT = 0.4


class ShiftedWindowBlock(nn.Module):
    """Attention within windows, then a perceptron for each patch, both added to the input.

    The parts are those of timm's block, under its names. Only the order differs where an
    image holds no whole number of windows: like the paper's code, this pads and then
    shifts. timm shifts and then pads, and lets opposite borders of the image see each
    other.

    Parameters
    ----------
    block
        timm's.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.attn = block.attn
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = block.drop_path2
        self._window: int = block.window_size[0]
        self._shift: int = block.shift_size[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, h, w, C) for patches (N, h, w, C)."""
        x = x + self.drop_path1(self.attend(self.norm1(x)))
        change: Tensor = self.drop_path2(self.mlp(self.norm2(x)))
        return x + change

    def attend(self, x: Tensor) -> Tensor:
        """Return what each patch learns from the others in its window, (N, h, w, C)."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self._window, 0, -height % self._window))
        padded = x.shape
        mask = None
        if self._shift:
            x = torch.roll(x, (-self._shift, -self._shift), (1, 2))
            mask = self.mask(x)
        x = _from_windows(self.attn(_to_windows(x, self._window), mask), self._window, padded)
        if self._shift:
            x = torch.roll(x, (self._shift, self._shift), (1, 2))
        return x[:, :height, :width]

    def mask(self, x: Tensor) -> Tensor:
        """Return what is added to the attention between the patches of each window.

        Shifting moved the image's first rows and columns behind its last: the two are
        no neighbours and must not see each other.
        """
        height, width = x.shape[1:3]
        wrapped_rows = torch.arange(height, device=x.device) >= height - self._shift
        wrapped_columns = torch.arange(width, device=x.device) >= width - self._shift
        part = 2 * wrapped_rows[:, None] + wrapped_columns.long()
        parts = _to_windows(part[None, :, :, None], self._window)[:, :, 0]
        is_apart = parts[:, :, None] != parts[:, None, :]
        return torch.zeros_like(is_apart, dtype=x.dtype).masked_fill(is_apart, -torch.inf)


def _to_windows(x: Tensor, side: int) -> Tensor:
    """Return (windows of all images, side * side, C) for (N, h, w, C)."""
    n, height, width, channels = x.shape
    x = x.reshape(n, height // side, side, width // side, side, channels)
    return x.transpose(2, 3).reshape(-1, side * side, channels)


def _from_windows(windows: Tensor, side: int, shape: Sequence[int]) -> Tensor:
    """Undo :func:`_to_windows`; ``shape`` is (N, h, w, C)."""
    n, height, width, channels = shape
    x = windows.reshape(n, height // side, width // side, side, side, channels)
    return x.transpose(2, 3).reshape(n, height, width, channels)


class SwinEncoder(TimmEncoder):
    """Swin with a layer norm on what each stage returns.

    Parameters
    ----------
    size
        One of :data:`SIZES`; timm has each as ``swin_<size>_patch4_window7_224``.
    in_channels
        Channels of the image.
    depths
        Layers by stage.
    channels
        Of the first stage.
    drop_path
        Rate at which the last layer is skipped in training; earlier ones less often.
    """

    def __init__(
        self,
        size: str,
        in_channels: int,
        depths: Sequence[int],
        channels: int,
        drop_path: float,
    ) -> None:
        super().__init__(
            f"swin_{size}_patch4_window7_224",
            in_channels,
            range(4),
            depths=tuple(depths),
            embed_dim=channels,
            num_heads=tuple(channels * 2**stage // HEAD_CHANNELS for stage in range(4)),
            drop_path_rate=drop_path,
            # Windows of 7x7 for every image, also where a stage has fewer patches.
            strict_img_size=False,
            always_partition=True,
        )
        for stage in self.body.layers:
            stage.blocks = nn.Sequential(*(ShiftedWindowBlock(block) for block in stage.blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return features at 1/4, 1/8, 1/16 and 1/32 of the image's size."""
        return [
            norm(stage.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for norm, stage in zip(self.norms, super().forward(x), strict=True)
        ]


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
            PooledNorm(outputs),  # takes a batch of one image pooled to one pixel
            nn.ReLU(inplace=True),
        )


class PyramidPooling(nn.Module):
    """Features beside their means over the image, its halves, thirds and sixths."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), ConvBlock(inputs, width, 1)) for bins in BINS
        )
        self.block = ConvBlock(inputs + len(BINS) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, h, w) for (N, inputs, h, w)."""
        pooled = [resize(pool(x), x) for pool in self.pools]
        joined: Tensor = self.block(torch.cat([x, *pooled], 1))
        return joined


class UPerDecoder(nn.Module):
    """Pyramid pooling, a feature pyramid on top, and all levels joined at the finest.

    Parameters
    ----------
    channels
        Of the encoder's stages, the finest first.
    width
        Of the decoder.
    classes
        Class maps of the auxiliary output.
    dropout
        Share of channels dropped in front of an output layer in training.
    auxiliary
        Have an auxiliary output.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        classes: int,
        dropout: float,
        *,
        auxiliary: bool,
    ) -> None:
        super().__init__()
        *finer, coarsest = channels
        self.pooling = PyramidPooling(coarsest, width)
        self.laterals = nn.ModuleList(ConvBlock(inputs, width, 1) for inputs in finer)
        self.smooth = nn.ModuleList(ConvBlock(width, width, 3) for _ in finer)
        self.join = ConvBlock(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.auxiliary = (
            nn.Sequential(
                ConvBlock(channels[AUXILIARY_STAGE], width // 2, 3),
                nn.Dropout2d(dropout),
                nn.Conv2d(width // 2, classes, 1),
            )
            if auxiliary
            else None
        )

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Return (N, width, H/4, W/4) for stages from 1/4 to 1/32."""
        coarsest = self.pooling(stages[-1])
        x = coarsest
        levels = [coarsest]
        for lateral, smooth, stage in zip(
            reversed(self.laterals), reversed(self.smooth), reversed(stages[:-1]), strict=True
        ):
            x = lateral(stage) + resize(x, stage)
            levels.insert(0, smooth(x))
        joined = self.join(torch.cat([resize(level, levels[0]) for level in levels], 1))
        features: Tensor = self.dropout(joined)
        return features


class SwinUPerNet(Segmenter):
    """UPerNet on a Swin transformer.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Number of class maps.
    encoder
        Size of Swin: tiny, small or base.
    depths
        Layers by stage; None: as that size has.
    embed_dim
        Channels of the first stage, a multiple of 32; None: as that size has.
    drop_path
        Rate at which the last layer is skipped in training; earlier ones less often.
    width
        Channels of the decoder.
    dropout
        Share of channels dropped in front of the output layer in training.
    auxiliary
        Have an auxiliary output, which learns too.
    head, activation
        See :mod:`segdesk.nn.heads`.

    Deviations from the paper
    -------------------------
    - Where batch norm would see one value per channel only (one image in the batch, averaged
      to one pixel), it uses its running statistics (the paper trains on 16 images at once).
    """

    decoder: UPerDecoder

    def __init__(
        self,
        in_channels: int,
        classes: int,
        encoder: str = "tiny",
        depths: Sequence[int] | None = None,
        embed_dim: int | None = None,
        drop_path: float = 0.3,
        width: int = 512,
        dropout: float = 0.1,
        auxiliary: bool = True,
        head: str = "A",
        activation: str = "none",
    ) -> None:
        if encoder not in SIZES:
            raise ValueError(f"encoder is one of {', '.join(SIZES)}, not {encoder!r}")
        paper_depths, paper_channels = SIZES[encoder]
        swin = SwinEncoder(
            encoder, in_channels, depths or paper_depths, embed_dim or paper_channels, drop_path
        )
        decoder = UPerDecoder(swin.channels, width, classes, dropout, auxiliary=auxiliary)
        super().__init__(swin, decoder, Head(HeadConfig.of(classes, head, activation), width))
        init_he(self.decoder)
        init_he(self.head)

    def training_maps(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """Return the class maps and those of the auxiliary output, at the image's size."""
        stages = self.encoder(x)
        maps = [(1.0, self.enlarge(self.head(self.decoder(stages)), x))]
        if self.decoder.auxiliary is not None:
            auxiliary = self.decoder.auxiliary(stages[AUXILIARY_STAGE])
            maps.append((AUXILIARY_WEIGHT, self.enlarge(auxiliary, x)))
        return maps


SPEC = ModelSpec(
    name="swin-upernet",
    title="UPerNet on Swin",
    year=2021,
    reference="Liu et al., ICCV 2021; Xiao et al., ECCV 2018",
    build=SwinUPerNet,
    stride=32,
    options={
        "encoder": "tiny",
        "depths": None,
        "embed_dim": None,
        "drop_path": 0.3,
        "width": 512,
        "dropout": 0.1,
        "auxiliary": True,
        "head": "A",
        "activation": "none",
    },
    small={"depths": [2, 2, 2, 2], "embed_dim": 32, "drop_path": 0.1, "width": 64},
    has_dropout=True,
    # The classifier's last norm, kept so that its weights load whole.
    idle=("encoder.body.norm.*",),
    deviations=deviations_of(SwinUPerNet),
)
