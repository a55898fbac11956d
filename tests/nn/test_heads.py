from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdesk.nn.heads import (
    CBAM,
    Activation,
    ChannelAttention,
    Head,
    HeadConfig,
    HeadKind,
    SpatialAttention,
)
from segdesk.nn.weights import count_parameters

MEANING: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "tanh": torch.tanh,
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "selu": F.selu,
    "gelu": F.gelu,
}


def build(
    kind: HeadKind, channels: int, classes: int, activation: Activation = Activation.NONE
) -> Head:
    return Head(HeadConfig(classes, kind, activation), channels)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(64, 680), (128, 2284), (256, 8564), (512, 33412), (2048, 526564)],
)
def test_cbam_has_the_parameters_of_its_authors_code(channels: int, expected: int) -> None:
    assert count_parameters(CBAM(channels)) == expected


def test_channel_gate_by_hand() -> None:
    """With weights of one, each unit gives sigmoid(mean + max) of the only channel its share."""
    gate = ChannelAttention(1, reduction=1)
    for layer in gate.mlp:
        if isinstance(layer, nn.Linear):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    units = len(gate.mlp[0].weight)
    expected = x * torch.sigmoid(torch.tensor(units * (3.0 + 6.0)))
    torch.testing.assert_close(gate(x), expected)


def test_spatial_gate_sees_maximum_and_mean_of_channels() -> None:
    gate = SpatialAttention(torch.sigmoid).eval()
    nn.init.zeros_(gate.conv.weight)
    with torch.no_grad():
        gate.conv.weight[0, 0, 3, 3] = 1.0  # the maximum
        gate.conv.weight[0, 1, 3, 3] = 10.0  # the mean
    x = torch.rand(1, 4, 5, 5)
    pooled = x.amax(1) + 10 * x.mean(1)
    expected = x * torch.sigmoid(pooled / (1 + 1e-5) ** 0.5)[:, None]
    torch.testing.assert_close(gate(x), expected)


@pytest.mark.parametrize("channels", [8, 16, 64])
def test_the_channel_gate_learns_however_it_is_drawn(channels: int) -> None:
    """Features behind a ReLU are never negative; a unit that none switches on would stay off."""
    for seed in range(20):
        torch.manual_seed(seed)
        gate = ChannelAttention(channels)
        gate(torch.randn(2, channels, 8, 8).relu()).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in gate.parameters()), seed


@pytest.mark.parametrize("channels", [8, 16, 64, 256])
def test_the_channel_gate_begins_half_open(channels: int) -> None:
    """No channel is shut off, or let through whole, by how the gate is drawn."""
    torch.manual_seed(0)
    x = torch.rand(4, channels, 16, 16) * 3
    open_by = [(ChannelAttention(channels)(x) / x).detach() for _ in range(10)]
    low, high = torch.stack(open_by).flatten()[::50].quantile(torch.tensor([0.02, 0.98]))
    assert low > 0.08
    assert high < 0.92


def test_the_spatial_gate_of_head_d_turns_the_sign_of_features() -> None:
    """Where C's gate closes, at sigmoid(-20), D's is at tanh(-20) = -1."""
    x = torch.rand(1, 4, 5, 5)
    kept, heads = [], [build(kind, 4, 2).eval() for kind in (HeadKind.C, HeadKind.D)]
    heads[1].load_state_dict(heads[0].state_dict())
    for head in heads:
        channel, spatial = head.branches[0].attention
        nn.init.zeros_(spatial.conv.weight)
        nn.init.constant_(spatial.norm.bias, -20.0)
        kept.append((head.branches[0].attention(x), channel(x)))
    torch.testing.assert_close(kept[0][0], torch.zeros_like(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(kept[1][0], -kept[1][1])


def test_one_position_of_one_image_can_be_learnt_from() -> None:
    head = build(HeadKind.C, 16, 2).train()
    with torch.no_grad():
        expected = head.eval()(torch.ones(1, 16, 1, 1))
        torch.testing.assert_close(head.train()(torch.ones(1, 16, 1, 1)), expected)


@pytest.mark.parametrize("activation", list(Activation))
def test_an_activation_does_to_the_maps_what_its_name_says(activation: Activation) -> None:
    torch.manual_seed(0)
    plain = build(HeadKind.C, 16, 3).eval()
    with_activation = build(HeadKind.C, 16, 3, activation).eval()
    with_activation.load_state_dict(plain.state_dict())
    x = 3 * torch.randn(2, 16, 6, 5)
    maps = plain(x)
    assert (maps < 0).any()
    torch.testing.assert_close(with_activation(x), MEANING[activation](maps))


@pytest.mark.parametrize("classes", [2, 5])
def test_head_c_gives_each_class_weights_of_its_own(classes: int) -> None:
    torch.manual_seed(0)
    head = build(HeadKind.C, 16, classes).eval()
    convolutions = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 1]
    outputs = [m for m in convolutions if m.in_channels == 16]
    assert len({m.weight.data_ptr() for m in outputs}) == classes
    x = torch.randn(1, 16, 4, 4)
    before = head(x)
    with torch.no_grad():
        outputs[1].weight += 1
        outputs[1].bias += 1
    changed = (head(x) != before).flatten(2).any(2)[0]
    assert changed.tolist() == [k == 1 for k in range(classes)]


def test_head_a_is_one_convolution() -> None:
    assert count_parameters(build(HeadKind.A, 64, 21)) == 64 * 21 + 21
