"""PVTv2 of timm, as FCBFormer has it, against transformers'."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from parity import assert_same, fill, freeze, image, ours
from parity_fcbformer import PVT, join
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
