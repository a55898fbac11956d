from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segdesk.nn.encoders import import_timm
from segdesk_models.fcbformer import SPEC, FCBFormer, ResidualBlock


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(**options: Any) -> FCBFormer:
    torch.manual_seed(0)
    return FCBFormer(3, 2, **{**SPEC.options, **SPEC.small, **options}).eval()


def test_its_parts_have_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        network = FCBFormer(3, 1, **SPEC.options)
    transformer = network.decoder.transformer
    assert parameters(network) == 52_962_337
    assert parameters(network.encoder) == 44_725_696
    assert parameters(transformer.emphasis) == 1_098_432
    assert parameters(transformer.aggregation) == 580_416
    assert parameters(network.encoder) + parameters(transformer) == 46_404_544
    assert parameters(network.decoder.convolutional) == 6_384_800
    assert parameters(network.decoder.prediction) + parameters(network.head) == 172_993


def test_a_residual_block_by_hand() -> None:
    """Pixels -1 and 1 have mean 0 and deviation 1: group norm leaves them as they are.

    SiLU makes them s(-1) and s(1), which the second group norm turns into -1 and 1 again.
    """
    block = ResidualBlock(1, 1, groups=1)
    for part, weight, bias in ((block.first, 3.0, 0.2), (block.second, 2.0, 0.5)):
        nn.init.dirac_(part[2].weight)
        part[2].weight.data *= weight
        nn.init.constant_(part[2].bias, bias)
    with torch.inference_mode():
        found = block(torch.tensor([[[[-1.0, 1.0]]]])).flatten().tolist()
    silu = [x / (1 + math.exp(-x)) for x in (-1, 1)]
    assert found == pytest.approx([-1 + 2 * silu[0] + 0.5, 1 + 2 * silu[1] + 0.5], abs=1e-4)


def test_a_residual_block_that_learnt_nothing_passes_its_input_on() -> None:
    same, wider = ResidualBlock(4, 4, groups=2), ResidualBlock(4, 6, groups=2)
    for block in (same, wider):
        nn.init.zeros_(block.second[2].weight)
        nn.init.zeros_(block.second[2].bias)
    x = torch.randn(1, 4, 5, 3)
    with torch.inference_mode():
        assert torch.equal(same(x), x)
        torch.testing.assert_close(wider(x), wider.skip(x))


def heard(modules: nn.ModuleList | list[nn.Module], run: Any) -> list[tuple[int, Tensor, Tensor]]:
    """Return which modules were called, in order, with input and output."""
    calls: list[tuple[int, Tensor, Tensor]] = []
    for i, module in enumerate(modules):
        module.register_forward_hook(
            lambda module, args, result, i=i: calls.append((i, args[0], result))
        )
    with torch.inference_mode():
        run()
    return calls


def test_levels_are_joined_from_the_coarsest_to_the_finest() -> None:
    network = small()
    branch = network.decoder.transformer
    calls = heard(
        [*branch.emphasis, *branch.aggregation], lambda: network(torch.randn(1, 3, 64, 96))
    )
    assert [i for i, _, _ in calls] == [0, 1, 2, 3, 6, 5, 4]
    # Emphasised at their own sizes, enlarged by repeating pixels.
    emphasised = [
        result.repeat_interleave(2**i, 2).repeat_interleave(2**i, 3) for i, _, result in calls[:4]
    ]
    assert {maps.shape for maps in emphasised} == {(1, 16, 16, 24)}
    fused = emphasised[3]
    for (_, given, result), finer in zip(calls[4:], reversed(emphasised[:3]), strict=True):
        assert torch.equal(given, torch.cat((finer, fused), 1))
        fused = result


def test_the_prediction_head_sees_coarse_meaning_and_fine_outlines() -> None:
    network = small()
    ((_, given, _),) = heard(
        [network.decoder.prediction], lambda: network(torch.randn(1, 3, 64, 96))
    )
    coarse, fine = given[:, :16], given[:, 16:]
    assert fine.shape == (1, 8, 64, 96)
    blocks = [t.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4) for t in (coarse, fine)]
    assert torch.equal(blocks[0].amin(4), blocks[0].amax(4))
    assert (blocks[1].amin(4) < blocks[1].amax(4)).all()


def test_every_result_on_the_way_down_is_taken_back_in_the_latest_first() -> None:
    branch = small().decoder.convolutional
    steps = [branch.stem, *branch.down]
    blocks = [block for level in branch.up for block in level]
    assert len(steps) == len(blocks) == 18
    calls = heard([*steps, *blocks], lambda: branch(torch.randn(1, 3, 64, 96)))
    assert [i for i, _, _ in calls] == list(range(36))
    for (_, _, result), (_, given, _) in zip(reversed(calls[:18]), calls[18:], strict=True):
        assert torch.equal(given[:, -result.shape[1] :], result)


def test_weights_of_timms_pvt_v2_fit() -> None:
    network = small()
    keys = import_timm().create_model("pvt_v2_b0", num_classes=0).state_dict().keys()
    assert network.encoder.body.state_dict().keys() == keys
    assert {f"encoder.body.{key}" for key in keys} <= network.state_dict().keys()


def test_a_single_image_of_the_smallest_size_can_be_learnt_from() -> None:
    """Group norm has no batch to lean on, and at 1/32 there is one pixel left."""
    network = small().train()
    network(torch.randn(1, 3, 32, 32)).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
