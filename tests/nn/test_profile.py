from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.contract import build
from segdesk.nn.encoders import TimmEncoder
from segdesk.nn.profile import Profile, profile, typical_side
from segdesk.nn.registry import architectures, find_architecture
from segdesk.nn.spec import ModelSpec


def spec_of(network: type[nn.Module], stride: int = 1, **more: Any) -> ModelSpec:
    """Wrap a network that is built from channels and classes."""
    return ModelSpec(
        name="net", title="Net", year=2000, reference="", build=network, stride=stride,
        options={}, **more,
    )  # fmt: skip


class Layers(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)


def cost(*layers: nn.Module, channels: int = 3) -> Profile:
    """Profile layers in a row; they are built on the CPU and copied to where it asks."""

    def make(inputs: int, classes: int) -> nn.Module:
        return Layers(*layers).to(torch.get_default_device())

    spec = spec_of(make)  # type: ignore[arg-type]
    return profile(spec, {}, channels)


def per_pixel(number: int) -> float:
    return number / 1e6


def test_a_convolution() -> None:
    found = cost(nn.Conv2d(3, 8, 3, padding=1))
    assert found.parameters == 3 * 8 * 9 + 8
    assert per_pixel(found.multiply_adds) == 3 * 8 * 9 == 216
    assert per_pixel(found.activation_bytes) == 8 * 4
    assert found.side == 512


@pytest.mark.parametrize(
    ("layer", "multiply_adds", "values"),
    [
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), 4 * 9, 4),
        (nn.Conv2d(4, 8, 1, stride=2), 4 * 8 / 4, 8 / 4),
        (nn.Conv2d(4, 8, 3, padding=2, dilation=2, bias=False), 4 * 8 * 9, 8),
        (nn.ConvTranspose2d(4, 2, 2, stride=2), 4 * 2 * 4, 2 * 4),
        (nn.BatchNorm2d(4), 0, 4),
        (nn.ReLU(), 0, 4),
        (nn.MaxPool2d(2), 0, 4 / 4),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 0, 4 * 4),
    ],
    ids=["by channel", "stride", "dilation", "transposed", "norm", "relu", "pool", "bilinear"],
)
def test_a_layer(layer: nn.Module, multiply_adds: float, values: float) -> None:
    found = cost(layer, channels=4)
    assert per_pixel(found.multiply_adds) == pytest.approx(multiply_adds)
    assert per_pixel(found.activation_bytes) == pytest.approx(4 * values)


def test_a_layer_that_makes_nothing_new_costs_no_memory() -> None:
    for layer in (nn.Identity(), nn.Dropout(0.5), nn.Dropout2d(0.5), nn.ReLU(inplace=True)):
        assert cost(nn.Conv2d(3, 8, 1), layer).activation_bytes == 8 * 4 * 1e6


def test_frozen_weights_are_not_counted_as_trainable() -> None:
    layer = nn.Conv2d(3, 8, 1)
    assert layer.bias is not None
    layer.bias.requires_grad_(False)
    assert cost(layer).parameters == 24


class Attention(nn.Module):
    """Patches of 32 pixels; linear layers to 3 x 8, attention of 2 heads, linear back."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(inputs, 8, 32, stride=32)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class NeedsNumbers(Attention):
    """Cannot run on the meta device."""

    def forward(self, x: Tensor) -> Tensor:
        assert float(x.sum()) == 0.0
        return super().forward(x)


class NeedsNumpy(Attention):
    """Cannot be built on the meta device."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(inputs, classes)
        self.register_buffer("scale", torch.from_numpy(torch.ones(2).numpy()))


