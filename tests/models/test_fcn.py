from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from segdesk.nn.pretrained import load_encoder_weights
from segdesk.nn.weights import count_parameters
from segdesk_models.fcn import (
    FCN,
    Bilinear,
    FCN8s,
    FCN16s,
    FCN32s,
    learned_upsampling,
    where_scores_begin,
)

each = pytest.mark.parametrize("variant", [FCN32s, FCN16s, FCN8s])


def narrow(variant: type[FCN], padding: int, **options: object) -> FCN:
    torch.manual_seed(0)
    network = variant(1, 2, width=4, hidden=8, padding=padding, **options)  # type: ignore[arg-type]
    return network.eval()


def test_it_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        assert count_parameters(FCN32s(3, 21)) == 134_346_581
        learned = [
            count_parameters(variant(3, 21, learn_upsampling=True))
            for variant in (FCN32s, FCN16s, FCN8s)
        ]
    assert learned == [136_152_917, 134_815_994, 134_489_759]


def test_borders_are_cut_as_by_the_authors() -> None:
    """Their networks name these numbers of pixels and values."""
    networks = [narrow(variant, 100) for variant in (FCN32s, FCN16s, FCN8s)]
    assert [network.crop for network in networks] == [19, 27, 31]
    assert [network.head.begins for network in networks] == [[], [5], [5, 9]]


@each
def test_every_score_comes_back_to_the_pixels_it_was_made_of(variant: type[FCN]) -> None:
    """Scores that say which row they stand for must become the numbers of the rows."""
    network = narrow(variant, 100)
    image = torch.zeros(1, 1, 90, 90)
    # Values of a pooling with stride s lie in the middle of s rows, the first 99 rows
    # above the image; fc6 has none for the first three.
    rows = [32 * torch.arange(4) + 15.5 - 99 + 3 * 32]
    rows += [s * torch.arange(90 * 4 // s) + (s - 1) / 2 - 99 for s in (16, 8)]
    scores = [r[None, None, :, None].expand(1, 2, -1, len(r)) for r in rows[: variant.LEVELS]]
    head = network.head
    maps = network.enlarge(head.upsamplings[-1](head.fuse(scores)), image)
    assert maps.shape[-2:] == (90, 90)
    # Beyond the outermost scores enlargement fades to 0.
    inner = slice(40, 80)
    expected = variant.LEVELS * torch.arange(90.0)[inner]
    torch.testing.assert_close(maps[0, 1, inner, 45], expected)


@each
@pytest.mark.parametrize(("padding", "size"), [(100, 58), (33, 64), (1, 64)])
def test_a_mirrored_image_gives_the_mirrored_maps(
    variant: type[FCN], padding: int, size: int
) -> None:
    """With mirrored kernels, and at sizes that all poolings divide; one pixel off would show."""
    network = narrow(variant, padding)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 4:
                weight.copy_((weight + weight.flip(3)) / 2)
        network.double()
        image = torch.randn(1, 1, size, size, dtype=torch.float64)
        torch.testing.assert_close(network(image.flip(3)), network(image).flip(3))


@each
@pytest.mark.parametrize("padding", [100, 60, 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 33)])
def test_images_of_any_size_work(variant: type[FCN], padding: int, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert narrow(variant, padding)(torch.randn(2, 1, *size)).shape == (2, 2, *size)


def test_scores_begin_before_the_map_when_fc6_loses_nothing() -> None:
    assert where_scores_begin(0, 3) == [0, -1, -1]
    assert where_scores_begin(3, 3) == [3, 5, 9]


@pytest.mark.parametrize("factor", [2, 8, 32])
def test_enlarging_is_bilinear(factor: int) -> None:
    x = torch.randn(2, 3, 4, 5)
    large = Bilinear(factor)(x)
    assert large.shape == (2, 3, factor * 5, factor * 6)
    half = factor // 2
    # Its border fades to 0, where torch's repeats the last value.
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear")[..., half:-half, half:-half]
    torch.testing.assert_close(large[..., factor:-factor, factor:-factor], expected)


def test_learned_enlarging_begins_bilinear_and_learns_across_maps() -> None:
    x = torch.randn(1, 3, 4, 5)
    layer = learned_upsampling(3, 4)
    torch.testing.assert_close(layer(x), Bilinear(4)(x))
    layer(x).square().sum().backward()
    (weight,) = layer.parameters()
    assert weight.grad is not None
    assert weight.grad.abs().amin((2, 3)).gt(0).all()


@each
def test_fixed_enlarging_is_not_part_of_the_weights(variant: type[FCN]) -> None:
    assert not any("upsampling" in name for name in narrow(variant, 1).state_dict())
    learned = narrow(variant, 1, learn_upsampling=True)
    learned.train()(torch.randn(1, 1, 40, 40)).square().sum().backward()
    silent = [n for n, p in learned.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_finer_maps_move_the_edges() -> None:
    """FCN-32s cannot tell two pixels of one window apart by more than a slow slope."""
    x = torch.randn(1, 1, 64, 64)
    rough = []
    for variant in (FCN32s, FCN16s, FCN8s):
        with torch.inference_mode():
            maps = narrow(variant, 1)(x)
        bends = maps[..., 2:, :] - 2 * maps[..., 1:-1, :] + maps[..., :-2, :]
        rough.append(int((bends.abs().amax((0, 1, 3)) > 1e-3 * maps.abs().max()).sum()))
    assert rough[0] < rough[1] < rough[2]


def test_a_classifiers_weights_become_convolutions(tmp_path: Path) -> None:
    """torchvision's names, and its fully connected layers as matrices."""
    encoder = narrow(FCN8s, 100).encoder
    weights: dict[str, Tensor] = {
        name.replace("pre_logits.fc1", "classifier.0").replace("pre_logits.fc2", "classifier.3"):
        torch.randn_like(value).flatten(1) if "pre_logits" in name and value.ndim == 4
        else torch.randn_like(value)
        for name, value in encoder.state_dict().items()
    }  # fmt: skip
    assert weights["classifier.0.weight"].shape == (8, 32 * 49)
    weights["classifier.6.weight"] = torch.randn(10, 8)
    save_file(weights, tmp_path / "vgg16.safetensors")
    load_encoder_weights(encoder, str(tmp_path / "vgg16.safetensors"))
    # On a map of just its window, fc6 is the matrix product.
    x = torch.randn(1, 32, 7, 7)
    fc6 = encoder.pre_logits[0](x)[:, :, 0, 0]
    expected = F.linear(x.flatten(1), weights["classifier.0.weight"], weights["classifier.0.bias"])
    torch.testing.assert_close(fc6, expected, rtol=1e-4, atol=1e-3)


def test_padding_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 pixel, not 0"):
        FCN8s(1, 2, width=1, hidden=1, padding=0)
