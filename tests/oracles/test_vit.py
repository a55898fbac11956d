"""ViT against transformers', torchvision's and timm's; SETR's layers against transformers'."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from parity import assert_same, fill, freeze, image, ours
from parity_vit import CLASSES, DEPTH, SETR, SIDE, VIT, build_setr, build_vit
from segdesk.nn.encoders import import_timm
from segdesk.nn.torchvision_compat import import_transforms

import_transforms()
from torchvision.models import VisionTransformer  # noqa: E402
from transformers import ViTConfig, ViTForImageClassification, ViTModel  # noqa: E402

CHANNELS, HEADS = 192, 3

#: Theirs to ours, without the last part of a name.
TRANSFORMERS = (
    (r"^vit\.", ""),
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layers\.", "blocks."),
    (r"attention\.o_proj\.", "attn.proj."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
TORCHVISION = (
    (r"^class_token", "cls_token"),
    (r"^encoder\.pos_embedding", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"self_attention\.in_proj_", "attn.qkv."),
    (r"self_attention\.out_proj\.", "attn.proj."),
    (r"ln_1\.", "norm1."),
    (r"ln_2\.", "norm2."),
    (r"mlp\.0\.", "mlp.fc1."),
    (r"mlp\.3\.", "mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
)


def classifier(network: nn.Module) -> dict[str, Tensor]:
    """Return our weights under timm's names; the head's convolution is its linear layer."""
    weights = dict(network.encoder.body.state_dict())
    output = network.head.branches[0].output
    return weights | {"head.weight": output.weight[:, :, 0, 0], "head.bias": output.bias}


def moved(
    weights: dict[str, Tensor], names: list[str], renamed: tuple[tuple[str, str], ...]
) -> dict[str, Tensor]:
    """Give our weights their names; every one of ours is used, and once."""
    result, used = {}, []
    for name in names:
        third = re.search(r"attention\.([qkv])_proj\.(weight|bias)$", name)
        own = name if third is None else name.replace(f"attention.{third[1]}_proj", "attn.qkv")
        for pattern, replacement in renamed:
            own = re.sub(pattern, replacement, own)
        tensor = weights[own]
        # timm keeps queries, keys and values in one matrix, in this order.
        result[name] = tensor if third is None else tensor.chunk(3)["qkv".index(third[1])]
        used.append(own if third is None else f"{own} {third[1]}")
    assert len(used) == len(set(used))
    assert {name.split(" ")[0] for name in used} == set(weights)
    return result


def config() -> ViTConfig:
    return ViTConfig(
        hidden_size=CHANNELS,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=4 * CHANNELS,
        image_size=SIDE,
        num_labels=CLASSES,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )


def test_vit_is_that_of_transformers() -> None:
    oracle = ViTForImageClassification(config()).eval()
    weights = classifier(fill(build_vit()))
    oracle.load_state_dict(moved(weights, list(oracle.state_dict()), TRANSFORMERS), strict=True)
    with torch.inference_mode():
        answer = oracle(image(VIT.shape), output_attentions=True)
    rows = torch.stack([layer[:, :, 0, 1:] for layer in answer.attentions], 1)
    expected = torch.cat((answer.logits, rows.flatten(1)), 1)
    found = ours(VIT)
    assert_same(found[:, :CLASSES], answer.logits)
    assert_same(found[:, CLASSES:], rows.flatten(1))
    freeze(VIT, expected)


def test_vit_classifies_as_torchvisions_and_timms() -> None:
    weights = classifier(fill(build_vit()))
    theirs = VisionTransformer(SIDE, 16, DEPTH, HEADS, CHANNELS, 4 * CHANNELS, num_classes=CLASSES)
    theirs.load_state_dict(moved(weights, list(theirs.state_dict()), TORCHVISION), strict=True)
    timms = import_timm().create_model(
        "vit_tiny_patch16_224", depth=DEPTH, img_size=SIDE, num_classes=CLASSES
    )
    timms.load_state_dict(weights, strict=True)
    found = ours(VIT)[:, :CLASSES]
    for oracle in (theirs.eval(), timms.eval()):
        with torch.inference_mode():
            assert_same(found, oracle(image(VIT.shape)))


def test_setr_takes_the_layers_features_before_any_norm() -> None:
    oracle = ViTModel(config(), add_pooling_layer=False).eval()
    weights = dict(fill(build_setr()).encoder.body.state_dict())
    # The last norm is none of SETR's, and none of what is compared.
    weights |= {f"norm.{name}": torch.ones(CHANNELS) for name in ("weight", "bias")}
    oracle.load_state_dict(moved(weights, list(oracle.state_dict()), TRANSFORMERS), strict=True)
    layers: list[Tensor] = []
    for layer in oracle.layers:
        layer.register_forward_hook(lambda _layer, _inputs, output: layers.append(output))
    with torch.inference_mode():
        oracle(image(SETR.shape))
    grid = SIDE // 16
    maps = [tokens[:, 1:].transpose(1, 2).unflatten(2, (grid, grid)) for tokens in layers]
    assert len(maps) == DEPTH
    expected = torch.cat(maps, 1)
    assert_same(ours(SETR), expected)
    freeze(SETR, expected)