@pytest.mark.parametrize("network", [Attention, NeedsNumbers, NeedsNumpy])
def test_attention_is_counted_wherever_it_runs(network: type[nn.Module]) -> None:
    found = profile(spec_of(network, stride=32), {}, channels=3, classes=5)
    tokens = (512 // 32) ** 2
    # Every query with every key, then every weight with every value: 8 numbers each.
    attention = 2 * tokens * tokens * 8
    linear = tokens * (3 * 32 * 32 * 8 + 8 * 24 + 8 * 5)
    assert found.multiply_adds == round((attention + linear) * 1e6 / 512**2)
    assert found.activation_bytes == round(4 * tokens * (8 + 24 + 5) * 1e6 / 512**2)


class TorchAttention(nn.Module):
    """torch's own layer, which has a shortcut that no counter sees."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(inputs, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.avg_pool2d(x, 32).flatten(2).transpose(1, 2)
        mixed: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return mixed


class TorchAttentionWithNumbers(TorchAttention):
    def forward(self, x: Tensor) -> Tensor:
        assert float(x.sum()) == 0.0
        return super().forward(x)


@pytest.mark.parametrize("network", [TorchAttention, TorchAttentionWithNumbers])
def test_torchs_own_attention_is_counted(network: type[nn.Module]) -> None:
    was_fast = torch.backends.mha.get_fastpath_enabled()
    found = profile(spec_of(network), {}, channels=4)
    tokens = (512 // 32) ** 2
    expected = tokens * 4 * 4 * 4 + 2 * tokens * tokens * 4
    assert found.multiply_adds == round(expected * 1e6 / 512**2)
    assert torch.backends.mha.get_fastpath_enabled() is was_fast


@pytest.mark.parametrize(
    ("stride", "least", "side"),
    [(1, 1, 512), (16, 1, 512), (48, 1, 528), (96, 1, 480), (224, 448, 448), (32, 600, 608),
     (2000, 1, 2000)],
)  # fmt: skip
def test_the_side_is_one_the_architecture_takes(stride: int, least: int, side: int) -> None:
    assert typical_side(spec_of(nn.Identity, stride, min_size=least)) == side


def test_the_costs_are_those_of_a_megapixel_whatever_the_side() -> None:
    plain = profile(spec_of(OneConvolution), {})
    odd = profile(spec_of(OneConvolution, stride=96), {})
    assert (plain.side, odd.side) == (512, 480)
    assert plain.multiply_adds == odd.multiply_adds == 27 * 2 * 1_000_000


class OneConvolution(nn.Conv2d):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__(inputs, classes, 3, padding=1)


def unet_multiply_adds(width: int, channels: int, classes: int) -> float:
    """Return the U-Net's multiply-adds per pixel, worked out from the paper's figure 1."""
    total = 0.0
    widths = [width * 2**level for level in range(5)]
    for level, (before, here) in enumerate(zip([channels, *widths], widths, strict=False)):
        total += 9 * (before * here + here * here) / 4**level
    for level in range(4):
        here = widths[level]
        total += 2 * here * here / 4**level  # each pixel of 2x2 has a weight of its own
        total += 9 * (2 * here * here + here * here) / 4**level
    return total + width * classes


def test_the_unet_has_the_size_it_is_known_for() -> None:
    spec = find_architecture("unet")
    paper = profile(spec, {})
    assert paper.parameters == 31_037_698
    assert per_pixel(paper.multiply_adds) == unet_multiply_adds(64, 3, 2) == 735_040
    small = profile(spec, {**spec.small, "head": "A"}, channels=1, classes=4)
    assert per_pixel(small.multiply_adds) == unet_multiply_adds(16, 1, 4)
    assert paper.encoder == ""


class OnResNet(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.encoder = TimmEncoder("resnet50", inputs, [4])

    def forward(self, x: Tensor) -> Tensor:
        [features] = self.encoder(x)
        assert isinstance(features, Tensor)
        return features


def test_resnet_50_costs_what_its_paper_says() -> None:
    found = profile(spec_of(OnResNet, stride=32), {})
    assert found.encoder == "resnet50"
    assert found.parameters == 25_557_032 - 2_049_000  # without the classifier
    # He et al., table 1: 3.8e9 at 224 x 224, with the stride in the 1x1; in the 3x3 4.1e9.
    assert found.multiply_adds * 224**2 / 1e6 == pytest.approx(4.09e9, rel=0.01)


@pytest.mark.parametrize("name", list(architectures()))
def test_every_architecture_has_the_parameters_it_has_on_the_cpu(name: str) -> None:
    spec = architectures()[name]
    small = profile(spec, spec.small)
    network = build(spec)
    assert small.parameters == sum(p.numel() for p in network.parameters() if p.requires_grad)
    paper = profile(spec, {})
    for more, less in (
        (paper.parameters, small.parameters),
        (paper.multiply_adds, small.multiply_adds),
        (paper.activation_bytes, small.activation_bytes),
    ):
        assert more > less > 0


def test_a_network_that_cannot_be_built_says_why() -> None:
    with pytest.raises(ValueError, match="Z"):
        profile(find_architecture("unet"), {"head": "Z"})


def test_nothing_is_computed_and_nothing_drawn() -> None:
    """A network that fits no computer is profiled like any other."""
    state = torch.random.get_rng_state()
    huge = profile(find_architecture("unet"), {"width": 4096})
    assert huge.parameters > 100_000_000_000
    assert torch.equal(torch.random.get_rng_state(), state)
