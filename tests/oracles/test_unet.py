from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.attentionunet import AttentionBlock, ConvBlock
from monai.networks.nets.basic_unet import Down, TwoConv, UpCat
from torch import Tensor, nn

from parity import Case, assert_same, fill, freeze, image, ours
from parity_unet import GRID, PADDED, SAME_RESOLUTION, VALID, VALID_WIDTHS, WIDTHS
from segdesk.nn.torchvision_compat import import_transforms

import_transforms()
from torchvision.transforms.functional import center_crop  # noqa: E402

#: Two convolutions with batch norm and ReLU: our names, theirs.
BLOCK = {"0.0": "conv.0.conv", "0.1": "conv.0.adn.N", "1.0": "conv.1.conv", "1.1": "conv.1.adn.N"}
PLAIN_BLOCK = {"0": "conv_0.conv", "1": "conv_0.adn.N", "3": "conv_1.conv", "4": "conv_1.adn.N"}


class Weights:
    """Our weights, filled as the comparison's are, each to be used once."""

    def __init__(self, case: Case) -> None:
        self.left = dict(fill(case.build()).state_dict())

    def into(self, module: nn.Module, prefix: str, names: dict[str, str]) -> nn.Module:
        """Move what begins with ``prefix`` into a module of theirs, under their names."""
        state = {}
        for mine, theirs in names.items():
            start = ".".join(part for part in (prefix, mine) if part) + "."
            for key in [key for key in self.left if key.startswith(start)]:
                state[f"{theirs}.{key.removeprefix(start)}".lstrip(".")] = self.left.pop(key)
        module.load_state_dict(state, strict=True)
        return module.eval()

    def pop(self, name: str) -> Tensor:
        return self.left.pop(name)


def compare(case: Case, theirs: Callable[[Tensor], Tensor], weights: Weights) -> None:
    assert weights.left == {}, "not used"
    with torch.inference_mode():
        expected = theirs(image(case.shape))
    found = ours(case)
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(f"{case.name}: relative difference {difference:.2g}")  # noqa: T201
    assert_same(found, expected)
    freeze(case, expected.contiguous())


def output(weights: Weights, width: int, number: int = 0) -> nn.Module:
    return weights.into(nn.Conv2d(width, 2, 1), f"head.branches.{number}.output", {"": ""})


def prefixed(names: dict[str, str], prefix: str) -> dict[str, str]:
    return {mine: prefix + theirs for mine, theirs in names.items()}


def test_the_padded_unet_is_monais_blocks() -> None:
    weights = Weights(PADDED)
    kind = {"spatial_dims": 2, "act": "relu", "norm": "batch", "bias": False}
    first = weights.into(
        TwoConv(in_chns=3, out_chns=WIDTHS[0], **kind), "encoder.blocks.0", PLAIN_BLOCK
    )
    downs = [
        weights.into(
            Down(in_chns=i, out_chns=o, **kind),
            f"encoder.blocks.{level}",
            prefixed(PLAIN_BLOCK, "convs."),
        )
        for level, (i, o) in enumerate(pairwise(WIDTHS), 1)
    ]
    ups = [
        weights.into(
            UpCat(in_chns=i, cat_chns=o, out_chns=o, **kind),
            "decoder",
            {
                f"ups.{level}": "upsample.deconv",
                **{f"blocks.{level}.{k}": f"convs.{v}" for k, v in PLAIN_BLOCK.items()},
            },
        )
        for level, (i, o) in enumerate(pairwise(reversed(WIDTHS)))
    ]
    last = output(weights, WIDTHS[0])

    def theirs(x: Tensor) -> Tensor:
        features = [first(x)]
        for down in downs:
            features.append(down(features[-1]))
        x = features.pop()
        for up in ups:
            x = up(x, features.pop())
        return last(x)

    compare(PADDED, theirs, weights)


def test_the_unet_of_2015_is_monais_convolutions_and_torchvisions_crop() -> None:
    weights = Weights(VALID)

    def block(inputs: int, outputs: int, prefix: str) -> nn.Module:
        layers = [
            Convolution(2, i, outputs, padding=0, act="relu", norm=None, adn_ordering="A")
            for i in (inputs, outputs)
        ]
        return weights.into(nn.Sequential(*layers), prefix, {"0": "0.conv", "2": "1.conv"})

    befores = (3, *VALID_WIDTHS[:-1])
    downs = [
        block(i, o, f"encoder.blocks.{level}")
        for level, (i, o) in enumerate(zip(befores, VALID_WIDTHS, strict=True))
    ]
    steps = list(enumerate(pairwise(reversed(VALID_WIDTHS))))
    ups = [
        weights.into(nn.ConvTranspose2d(i, o, 2, 2), f"decoder.ups.{level}", {"": ""})
        for level, (i, o) in steps
    ]
    blocks = [block(2 * o, o, f"decoder.blocks.{level}") for level, (_, o) in steps]
    last = output(weights, VALID_WIDTHS[0])

    def theirs(x: Tensor) -> Tensor:
        features = [downs[0](x)]
        for down in downs[1:]:
            features.append(down(F.max_pool2d(features[-1], 2)))
        x = features.pop()
        for up, join in zip(ups, blocks, strict=True):
            x = up(x)
            x = join(torch.cat([center_crop(features.pop(), list(x.shape[-2:])), x], dim=1))
        return last(x)

    compare(VALID, theirs, weights)


