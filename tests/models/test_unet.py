from __future__ import annotations

from typing import Any

import pytest
import torch

from segdesk.nn.weights import count_parameters
from segdesk_models.unet import SPEC, UNet


@pytest.mark.parametrize(
    ("channels", "classes", "expected"), [(3, 2, 31_037_698), (1, 1, 31_036_481)]
)
def test_the_padded_u_net_has_the_known_number_of_parameters(
    channels: int, classes: int, expected: int
) -> None:
    with torch.device("meta"):
        assert count_parameters(UNet(channels, classes, width=64)) == expected


def test_head_c_adds_cbam_and_nothing_else() -> None:
    with torch.device("meta"):
        plain, strong = UNet(3, 2), UNet(3, 2, head="C")
    assert count_parameters(strong) - count_parameters(plain) == 680


@pytest.mark.parametrize("options", [{}, {"head": "C"}, {"head": "C", "activation": "selu"}])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_odd_widths_and_shapes_work(width: int, options: dict[str, Any]) -> None:
    network = UNet(2, 3, width=width, **options).eval()
    with torch.inference_mode():
        maps = network(torch.randn(2, 2, 48, 16))
    assert maps.shape == (2, 3, 48, 16)
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize("head", ["A", "C"])
def test_gradients_reach_every_parameter(head: str) -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, width=4, head=head)
    network(torch.randn(2, 1, 32, 32)).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("head", ["A", "C"])
def test_every_parameter_belongs_to_one_part(head: str) -> None:
    """Recipes freeze by part: none may be left out or counted twice."""
    network = UNet(1, 2, width=4, head=head)
    parts = [id(p) for part in ("encoder", "decoder", "head")
             for p in network.get_submodule(part).parameters()]  # fmt: skip
    assert sorted(parts) == sorted(id(p) for p in network.parameters())


def test_evaluation_is_deterministic_and_training_drops_out() -> None:
    torch.manual_seed(0)
    network = UNet(1, 2, width=4, dropout=0.5)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network.train()(x), network(x))
        assert torch.equal(network.eval()(x), network(x))


def test_a_pixel_sees_its_neighbourhood_and_not_the_far_end() -> None:
    """Skip connections and the way down: a change is felt far off, but not everywhere."""
    torch.manual_seed(0)
    network = UNet(1, 2, width=4).eval()
    x = torch.zeros(1, 1, 512, 64)
    changed = x.clone()
    changed[0, 0, 0, 32] = 10
    with torch.inference_mode():
        felt = (network(x) != network(changed)).any(1)[0].any(1)
    assert felt[:16].all()
    assert not felt[256:].any()


def test_its_defaults_are_the_papers() -> None:
    network = UNet(1, 2, **SPEC.options)
    assert network.decoder.blocks[-1][0].out_channels == 64
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 1, SPEC.stride, SPEC.stride))
