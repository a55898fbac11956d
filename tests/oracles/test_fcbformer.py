"""FCBFormer: timm's PVTv2 against transformers', and the rest against the paper's arithmetic.

The rest is written out here with torch's functions alone; only the names of the weights
are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parity import assert_same, fill, freeze, image, ours
from parity_fcbformer import PVT, REST, join
from segdesk.nn.torchvision_compat import import_transforms

import_transforms()
from transformers import PvtV2Backbone, PvtV2Config  # noqa: E402

RENAMED = (
    (r"^encoder\.layers\.0\.patch_embedding\.", "body.patch_embed."),
    (r"^encoder\.layers\.(\d)\.patch_embedding\.", r"body.stages.\1.downsample."),
    (r"^encoder\.layers\.(\d)\.", r"body.stages.\1."),
    (r"attention\.layer_norm\.", "attn.norm."),
    (r"attention\.spatial_reduction\.", "attn.sr."),
    (r"attention\.query\.", "attn.q."),
    (r"attention\.proj\.", "attn.proj."),
    (r"layer_norm_(\d)\.", r"norm\1."),
    (r"layer_norm\.", "norm."),
    (r"dwconv\.dwconv\.", "dwconv."),
    (r"dense(\d)\.", r"fc\1."),
)  # fmt: skip


def moved(weights: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give our weights their names; every one of ours is used, and once."""
    result, used = {}, []
    for name in theirs:
        half = re.search(r"attention\.(key|value)\.(weight|bias)$", name)
        own = name if half is None else name.replace(f"attention.{half[1]}", "attn.kv")
        for pattern, replacement in RENAMED:
            own = re.sub(pattern, replacement, own)
        tensor = weights[own]
        if half is not None:
            # timm keeps keys and values in one matrix, the keys on top.
            tensor = tensor.chunk(2)[("key", "value").index(half[1])]
        result[name] = tensor
        used.append(own if half is None else f"{own} {half[1]}")
    assert len(used) == len(set(used))
    assert {name.split(" ")[0] for name in used} == set(weights)
    return result


def test_pvt_v2_is_that_of_transformers() -> None:
    config = PvtV2Config(
        hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2], num_attention_heads=[1, 2, 5, 8],
        mlp_ratios=[8, 8, 4, 4], sr_ratios=[8, 4, 2, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    oracle = PvtV2Backbone(config).eval()
    weights = fill(PVT.build()).state_dict()
    oracle.load_state_dict(moved(weights, oracle.state_dict()), strict=True)
    with torch.inference_mode():
        theirs = join(list(oracle(image(PVT.shape)).feature_maps))
    assert_same(ours(PVT), theirs)
    freeze(PVT, theirs)


class Rest:
    """Both branches and the prediction head: group norms of 32 groups, SiLU, 3x3 convolutions."""

    WIDTH, FEATURES, GROUPS = 32, 64, 32
    MULTIPLES = (1, 1, 2, 2, 4, 4)

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights
        self.unused = set(weights)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        picture, *levels = inputs
        coarse = enlarged(self.transformer(levels), 4)
        fine = self.convolutional(picture)
        assert coarse.shape[1:] == (self.FEATURES, *picture.shape[2:])
        assert fine.shape[1:] == (self.WIDTH, *picture.shape[2:])
        return self.two_blocks("prediction", torch.cat([coarse, fine], 1))

    def transformer(self, levels: Sequence[Tensor]) -> Tensor:
        """Local emphasis of each level, then stepwise aggregation from the coarsest on."""
        emphasised = [
            enlarged(self.two_blocks(f"transformer.emphasis.{i}", level), 2**i)
            for i, level in enumerate(levels)
        ]
        fused = emphasised[3]
        for i in (2, 1, 0):
            both = torch.cat([emphasised[i], fused], 1)
            fused = self.two_blocks(f"transformer.aggregation.{i}", both)
        return fused

    def convolutional(self, picture: Tensor) -> Tensor:
        """Six sizes down, two blocks each, and up again, three each with what was kept."""
        kept = [self.conv("convolutional.stem", picture)]
        names = (f"convolutional.down.{i}" for i in range(17))
        for level, multiple in enumerate(self.MULTIPLES):
            if level > 0:
                kept.append(self.conv(next(names), kept[-1], stride=2))
            for _ in range(2):
                kept.append(self.block(next(names), kept[-1]))
            assert kept[-1].shape[1] == multiple * self.WIDTH
        x = self.two_blocks("convolutional.middle", kept[-1])
        for level in range(6):
            if level > 0:
                x = self.conv(f"convolutional.enlarge.{level - 1}.1", enlarged(x, 2))
            for i in range(3):
                x = self.block(f"convolutional.up.{level}.{i}", torch.cat([x, kept.pop()], 1))
        assert kept == []
        return x

    def two_blocks(self, name: str, x: Tensor) -> Tensor:
        return self.block(f"{name}.1", self.block(f"{name}.0", x))

    def block(self, name: str, x: Tensor) -> Tensor:
        """Norm, SiLU and convolution, twice, beside the input as it is or through a 1x1."""
        change = x
        for half in ("first", "second"):
            change = F.group_norm(change, self.GROUPS, **self.take(f"{name}.{half}.0"))
            change = self.conv(f"{name}.{half}.2", change * torch.sigmoid(change))
        if change.shape[1] != x.shape[1]:
            x = F.conv2d(x, **self.take(f"{name}.skip"))
        return x + change

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, **self.take(name), stride=stride, padding=1)

    def take(self, name: str) -> dict[str, Any]:
        self.unused -= {f"{name}.weight", f"{name}.bias"}
        return {part: self._weights[f"{name}.{part}"] for part in ("weight", "bias")}


def enlarged(x: Tensor, times: int) -> Tensor:
    """Repeat every pixel: the nearest neighbour."""
    return x.repeat_interleave(times, 2).repeat_interleave(times, 3)


def test_all_behind_pvt_v2_is_as_the_paper_says() -> None:
    oracle = Rest(fill(REST.build()).state_dict())
    with torch.inference_mode():
        theirs = REST.run(oracle, image(REST.shape))
    assert oracle.unused == set()
    assert_same(ours(REST), theirs)
    freeze(REST, theirs)