def attention_encoder(weights: Weights) -> Callable[[Tensor], list[Tensor]]:
    befores = (3, *WIDTHS[:-1])
    blocks = [
        weights.into(ConvBlock(2, i, o), f"encoder.blocks.{level}", BLOCK)
        for level, (i, o) in enumerate(zip(befores, WIDTHS, strict=True))
    ]

    def encode(x: Tensor) -> list[Tensor]:
        features = [blocks[0](x)]
        for block in blocks[1:]:
            features.append(block(F.max_pool2d(features[-1], 2)))
        return features

    return encode


def test_the_2d_port_of_attention_unet_is_monais_blocks() -> None:
    weights = Weights(SAME_RESOLUTION)
    encode = attention_encoder(weights)
    steps = list(enumerate(pairwise(reversed(WIDTHS))))
    ups = [
        weights.into(
            Convolution(2, i, o, act="relu", norm="batch", adn_ordering="NDA"),
            f"decoder.ups.{level}.1",
            {"0": "conv", "1": "adn.N"},
        )
        for level, (i, o) in steps
    ]
    names = {"phi": "W_g", "theta": "W_x", "psi": "psi"}
    gates = [
        weights.into(
            AttentionBlock(2, f_int=o // 2, f_g=o, f_l=o),
            f"decoder.gates.{level}",
            {f"{k}.0": f"{v}.0.conv" for k, v in names.items()}
            | {f"{k}.1": f"{v}.1" for k, v in names.items()},
        )
        for level, (_, o) in steps
    ]
    blocks = [
        weights.into(ConvBlock(2, 2 * o, o), f"decoder.blocks.{level}", BLOCK)
        for level, (_, o) in steps
    ]
    last = output(weights, WIDTHS[0])

    def theirs(x: Tensor) -> Tensor:
        features = encode(x)
        x = features.pop()
        for up, gate, block in zip(ups, gates, blocks, strict=True):
            x = up(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
            x = block(torch.cat([gate(g=x, x=features.pop()), x], dim=1))
        return last(x)

    compare(SAME_RESOLUTION, theirs, weights)


def test_the_papers_attention_unet_is_monais_blocks_and_torchs_functions() -> None:
    weights = Weights(GRID)
    encode = attention_encoder(weights)
    signal_layer = weights.into(
        Convolution(2, WIDTHS[-1], WIDTHS[-1], kernel_size=1, act="relu", norm="batch"),
        "decoder.signal",
        {"0": "conv", "1": "adn.N"},
    )
    blocks = [
        weights.into(ConvBlock(2, i + o, o), f"decoder.blocks.{level}", BLOCK)
        for level, (i, o) in enumerate(pairwise(reversed(WIDTHS)))
    ]
    lasts = [output(weights, width, number) for number, width in enumerate(WIDTHS[:-1])]
    gates = [
        {k: weights.pop(k) for k in list(weights.left) if k.startswith(f"decoder.gates.{level}.")}
        for level in range(3)
    ]

    def enlarge(x: Tensor, factor: int = 2) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    def gated(level: int, x: Tensor, g: Tensor) -> Tensor:
        w = {k.removeprefix(f"decoder.gates.{level}."): v for k, v in gates[level].items()}
        joined = F.conv2d(x, w["theta.weight"], stride=2)
        joined = joined + F.conv2d(g, w["phi.weight"], w["phi.bias"])
        attention = F.conv2d(joined.clamp(min=0), w["psi.weight"], w["psi.bias"]).sigmoid()
        mixed = F.conv2d(enlarge(attention) * x, w["project.0.weight"], w["project.0.bias"])
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(mixed, *(w[f"project.1.{k}"] for k in names))

    def theirs(x: Tensor) -> Tensor:
        one, two, three, four, bridge = encode(x)
        four = blocks[0](torch.cat([gated(0, four, signal_layer(bridge)), enlarge(bridge)], 1))
        three = blocks[1](torch.cat([gated(1, three, four), enlarge(four)], 1))
        two = blocks[2](torch.cat([gated(2, two, three), enlarge(three)], 1))
        one = blocks[3](torch.cat([one, enlarge(two)], 1))
        maps = [last(f) for last, f in zip(lasts, (one, two, three, four), strict=True)]
        return maps[0] + enlarge(maps[1], 2) + enlarge(maps[2], 4) + enlarge(maps[3], 8)

    compare(GRID, theirs, weights)
