"""UPerNet on Swin against transformers', and Swin against torchvision's."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from parity import Case, assert_same, fill, freeze, image, ours
from parity_swin_upernet import (
    CASES,
    CHANNELS,
    CLASSES,
    DEPTHS,
    STAGES,
    WIDTH,
    build,
    sampled,
    thinned,
)
from segdesk.nn.torchvision_compat import import_transforms

import_transforms()
from torchvision.models.swin_transformer import SwinTransformer  # noqa: E402
from transformers import (  # noqa: E402
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

HEADS = [1, 2, 4, 8]

#: Theirs to ours.
RENAMED = (
    (r"^backbone\.swin\.embeddings\.", "encoder.body.patch_embed."),
    (r"patch_embeddings\.projection\.", "proj."),
    (r"^backbone\.swin\.encoder\.layers\.(\d)\.blocks\.", r"encoder.body.layers.\1.blocks."),
    (r"^backbone\.swin\.layernorm\.", "encoder.body.norm."),
    (r"attention\.relative_position_bias\.", "attn."),
    (r"attention\.o_proj\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"^decode_head\.psp_modules\.(\d)\.1\.", r"decoder.pooling.pools.\1.1."),
    (r"^decode_head\.bottleneck\.", "decoder.pooling.block."),
    (r"^decode_head\.lateral_convs\.(\d)\.", r"decoder.laterals.\1."),
    (r"^decode_head\.fpn_convs\.(\d)\.", r"decoder.smooth.\1."),
    (r"^decode_head\.fpn_bottleneck\.", "decoder.join."),
    (r"^decode_head\.classifier\.", "head.branches.0.output."),
    (r"^auxiliary_head\.convs\.0\.", "decoder.auxiliary.0."),
    (r"^auxiliary_head\.classifier\.", "decoder.auxiliary.2."),
    (r"\.conv\.(weight|bias)$", r".0.\1"),
    (r"\.batch_norm\.", ".1."),
)  # fmt: skip


def name_of_ours(theirs: str) -> str:
    # Theirs merges patches at the end of a stage, ours at the beginning of the next.
    merge = re.match(r"backbone\.swin\.encoder\.layers\.(\d)\.downsample\.(.*)", theirs)
    if merge:
        return f"encoder.body.layers.{int(merge[1]) + 1}.downsample.{merge[2]}"
    norm = re.match(r"backbone\.hidden_states_norms\.stage(\d)\.(.*)", theirs)
    if norm:
        return f"encoder.norms.{int(norm[1]) - 1}.{norm[2]}"
    for pattern, replacement in RENAMED:
        theirs = re.sub(pattern, replacement, theirs)
    return theirs


def moved(weights: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Give our weights their names; every one of ours is used, and once."""
    result, used = {}, []
    for name in names:
        third = re.search(r"attention\.([qkv])_proj\.(weight|bias)$", name)
        if third is None:
            own = name_of_ours(name)
            result[name] = weights[own]
            used.append(own)
        else:
            own = name_of_ours(re.sub(r"attention\.[qkv]_proj\.", "attn.qkv.", name))
            result[name] = weights[own].chunk(3)["qkv".index(third[1])]
            used.append(f"{own} {third[1]}")
    assert len(used) == len(set(used))
    assert {name.split(" ")[0] for name in used} == set(weights)
    return result


@pytest.fixture(scope="module")
def oracle() -> nn.Module:
    swin = SwinConfig(
        embed_dim=CHANNELS,
        depths=DEPTHS,
        num_heads=HEADS,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=swin,
        hidden_size=WIDTH,
        auxiliary_in_channels=4 * CHANNELS,
        auxiliary_channels=WIDTH // 2,
        num_labels=CLASSES,
    )
    network = UperNetForSemanticSegmentation(config).eval()
    weights = fill(build()).state_dict()
    network.load_state_dict(moved(weights, list(network.state_dict())), strict=True)
    return network


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_that_of_transformers(case: Case, oracle: nn.Module) -> None:
    x = image(case.shape)
    with torch.inference_mode():
        features = oracle.backbone(x).feature_maps
        outputs = [oracle(x).logits, oracle.auxiliary_head(features)]
    expected = thinned(torch.cat([_enlarged(maps, x) for maps in outputs], 1))
    assert_same(ours(case), expected)
    freeze(case, expected)


def _enlarged(maps: Tensor, x: Tensor) -> Tensor:
    return nn.functional.interpolate(maps, x.shape[-2:], mode="bilinear")


def name_at_torchvision(ours: str) -> str:
    """Return the name that a parameter of our encoder's body has there."""
    for own, theirs in (
        (r"^patch_embed\.proj\.", "features.0.0."),
        (r"^patch_embed\.norm\.", "features.0.2."),
        (r"mlp\.fc1\.", "mlp.0."),
        (r"mlp\.fc2\.", "mlp.3."),
    ):
        ours = re.sub(own, theirs, ours)
    block = re.match(r"layers\.(\d)\.blocks\.(\d)\.(.*)", ours)
    if block:
        return f"features.{2 * int(block[1]) + 1}.{block[2]}.{block[3]}"
    merge = re.match(r"layers\.(\d)\.downsample\.(.*)", ours)
    return f"features.{2 * int(merge[1])}.{merge[2]}" if merge else ours


def test_swin_is_that_of_torchvision() -> None:
    network = fill(build())
    weights = {
        name_at_torchvision(name): value
        for name, value in network.encoder.body.state_dict().items()
    }
    oracle = SwinTransformer([4, 4], CHANNELS, DEPTHS, HEADS, [7, 7], num_classes=CLASSES).eval()
    # Derived from the window's size, and kept with the weights there only.
    weights |= {
        name: value
        for name, value in oracle.state_dict().items()
        if name.endswith("relative_position_index") or name.startswith("head.")
    }
    oracle.load_state_dict(weights, strict=True)
    x = image(STAGES.shape)
    stages = []
    with torch.inference_mode():
        for position, part in enumerate(oracle.features):
            x = part(x)
            if position % 2:
                # UPerNet's own norm of the stage is no part of torchvision's network.
                normalised = network.encoder.norms[position // 2](x)
                stages.append(normalised.permute(0, 3, 1, 2))
    assert_same(ours(STAGES), sampled(stages))
