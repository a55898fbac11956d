from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from segdesk.nn.losses import dice_cross_entropy, dice_loss, weighted_cross_entropy

#: The worked example of the Dice loss: probabilities of the foreground.
PREDICTED = torch.tensor(
    [[0.01, 0.03, 0.02, 0.02], [0.05, 0.12, 0.09, 0.07],
     [0.89, 0.85, 0.88, 0.91], [0.99, 0.97, 0.95, 0.97]]
)  # fmt: skip


def maps_of(foreground: Tensor) -> Tensor:
    """Class maps whose softmax gives this foreground probability, shape (1, 2, H, W)."""
    return torch.stack((torch.log(1 - foreground), torch.log(foreground)))[None]


def test_dice_loss_of_the_worked_example() -> None:
    labels = torch.zeros(1, 4, 4)
    labels[:, 2:] = 1
    loss = dice_loss(maps_of(PREDICTED), labels, torch.ones(1, 4, 4))
    assert loss.item() == pytest.approx(1 - (2 * 7.41 + 1) / (7.82 + 8 + 1), abs=1e-6)


def test_cross_entropy_by_hand() -> None:
    maps = maps_of(torch.tensor([[0.8, 0.25]]))
    labels = torch.tensor([[[1, 0]]])
    plain = weighted_cross_entropy(maps, labels, torch.ones(1, 1, 2))
    assert plain.item() == pytest.approx(-(math.log(0.8) + math.log(0.75)) / 2, abs=1e-6)
    weighted = weighted_cross_entropy(maps, labels, torch.tensor([[[3.0, 1.0]]]))
    assert weighted.item() == pytest.approx(-(3 * math.log(0.8) + math.log(0.75)) / 4, abs=1e-6)


def test_dice_of_three_classes_counts_the_background_too() -> None:
    """One pixel each; probabilities 1 for the right class, but class 2 missed."""
    maps = torch.full((1, 3, 1, 3), -100.0)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 1] = maps[0, 1, 0, 2] = 100.0
    labels = torch.tensor([[[0, 1, 2]]])
    loss = dice_loss(maps, labels, torch.ones(1, 1, 3))
    right, half, missed = 1.0, (2 + 1) / (1 + 2 + 1), 1 / (1 + 0 + 1)
    assert loss.item() == pytest.approx(1 - (right + half + missed) / 3, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_pixels_nobody_spoke_about_do_not_matter(classes: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, classes, 6, 6, requires_grad=True)
    labels = torch.randint(classes, (2, 6, 6))
    weights = (torch.rand(2, 6, 6) < 0.3).float()
    loss = dice_cross_entropy(maps, labels, weights)
    loss.backward()
    assert maps.grad is not None
    silent = (weights == 0)[:, None].expand_as(maps)
    assert (maps.grad[silent] == 0).all()
    assert (maps.grad[~silent] != 0).any()
    # Other labels, the unlabelled value among them, and other maps there: the same loss.
    other_labels = torch.where(weights > 0, labels, 255)
    other_maps = torch.where(silent, torch.randn_like(maps) * 50, maps)
    assert dice_cross_entropy(other_maps, other_labels, weights).item() == loss.item()


def test_one_supervised_pixel_says_as_much_in_a_large_image() -> None:
    """A single stroke must not drown among pixels nobody looked at."""
    torch.manual_seed(0)
    small, large = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 64, 64)
    large[:, :, :4, :4] = small
    labels, weights = torch.ones(1, 64, 64), torch.zeros(1, 64, 64)
    weights[0, 1, 1] = 1
    inside = dice_cross_entropy(small, labels[:, :4, :4], weights[:, :4, :4])
    torch.testing.assert_close(dice_cross_entropy(large, labels, weights), inside)


@pytest.mark.parametrize("logit", [100.0, -100.0])
@pytest.mark.parametrize("truth", [0, 1])
def test_losses_are_safe_at_extreme_maps(logit: float, truth: int) -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[:, 1] = logit
    maps.requires_grad_()
    loss = dice_cross_entropy(maps, torch.full((1, 4, 4), truth), torch.ones(1, 4, 4))
    loss.backward()
    assert math.isfinite(loss.item())
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()
    is_right = (logit > 0) == bool(truth)
    assert loss.item() < 0.01 if is_right else loss.item() > 50


def test_nothing_supervised_gives_no_loss_and_no_gradient() -> None:
    maps = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = dice_cross_entropy(maps, torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
    loss.backward()
    assert loss.item() == 0
    assert maps.grad is not None
    assert (maps.grad == 0).all()


def test_an_empty_mask_rightly_predicted_costs_nothing() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    maps[:, 0] = 100
    loss = dice_loss(maps, torch.zeros(1, 4, 4), torch.ones(1, 4, 4))
    assert loss.item() == pytest.approx(0, abs=1e-6)
