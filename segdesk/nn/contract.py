"""What every architecture promises, whoever wrote it: one check a promise.

Each ``check_`` function raises ``AssertionError`` where the promise is broken. The
author of a model package calls them in a test, as SegDesk does for its own.
"""

from __future__ import annotations

import fnmatch
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segdesk.nn.spec import Initialisation, ModelSpec


def build(spec: ModelSpec, channels: int = 3, classes: int = 2, **options: Any) -> Any:
    """Build the small variant with fixed weights."""
    torch.manual_seed(0)
    return spec.build(channels, classes, **{**spec.options, **spec.small, **options})


def side(spec: ModelSpec, at_least: int = 32) -> int:
    """Return the smallest side the architecture takes, in pixels."""
    return math.ceil(max(spec.min_size, at_least) / spec.stride) * spec.stride


def image(spec: ModelSpec, channels: int = 3, *, wider: int = 1, count: int = 2) -> Tensor:
    """Return a batch that is one stride wider than high."""
    torch.manual_seed(1)
    height = side(spec)
    return torch.randn(count, channels, height, height + wider * spec.stride)


def check_shapes(spec: ModelSpec, channels: int, classes: int) -> None:
    """Check that class maps have the image's size, for any channels, classes and aspect."""
    network = build(spec, channels, classes).eval()
    x = image(spec, channels)
    with torch.inference_mode():
        maps = network(x)
    assert maps.shape == (2, classes, *x.shape[-2:])
    assert maps.dtype == torch.float32
    assert torch.isfinite(maps).all()


def check_parts(network: nn.Module) -> None:
    """Check that encoder, decoder and head hold every parameter once."""
    parts = [
        id(p)
        for part in ("encoder", "decoder", "head")
        for p in network.get_submodule(part).parameters()
    ]
    assert sorted(parts) == sorted(id(p) for p in network.parameters())
    assert list(network.get_submodule("encoder").parameters())
    assert list(network.get_submodule("head").parameters())


def check_gradients(spec: ModelSpec) -> None:
    """Check that learning reaches every parameter but those the spec names."""
    network = build(spec).train()
    x = image(spec)
    network(x[:1])  # one image a batch must do
    torch.manual_seed(2)
    # Each pixel weighs differently, so that no batch or layer norm cancels it all.
    total = sum(
        weight * (maps * torch.randn_like(maps)).sum() for weight, maps in network.training_maps(x)
    )
    if not spec.needs_labels:
        total = total + network.own_loss(x)
    total.backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    undeclared = [n for n in silent if not any(fnmatch.fnmatch(n, i) for i in spec.idle)]
    assert undeclared == [], f"no gradient reaches {undeclared[:5]} ({len(undeclared)} in all)"
    for pattern in spec.idle:
        assert fnmatch.filter(silent, pattern), f"{pattern} is declared idle and learns"


def check_modes(spec: ModelSpec) -> None:
    """Check that evaluation is deterministic, and training random where the spec says so."""
    network = build(spec)
    x = image(spec)
    with torch.no_grad():
        network.train()
        torch.manual_seed(3)
        first = network(x)
        again = network(x)
        network.eval()
        assert torch.equal(network(x), network(x))
    assert torch.equal(first, again) is not spec.has_dropout


def check_round_trip(spec: ModelSpec, folder: Path) -> None:
    """Check that weights survive safetensors and give the same maps."""
    network = build(spec).eval()
    file = folder / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, file)
    torch.manual_seed(99)
    other = spec.build(3, 2, **{**spec.options, **spec.small}).eval()
    x = image(spec, count=1)
    with torch.inference_mode():
        expected = network(x)
        other.load_state_dict(load_file(file), strict=True)
        assert torch.equal(other(x), expected)


def check_initialisation(spec: ModelSpec) -> None:
    """Check that the decoder's convolutions are drawn as the spec says."""
    network = build(spec)
    ratios = []
    for module in network.get_submodule("decoder").modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() >= 512:
            fan_in = module.weight[0].numel()
            expected = {
                Initialisation.HE: math.sqrt(2 / fan_in),
                Initialisation.NORMAL_001: 0.01,
                Initialisation.TRUNCATED_NORMAL: 0.02,
                Initialisation.TORCH: math.sqrt(1 / (3 * fan_in)),
            }[spec.initialisation]
            ratios.append(float(module.weight.detach().std()) / expected)
    assert all(0.8 < ratio < 1.2 for ratio in ratios), ratios


def check_export(spec: ModelSpec) -> None:
    """Check that ``torch.export`` gives a program with the same result."""
    network = build(spec).eval()
    x = image(spec, count=1)
    program = torch.export.export(network, (x,), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-5)


def check_head(spec: ModelSpec, kind: str, activation: str) -> None:
    """Check that it takes a head, with this activation, and learns through it."""
    network = build(spec, classes=3, head=kind, activation=activation).train()
    x = image(spec, wider=0)
    maps = network(x)
    assert maps.shape[1] == 3
    (maps * torch.randn_like(maps)).sum().backward()
    grads = [p.grad for p in network.get_submodule("head").parameters()]
    assert any(g is not None and bool(g.any()) for g in grads)
    names = {name.rpartition(".")[2] for name, _ in network.named_modules()}
    assert ("attention" in names) is (kind in "CD")
    assert ("maps" in names) is (kind in "BCD")
