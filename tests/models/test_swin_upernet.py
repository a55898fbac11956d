from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segdesk.nn.encoders import import_timm
from segdesk.nn.weights import count_parameters
from segdesk_models.swin_upernet import SPEC, PyramidPooling, SwinUPerNet


def small(**options: Any) -> SwinUPerNet:
    torch.manual_seed(0)
    settings = {"depths": [2, 2, 2, 2], "embed_dim": 32, "width": 16, **options}
    return SwinUPerNet(3, 2, **settings).eval()


@pytest.mark.parametrize(
    ("encoder", "classes", "expected"),
    [
        ("tiny", 150, 59_943_398),
        ("small", 150, 81_261_302),
        ("base", 150, 121_281_764),
        ("tiny", 21, 59_844_068),
    ],
)
def test_it_has_the_known_number_of_parameters(encoder: str, classes: int, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(SwinUPerNet(3, classes, encoder=encoder)) == expected


def test_its_defaults_are_the_papers() -> None:
    with torch.device("meta"):
        network = SwinUPerNet(3, 2, **SPEC.options)
    blocks = [block for stage in network.encoder.body.layers for block in stage.blocks]
    assert [len(stage.blocks) for stage in network.encoder.body.layers] == [2, 2, 6, 2]
    assert [block.attn.num_heads for block in blocks[::2]] == [3, 6, 12, 12, 12, 24]
    # Layers are skipped the more often the deeper they lie.
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.3 * layer / 11 for layer in range(12)])


def test_weights_of_timms_classifier_fit() -> None:
    """Users bring them; the keys and shapes are timm's, and nothing is missing."""
    with torch.device("meta"):
        theirs = import_timm().create_model("swin_tiny_patch4_window7_224", num_classes=0)
        ours = SwinUPerNet(3, 2).encoder.body
    shapes = {name: value.shape for name, value in theirs.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes


def felt(block: Any, size: int, row: int, column: int) -> Tensor:
    """Return where a change of one patch is felt behind the block, (size, size)."""
    x = torch.randn(1, size, size, 32, dtype=torch.float64)
    changed = x.clone()
    changed[0, row, column] = torch.randn(32)
    with torch.inference_mode():
        return (block.double()(x) != block(changed)).any(-1)[0]


def test_a_patch_sees_its_window_of_seven_and_the_shifted_one_beyond() -> None:
    plain, shifted = small().encoder.body.layers[0].blocks
    window = torch.zeros(14, 14, dtype=torch.bool)
    window[0:7, 7:14] = True
    assert torch.equal(felt(plain, 14, 6, 7), window)
    # Shifted by three, windows end behind the third row and column.
    window[:] = False
    window[3:10, 3:10] = True
    assert torch.equal(felt(shifted, 14, 6, 7), window)


@pytest.mark.parametrize("size", [7, 8, 10, 14, 17])
def test_opposite_borders_of_the_image_do_not_see_each_other(size: int) -> None:
    """Whether or not the image holds a whole number of windows."""
    _, shifted = small().encoder.body.layers[0].blocks
    window = torch.zeros(size, size, dtype=torch.bool)
    window[:3, :3] = True
    assert torch.equal(felt(shifted, size, 0, 0), window)


def test_pooled_features_are_means_of_the_image_and_its_parts() -> None:
    x = torch.arange(144.0).reshape(1, 1, 12, 12)
    pools = [pool[0](x) for pool in PyramidPooling(1, 1).pools]
    assert [pool.shape[-1] for pool in pools] == [1, 2, 3, 6]
    assert pools[0].item() == x.mean()
    assert torch.equal(
        pools[1][0, 0, 0], torch.stack([x[0, 0, :6, :6], x[0, 0, :6, 6:]]).mean((1, 2))
    )
    assert pools[3][0, 0, 5, 5] == x[0, 0, 10:, 10:].mean()


def test_levels_are_joined_at_a_quarter_of_the_images_size() -> None:
    network = small()
    with torch.inference_mode():
        stages = network.encoder(torch.randn(1, 3, 96, 160))
        assert [tuple(s.shape[1:]) for s in stages] == [
            (32, 24, 40), (64, 12, 20), (128, 6, 10), (256, 3, 5)
        ]  # fmt: skip
        assert network.decoder(stages).shape == (1, 16, 24, 40)
    # Every stage counts, and each is normalised on its own.
    for stage in stages:
        assert stage.mean(1).abs().max() < 1e-5


@pytest.mark.parametrize("stage", range(4))
def test_every_stage_counts(stage: int) -> None:
    network = small()
    with torch.inference_mode():
        stages = network.encoder(torch.randn(1, 3, 64, 64))
        before = network.decoder(stages)
        stages[stage] = torch.zeros_like(stages[stage])
        assert not torch.allclose(network.decoder(stages), before)


def test_the_auxiliary_output_learns_from_the_third_stage_only() -> None:
    network = small()
    x = torch.randn(1, 3, 64, 32)
    (full, maps), (part, auxiliary) = network.training_maps(x)
    assert (full, part) == (1.0, 0.4)
    assert maps.shape == auxiliary.shape == (1, 2, 64, 32)
    assert torch.equal(maps, network(x))
    auxiliary.square().sum().backward()
    stages = network.encoder.body.layers
    assert stages[2].blocks[0].mlp.fc1.weight.grad is not None
    assert stages[3].blocks[0].mlp.fc1.weight.grad is None
    assert len(small(auxiliary=False).training_maps(x)) == 1


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="tiny, small, base"):
        SwinUPerNet(3, 2, encoder="huge")
