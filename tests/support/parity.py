"""Comparing a network of ours with an independent one, live or through frozen numbers.

Both get the same weights, drawn by :func:`fill` from the parameters' names with
numpy's frozen legacy generator, and the same image. `make oracles` runs the other
implementation and freezes what it answers in ``tests/models/fixtures``; the default
run compares ours with that and needs none of the other libraries.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).resolve().parents[1] / "models" / "fixtures"

#: Largest difference allowed, as a share of the largest value: float32 sums in another
#: order, through some hundred layers.
TOLERANCE = 1e-4

#: And the largest that another processor or another number of threads makes.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Case:
    """One comparison: how ours is built, what goes in, and what is compared."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int, int]
    run: Callable[[Any, Tensor], Tensor] = lambda network, x: network(x)


def fill(network: nn.Module) -> nn.Module:
    """Draw every weight from its name; returns the network in evaluation mode."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            random = np.random.RandomState(zlib.crc32(name.encode()))
            drawn = random.standard_normal(tuple(value.shape)).astype(np.float32)
            if name.endswith("running_var"):
                drawn = 1 + 0.3 * np.tanh(drawn)
            elif value.ndim <= 1:
                # Scales of norms near 1; biases and means small.
                drawn = 0.1 * drawn + (1.0 if name.endswith("weight") else 0.0)
            else:
                drawn *= np.sqrt(1.5 / max(1, value[0].numel()))
            value.copy_(torch.from_numpy(np.asarray(drawn, np.float32)))
    return network.eval()


def image(shape: tuple[int, ...]) -> Tensor:
    """Return a fixed image."""
    drawn = np.random.RandomState(7).standard_normal(shape)
    return torch.from_numpy(drawn.astype(np.float32))


def ours(case: Case) -> Tensor:
    """Run our network."""
    torch.manual_seed(0)
    network = fill(case.build())
    with torch.inference_mode():
        return case.run(network, image(case.shape))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Compare two outputs relative to their scale."""
    assert found.shape == expected.shape
    scale = float(expected.abs().max())
    assert scale > 1e-3, "an output of zeros compares nothing"
    difference = float((found - expected).abs().max())
    assert difference <= TOLERANCE * scale, f"differs by {difference:.3g} at scale {scale:.3g}"


def freeze(case: Case, expected: Tensor) -> None:
    """Keep the other implementation's answer, when ``SEGDESK_FREEZE`` is set.

    An answer that differs by rounding only, as on another processor, leaves the file as it is.
    """
    if os.environ.get("SEGDESK_FREEZE") and not _is_kept(case, expected):
        FIXTURES.mkdir(exist_ok=True)
        np.savez_compressed(FIXTURES / f"{case.name}.npz", maps=expected.numpy())


def _is_kept(case: Case, expected: Tensor) -> bool:
    if not (FIXTURES / f"{case.name}.npz").exists():
        return False
    kept = frozen(case)
    near = ROUNDING * float(expected.abs().max())
    return kept.shape == expected.shape and float((kept - expected).abs().max()) <= near


def frozen(case: Case) -> Tensor:
    """Return the answer that was kept."""
    with np.load(FIXTURES / f"{case.name}.npz") as file:
        return torch.from_numpy(file["maps"])
