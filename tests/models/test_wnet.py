from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdesk.nn.ncut import soft_ncut
from segdesk_models.wnet import SPEC, Module, WNet, merge_alike

pytestmark = pytest.mark.usefixtures("one_thread")


def small(channels: int = 1, classes: int = 2, **options: Any) -> WNet:
    torch.manual_seed(0)
    return WNet(channels, classes, **{"width": 4, "segments": 4, "dropout": 0.0, **options})


def test_it_has_the_papers_46_convolutions_in_18_modules() -> None:
    """A separable convolution is counted once: by its part across the channels."""
    with torch.device("meta"):
        network = WNet(3, 2, **SPEC.options)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert sum(layer.groups == 1 for layer in layers) == 46
    assert sum(isinstance(m, Module) for m in network.modules()) == 18


def test_convolutions_are_separable_but_in_modules_1_9_10_and_18() -> None:
    with torch.device("meta"):
        network = WNet(3, 2, **SPEC.options)
    second = network.decoder.reconstruct
    modules = [
        *network.encoder.blocks,
        *network.decoder.expand.blocks,
        *second.contract.blocks,
        *second.expand.blocks,
    ]
    plain = [i for i, module in enumerate(modules, 1) if isinstance(module[0], nn.Conv2d)]
    assert plain == [1, 9, 10, 18]
    widths = [module[-1].num_features for module in modules]
    assert widths == 2 * [64, 128, 256, 512, 1024, 512, 256, 128, 64]
    depthwise, pointwise = modules[1][0]
    assert (depthwise.groups, depthwise.kernel_size, depthwise.in_channels) == (64, (3, 3), 64)
    assert (pointwise.groups, pointwise.kernel_size, pointwise.out_channels) == (1, (1, 1), 128)


def by_hand(layer: nn.Module, x: Tensor) -> Tensor:
    """A 3x3 convolution, or a depthwise one and a pointwise one, by sums over patches."""
    if isinstance(layer, nn.Sequential):
        depthwise, pointwise = layer
        patches = F.unfold(x, 3, padding=1).reshape(len(x), x.shape[1], 9, -1)
        x = (patches * depthwise.weight.reshape(1, -1, 9, 1)).sum(2).reshape(x.shape)
        weight, bias = pointwise.weight[:, :, 0, 0], pointwise.bias
        return torch.einsum("oc,nchw->nohw", weight, x) + bias[:, None, None]
    summed = layer.weight.flatten(1) @ F.unfold(x, 3, padding=1)
    return summed.reshape(len(x), -1, *x.shape[-2:]) + layer.bias[:, None, None]


def module_by_hand(module: nn.Module, x: Tensor) -> Tensor:
    """Convolution, ReLU, batch norm, twice: the norm comes last, as in the paper."""
    layers = list(module)
    for conv, _, norm in (layers[:3], layers[3:]):
        x = by_hand(conv, x).clamp_min(0)
        x = (x - norm.running_mean[:, None, None]) / (
            norm.running_var[:, None, None] + norm.eps
        ).sqrt()
        x = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    return x


def u_net_by_hand(contract: nn.Module, expand: nn.Module, x: Tensor) -> Tensor:
    skips = [module_by_hand(contract.blocks[0], x)]
    for block in contract.blocks[1:]:
        n, c, h, w = skips[-1].shape
        pooled = skips[-1].reshape(n, c, h // 2, 2, w // 2, 2).amax((3, 5))
        skips.append(module_by_hand(block, pooled))
    x = skips.pop()
    for up, block in zip(expand.ups, expand.blocks, strict=True):
        n, _, h, w = x.shape
        raised = torch.einsum("nchw,coij->nohiwj", x, up.weight).reshape(n, -1, 2 * h, 2 * w)
        x = module_by_hand(block, torch.cat((skips.pop(), raised + up.bias[:, None, None]), 1))
    return x


def test_both_u_nets_are_a_formula() -> None:
    """Skip connections come first where maps are joined, and nothing is left out."""
    network = small(channels=3).eval()
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.uniform_(-1, 1)
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.5, 1.5)
                part.bias.uniform_(-1, 1)
    image = torch.randn(2, 3, 32, 48)
    second = network.decoder.reconstruct
    with torch.inference_mode():
        features = u_net_by_hand(network.encoder, network.decoder.expand, image)
        [output] = network.head.branches[0]
        weight, bias = output.weight[:, :, 0, 0], output.bias
        segments = torch.einsum("oc,nchw->nohw", weight, features) + bias[:, None, None]
        torch.testing.assert_close(network.segments(image), segments, rtol=1e-4, atol=1e-4)
        probabilities = segments.softmax(1)
        drawn = u_net_by_hand(second.contract, second.expand, probabilities)
        weight, bias = second.image.weight[:, :, 0, 0], second.image.bias
        again = torch.einsum("oc,nchw->nohw", weight, drawn) + bias[:, None, None]
        torch.testing.assert_close(second(probabilities), again, rtol=1e-4, atol=1e-4)


def test_its_losses_are_the_cut_and_the_error_of_the_image_made_again() -> None:
    """In SegDesk's units 10 grey levels of 255 are 40 / 255."""
    network = small(channels=3).eval()
    image = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        probabilities = network.segments(image).softmax(1)
        cut = soft_ncut(
            probabilities, image, intensity_sigma=40 / 255, spatial_sigma=4.0, radius=5.0
        )
        error = F.mse_loss(network.decoder.reconstruct(probabilities), image)
        found = [network.own_loss(image, turn) for turn in range(SPEC.turns)]
    assert 0 < float(cut) < 4
    torch.testing.assert_close(found, [cut, error])


def test_the_cut_moves_the_first_u_net_and_the_error_of_the_image_both() -> None:
    network = small().eval()
    image = torch.randn(2, 1, 32, 32)
    moved = []
    for turn in range(SPEC.turns):
        network.zero_grad()
        network.own_loss(image, turn).backward()  # type: ignore[no-untyped-call]
        learns = {name for name, p in network.named_parameters() if p.grad is not None}
        assert float(network.head.branches[0].output.weight.grad.abs().max()) > 1e-4
        moved.append({name.startswith("decoder.reconstruct.") for name in learns})
    assert moved == [{False}, {False, True}]


def test_the_second_u_net_sees_the_segments_and_nothing_of_the_image() -> None:
    network = small(channels=3).eval()
    seen: list[Tensor] = []
    network.decoder.reconstruct.register_forward_hook(lambda m, args, result: seen.extend(args))
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        network.own_loss(image, 0)
        network.own_loss(image, 1)
        (given,) = seen
        torch.testing.assert_close(given, network.segments(image).softmax(1))
        seen.clear()
        network(image)
    assert seen == [], "it only serves to learn"


def test_classes_are_the_sums_of_their_segments() -> None:
    network = small().eval()
    network.owner.copy_(torch.tensor([1, 0, 1, 1]))
    image = torch.randn(2, 1, 32, 48)
    with torch.inference_mode():
        one, two, three, four = network.segments(image).softmax(1).unbind(1)
        found = network(image).softmax(1)
    torch.testing.assert_close(found[:, 0], two)
    torch.testing.assert_close(found[:, 1], one + three + four)


def test_a_class_without_segments_is_nowhere_and_finite() -> None:
    network = small().eval()
    network.owner.zero_()
    with torch.inference_mode():
        maps = network(torch.randn(1, 1, 32, 32))
    assert torch.isfinite(maps).all()
    assert float(maps.softmax(1)[:, 1].max()) < 1e-6


def test_maps_are_given_to_classes_and_stay_with_them() -> None:
    network = small(classes=3).eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        before = network(image)
        network.assign(torch.tensor([2, 0, 1]))
        after = network(image)
        assert torch.equal(after, before[:, [2, 0, 1]])
        # The order is that of the maps as they are now, not of the first ones.
        network.assign(torch.tensor([1, 2, 0]))
        assert torch.equal(network(image), before)


def test_there_is_a_segment_for_every_class() -> None:
    network = small(classes=6, segments=4)
    network.own_loss(torch.randn(2, 1, 32, 32), 0)
    assert sorted(network.owner.tolist()) == list(range(6))


def test_only_learning_changes_which_segments_are_merged() -> None:
    network = small(channels=2)
    image = torch.randn(2, 2, 32, 48)
    network.eval().own_loss(image, 0)
    assert not network.shares.any()
    with torch.inference_mode():
        network.train().own_loss(image, 0)
        network.own_loss(image, 1)
    probabilities = network.segments(image).softmax(1)
    torch.testing.assert_close(network.shares, 0.1 * probabilities.mean((0, 2, 3)))
    for k in range(4):
        expected = 0.1 * (probabilities[:, k, None] * image).mean((0, 2, 3))
        torch.testing.assert_close(network.colors[k], expected)
    network.own_loss(image, 0)
    assert float(network.shares.sum()) == pytest.approx(0.19)


def test_segments_of_similar_colour_are_merged_and_the_largest_group_comes_first() -> None:
    """Three dark parts of the background, a dim and a bright part of the nuclei."""
    shares = torch.tensor([0.2, 0.05, 0.4, 0.05, 0.3])
    means = torch.tensor([-1.9, 0.2, -1.7, 1.0, -1.8])[:, None]
    merged = [merge_alike(shares, shares[:, None] * means, n).tolist() for n in (5, 3, 2, 1)]
    assert merged == [[2, 3, 0, 4, 1], [0, 1, 0, 2, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_segments_of_one_brightness_and_two_colours_are_not_merged() -> None:
    colors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
    assert merge_alike(torch.ones(4), colors, 2).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])


def test_segments_of_no_pixels_do_not_count() -> None:
    shares = torch.tensor([0.0, 0.7, 0.3, 0.0])
    colors = torch.tensor([0.0, -0.7, 0.3, 0.0])[:, None]
    owner = merge_alike(shares, colors, 2).tolist()
    assert owner[1:3] == [0, 1]
    assert set(owner) == {0, 1}


def discs(count: int) -> tuple[Tensor, Tensor]:
    """Bright discs on a dark, noisy background, as SegDesk standardises images; and masks."""
    places = torch.randint(8, 40, (count, 3, 2)).float()
    grid = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij"))
    distances = (grid[None, None] - places[..., None, None]).square().sum(2)
    mask = (distances < 36).any(1)
    image = 0.1 + 0.7 * mask + 0.02 * torch.randn(mask.shape)
    return ((image[:, None] - 0.5) / 0.25), mask


def test_it_finds_bright_discs_without_labels() -> None:
    network = small(width=8, segments=6)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(60):
        torch.manual_seed(step)
        image, _ = discs(4)
        for turn in range(SPEC.turns):
            optimizer.zero_grad()
            network.own_loss(image, turn).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
    torch.manual_seed(1000)
    image, mask = discs(8)
    with torch.inference_mode():
        found = network.eval()(image).argmax(1) == 1
    dice = 2 * (found & mask).sum() / (found.sum() + mask.sum())
    assert float(dice) > 0.9
