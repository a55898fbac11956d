from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segdesk.nn.weights import count_parameters
from segdesk_models.attention_unet import (
    SPEC,
    AttentionUNet,
    EveryScale,
    GridDecoder,
    GridGate,
    SameResolutionGate,
)

pytestmark = pytest.mark.usefixtures("one_thread")
both = pytest.mark.parametrize("gates", ["grid", "same_resolution"])


def small(gates: str = "grid") -> AttentionUNet:
    torch.manual_seed(0)
    return AttentionUNet(3, 2, width=4, gates=gates).eval()


def test_a_gate_has_the_number_of_parameters_of_the_authors_code() -> None:
    with torch.device("meta"):
        gate = GridGate(256, gating=512, inner=256)
    counts = [count_parameters(m) for m in (gate.project, gate.theta, gate.phi, gate.psi)]
    assert counts == [66_304, 262_144, 131_328, 257]
    assert count_parameters(gate) == 460_033


def test_the_2d_port_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        network = AttentionUNet(3, 1, **{**SPEC.options, "gates": "same_resolution"})
    assert count_parameters(network) == 34_878_573


def test_the_papers_network_gates_the_three_coarser_skips_and_classifies_at_four_scales() -> None:
    with torch.device("meta"):
        network = AttentionUNet(3, 2, **SPEC.options)
    assert [gate.theta.weight.shape for gate in network.decoder.gates] == [
        (512, 512, 2, 2), (256, 256, 2, 2), (128, 128, 2, 2)
    ]  # fmt: skip
    assert [gate.phi.in_channels for gate in network.decoder.gates] == [1024, 512, 256]
    assert [b.output.in_channels for b in network.head.branches] == [64, 128, 256, 512]


def test_the_2d_port_gates_all_four_skips_in_half_their_channels() -> None:
    with torch.device("meta"):
        network = AttentionUNet(3, 2, gates="same_resolution")
    assert [tuple(gate.theta[0].weight.shape) for gate in network.decoder.gates] == [
        (256, 512, 1, 1), (128, 256, 1, 1), (64, 128, 1, 1), (32, 64, 1, 1)
    ]  # fmt: skip
    assert [b.output.in_channels for b in network.head.branches] == [64]


def test_an_unknown_kind_of_gates_is_refused() -> None:
    with pytest.raises(ValueError, match="closed"):
        AttentionUNet(3, 2, gates="closed")


def gate_by_hand(gate: GridGate, skip: np.ndarray[Any, Any], signal: np.ndarray[Any, Any]) -> Any:
    """The gate in numpy, for maps of 4x4 and 2x2 pixels."""
    weight = {name: value.numpy() for name, value in gate.state_dict().items()}
    joined = np.zeros((weight["theta.weight"].shape[0], 2, 2))
    for row in range(2):
        for column in range(2):
            window = skip[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            theta = (weight["theta.weight"] * window).sum((1, 2, 3))
            phi = weight["phi.weight"][:, :, 0, 0] @ signal[:, row, column] + weight["phi.bias"]
            joined[:, row, column] = np.maximum(theta + phi, 0)
    psi = np.einsum("i,ihw->hw", weight["psi.weight"][0, :, 0, 0], joined) + weight["psi.bias"][0]
    attention = 1 / (1 + np.exp(-psi))
    # Middles of the coarse pixels lie at 0.5 and 2.5: between them straight, outside constant.
    spread = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    gated = skip * (spread @ attention @ spread.T)
    mixed = np.einsum("oi,ihw->ohw", weight["project.0.weight"][:, :, 0, 0], gated)
    mixed += weight["project.0.bias"][:, None, None]
    norm = {k: weight[f"project.1.{k}"][:, None, None] for k in ("running_mean", "running_var")}
    scaled = (mixed - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5)
    return (
        scaled * weight["project.1.weight"][:, None, None] + weight["project.1.bias"][:, None, None]
    )


def test_a_gate_by_hand() -> None:
    torch.manual_seed(0)
    gate = GridGate(3, gating=5, inner=4).eval()
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.7)
    skip, signal = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 2, 2)
    with torch.inference_mode():
        found = gate(skip, signal)[0].numpy()
    expected = gate_by_hand(gate, skip[0].double().numpy(), signal[0].double().numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", [GridGate(3, 5, 4), SameResolutionGate(3, 2)])
def test_a_gate_weighs_places_between_nothing_and_all(gate: Any) -> None:
    is_grid = isinstance(gate, GridGate)
    skip = torch.randn(2, 3, 8, 12)
    signal = torch.randn(2, 5, 4, 6) if is_grid else torch.randn(2, 3, 8, 12)
    with torch.inference_mode():
        weights = gate.eval().weigh(skip, signal)
    assert weights.shape == (2, 1, 4, 6) if is_grid else (2, 1, 8, 12)
    assert 0 < float(weights.min()) < float(weights.max()) < 1


def test_a_closed_gate_lets_nothing_of_the_skip_through() -> None:
    """Then the class maps depend on the gated skips no more, only on the finest one."""
    network = small()
    for gate in network.decoder.gates:
        nn.init.constant_(gate.psi.bias, -100)
    features = network.encoder(torch.randn(1, 3, 32, 48))
    others = [features[0], *(torch.randn_like(f) for f in features[1:-1]), features[-1]]
    with torch.inference_mode():
        first = network.head(network.decoder(features))
        assert torch.equal(network.head(network.decoder(others)), first)
        other_finest = [torch.randn_like(features[0]), *features[1:]]
        assert not torch.equal(network.head(network.decoder(other_finest)), first)


def test_every_gate_listens_to_the_next_coarser_scale() -> None:
    decoder = GridDecoder([4, 8, 16, 32, 64]).eval()
    heard: list[tuple[Tensor, Tensor]] = []
    for gate in decoder.gates:
        gate.register_forward_hook(lambda module, args, result: heard.append(args))
    features = [torch.randn(1, 4 * 2**i, 64 // 2**i, 32 // 2**i) for i in range(5)]
    with torch.inference_mode():
        found = decoder(features)
        signal = decoder.signal(features[-1])
    assert [f.shape[-1] for f in found] == [32, 16, 8, 4]
    for (skip, given), expected, feature in zip(
        heard, [signal, found[3], found[2]], [features[3], features[2], features[1]], strict=True
    ):
        assert skip is feature
        assert torch.equal(given, expected)


def test_class_maps_of_all_scales_are_enlarged_and_summed() -> None:
    """Constant features of 1 at one scale give that scale's weight everywhere."""
    network = small()
    head = network.head
    assert isinstance(head, EveryScale)
    for level, branch in enumerate(head.branches):
        nn.init.zeros_(branch.output.bias)
        nn.init.constant_(branch.output.weight, 10.0**level)
    features = [torch.ones(1, 4 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    with torch.inference_mode():
        maps = head(features)
    assert torch.equal(maps, torch.full((1, 2, 16, 16), 4.0 + 8e1 + 16e2 + 32e3))


@both
def test_any_shape_works_and_learns(gates: str) -> None:
    network = small(gates).train()
    maps = network(torch.randn(2, 3, 32, 80))
    assert maps.shape == (2, 2, 32, 80)
    (maps * torch.randn_like(maps)).sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []
