from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segdesk.config.training import LOSS_HELP, LossKind, TrainingConfig
from segdesk.nn.losses import (
    balanced_cross_entropy,
    border_cross_entropy,
    border_weights,
    cross_entropy,
    dice_cross_entropy,
    dice_loss,
    focal_loss,
    make_loss,
    median_frequency,
    tversky_loss,
    weighted_cross_entropy,
)

#: The worked example of the Dice loss: probabilities of the foreground.
PREDICTED = torch.tensor(
    [[0.01, 0.03, 0.02, 0.02], [0.05, 0.12, 0.09, 0.07],
     [0.89, 0.85, 0.88, 0.91], [0.99, 0.97, 0.95, 0.97]]
)  # fmt: skip

#: Every loss that can be chosen, and the odder ones of its settings.
CONFIGS = [
    *({"loss": kind} for kind in LossKind),
    {"loss": "focal", "focal_gamma": 0.5},
    {"loss": "focal", "focal_gamma": 0},
    {"loss": "dice", "dice_squared": True},
    {"loss": "tversky", "tversky_beta": 0.1},
]
every = pytest.mark.parametrize(
    "loss", [pytest.param(make_loss(TrainingConfig(**c)), id="-".join(map(str, c.values())))
             for c in CONFIGS]
)  # fmt: skip


def maps_of(foreground: Tensor) -> Tensor:
    """Class maps whose softmax gives this foreground probability, shape (1, 2, H, W)."""
    return torch.stack((torch.log(1 - foreground), torch.log(foreground)))[None]


def worked_example() -> tuple[Tensor, Tensor, Tensor]:
    labels = torch.zeros(1, 4, 4)
    labels[:, 2:] = 1
    return maps_of(PREDICTED), labels, torch.ones(1, 4, 4)


def random_example(classes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    labels = torch.randint(classes, (2, 8, 8))
    return torch.randn(2, classes, 8, 8), labels, (torch.rand(2, 8, 8) < 0.5).float()


# By hand ---------------------------------------------------------------------------


def test_dice_loss_of_the_worked_example() -> None:
    loss = dice_loss(*worked_example())
    assert loss.item() == pytest.approx(1 - (2 * 7.41 + 1) / (7.82 + 8 + 1), abs=1e-6)


def test_dice_loss_of_squares() -> None:
    """Foreground probabilities 0.8 where it is, 0.5 where it is not."""
    maps = maps_of(torch.tensor([[0.8, 0.5]]))
    loss = dice_loss(maps, torch.tensor([[[1, 0]]]), torch.ones(1, 1, 2), squared=True)
    assert loss.item() == pytest.approx(1 - (2 * 0.8 + 1) / (1 + 0.64 + 0.25 + 1), abs=1e-6)


def test_cross_entropy_by_hand() -> None:
    maps = maps_of(torch.tensor([[0.8, 0.25]]))
    labels = torch.tensor([[[1, 0]]])
    plain = cross_entropy(maps, labels, torch.ones(1, 1, 2))
    assert plain.item() == pytest.approx(-(math.log(0.8) + math.log(0.75)) / 2, abs=1e-6)
    weighted = cross_entropy(maps, labels, torch.tensor([[[3.0, 1.0]]]))
    assert weighted.item() == pytest.approx(-(3 * math.log(0.8) + math.log(0.75)) / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "options", "foreground", "background"),
    [
        (cross_entropy, {}, 1, 1),
        (cross_entropy, {"class_weights": torch.tensor([0.5, 4.0])}, 4, 0.5),
        (weighted_cross_entropy, {"factor": 3.0}, 3, 1),
        (weighted_cross_entropy, {"factor": 3, "class_weights": torch.tensor([2, 5])}, 15, 2),
        (balanced_cross_entropy, {"share": 0.7}, 0.7, 0.3),
        (focal_loss, {"alpha": 0.25, "gamma": 2.0}, 0.25 * 0.2**2, 0.75 * 0.4**2),
        (border_cross_entropy, {}, 1, 1),
    ],
)
def test_the_two_sides_of_each_cross_entropy(
    loss: Callable[..., Tensor], options: dict[str, Any], foreground: float, background: float
) -> None:
    """The definitions with q = 0.8 where the truth is 1 and 0.4 where it is 0."""
    maps = maps_of(torch.tensor([[0.8, 0.4]]))
    found = loss(maps, torch.tensor([[[1, 0]]]), torch.ones(1, 1, 2), **options)
    expected = -(foreground * math.log(0.8) + background * math.log(0.6)) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_classes_beyond_the_first_all_count_as_foreground() -> None:
    maps, labels, weights = random_example(4)
    losses = torch.nn.functional.cross_entropy(maps, labels, reduction="none")
    counts = torch.where(labels > 0, 3.0, 1.0) * weights
    expected = (losses * counts).sum() / weights.sum()
    torch.testing.assert_close(weighted_cross_entropy(maps, labels, weights, factor=3), expected)


def test_tversky_by_hand() -> None:
    """Of the worked example: hits 7.41, false alarms 7.82 - 7.41, missed 8 - 7.41."""
    loss = tversky_loss(*worked_example(), beta=0.2)
    index = (7.41 + 0.5) / (7.41 + 0.2 * 0.41 + 0.8 * 0.59 + 0.5)
    assert loss.item() == pytest.approx(1 - index, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_tversky_with_one_half_is_dice(classes: int) -> None:
    example = random_example(classes)
    torch.testing.assert_close(tversky_loss(*example, beta=0.5), dice_loss(*example))


@pytest.mark.parametrize("classes", [2, 4])
def test_focal_loss_without_focus_is_half_the_cross_entropy(classes: int) -> None:
    example = random_example(classes)
    found = focal_loss(*example, alpha=0.5, gamma=0)
    torch.testing.assert_close(found, cross_entropy(*example) / 2)


def test_dice_of_three_classes_counts_the_background_too() -> None:
    """One pixel each; probabilities 1 for the right class, but class 2 missed."""
    maps = torch.full((1, 3, 1, 3), -100.0)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 1] = maps[0, 1, 0, 2] = 100.0
    labels = torch.tensor([[[0, 1, 2]]])
    loss = dice_loss(maps, labels, torch.ones(1, 1, 3))
    right, half, missed = 1.0, (2 + 1) / (1 + 2 + 1), 1 / (1 + 0 + 1)
    assert loss.item() == pytest.approx(1 - (right + half + missed) / 3, abs=1e-6)


# What every one of them promises -----------------------------------------------------


def test_every_loss_is_described_and_can_be_made() -> None:
    assert set(LOSS_HELP) == set(LossKind)
    example = random_example(3)
    values = {make_loss(TrainingConfig(loss=kind))(*example).item() for kind in LossKind}
    # Tversky's default price is Dice's.
    assert len(values) == len(LossKind) - 1


@pytest.mark.parametrize(
    ("config", "direct"),
    [
        ({"loss": "weighted_cross_entropy", "foreground_weight": 3},
         lambda *e: weighted_cross_entropy(*e, factor=3)),
        ({"loss": "balanced_cross_entropy", "foreground_share": 0.9},
         lambda *e: balanced_cross_entropy(*e, share=0.9)),
        ({"loss": "focal", "focal_alpha": 0.3, "focal_gamma": 1},
         lambda *e: focal_loss(*e, alpha=0.3, gamma=1)),
        ({"loss": "dice", "dice_squared": True}, lambda *e: dice_loss(*e, squared=True)),
        ({"dice_squared": True}, lambda *e: dice_cross_entropy(*e, squared=True)),
        ({"loss": "tversky", "tversky_beta": 0.3}, lambda *e: tversky_loss(*e, beta=0.3)),
        ({"loss": "border_cross_entropy", "border_weight": 4, "border_sigma": 2},
         lambda *e: border_cross_entropy(*e, height=4, sigma=2)),
    ],
)  # fmt: skip
def test_settings_reach_the_loss(config: dict[str, Any], direct: Callable[..., Tensor]) -> None:
    example = random_example(3)
    found = make_loss(TrainingConfig(**config))(*example)
    assert torch.equal(found, direct(*example))
    assert not torch.equal(
        found, make_loss(TrainingConfig(loss=config.get("loss", "dice")))(*example)
    )


@every
@pytest.mark.parametrize("classes", [2, 4])
def test_pixels_nobody_spoke_about_do_not_matter(loss: Any, classes: int) -> None:
    maps, labels, weights = random_example(classes)
    maps.requires_grad_()
    value = loss(maps, labels, weights)
    value.backward()
    assert maps.grad is not None
    silent = (weights == 0)[:, None].expand_as(maps)
    assert (maps.grad[silent] == 0).all()
    assert (maps.grad[~silent] != 0).any()
    # Other labels, the unlabelled value among them, and other maps there: the same loss.
    other_labels = torch.where(weights > 0, labels, 255)
    other_maps = torch.where(silent, torch.randn_like(maps) * 50, maps)
    assert loss(other_maps, other_labels, weights).item() == value.item()


@every
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_maps_that_are_no_numbers_do_not_matter_there_either(loss: Any, odd: float) -> None:
    maps, labels, weights = random_example(3)
    expected = loss(maps, labels, weights)
    silent = (weights == 0)[:, None]
    for channels in (slice(None), slice(1)):  # all maps, and one of them
        broken = maps.clone()
        broken[:, channels] = torch.where(silent, odd, maps[:, channels])
        broken.requires_grad_()
        found = loss(broken, labels, weights)
        found.backward()
        assert found.item() == expected.item()
        assert broken.grad is not None
        assert torch.isfinite(broken.grad).all()
        assert (broken.grad[silent.expand_as(maps)] == 0).all()


@every
def test_one_supervised_pixel_says_as_much_in_a_large_image(loss: Any) -> None:
    """A single stroke must not drown among pixels nobody looked at."""
    torch.manual_seed(0)
    small, large = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 64, 64)
    large[:, :, :4, :4] = small
    labels, weights = torch.ones(1, 64, 64), torch.zeros(1, 64, 64)
    weights[0, 1, 1] = 1
    inside = loss(small, labels[:, :4, :4], weights[:, :4, :4])
    torch.testing.assert_close(loss(large, labels, weights), inside)


@every
@pytest.mark.parametrize("logit", [100.0, -100.0])
@pytest.mark.parametrize("truth", [0, 1])
@pytest.mark.parametrize("classes", [2, 4])
def test_losses_are_safe_at_extreme_maps(loss: Any, logit: float, truth: int, classes: int) -> None:
    maps = torch.zeros(1, classes, 4, 4)
    maps[:, 2:] = -100.0  # the others are out of the question
    maps[:, 1] = logit
    maps.requires_grad_()
    value = loss(maps, torch.full((1, 4, 4), truth), torch.ones(1, 4, 4))
    value.backward()
    assert math.isfinite(value.item())
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()
    is_right = (logit > 0) == bool(truth)
    # Dice is a mean over the classes, of which those that are not there are right.
    assert value.item() < 0.01 if is_right else value.item() > 1 / classes - 0.1


@every
def test_a_step_against_the_gradient_makes_the_loss_smaller(loss: Any) -> None:
    maps, labels, weights = random_example(3)
    maps.requires_grad_()
    value = loss(maps, labels, weights)
    value.backward()
    assert maps.grad is not None
    with torch.no_grad():
        assert loss(maps - 0.1 * maps.grad / maps.grad.norm(), labels, weights) < value


@every
def test_nothing_supervised_gives_no_loss_and_no_gradient(loss: Any) -> None:
    maps = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = loss(maps, torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
    value.backward()
    assert value.item() == 0
    assert maps.grad is not None
    assert (maps.grad == 0).all()


@every
@pytest.mark.parametrize("classes", [2, 4])
def test_an_empty_mask_rightly_predicted_costs_nothing(loss: Any, classes: int) -> None:
    maps = torch.zeros(1, classes, 4, 4)
    maps[:, 0] = 100
    value = loss(maps, torch.zeros(1, 4, 4), torch.ones(1, 4, 4))
    assert value.item() == pytest.approx(0, abs=1e-6)


# U-Net's borders ---------------------------------------------------------------------


def border_by_brute_force(objects: list[np.ndarray], height: float, sigma: float) -> np.ndarray:
    shape = objects[0].shape
    result = np.zeros(shape)
    for place in np.ndindex(shape):
        d = sorted(np.hypot(*(np.argwhere(o) - place).T).min() for o in objects)
        result[place] = height * np.exp(-((d[0] + d[1]) ** 2) / (2 * sigma**2))
    return result


@pytest.mark.parametrize(("height", "sigma"), [(10.0, 5.0), (3.0, 1.5)])
def test_border_weights_are_those_of_the_definition(height: float, sigma: float) -> None:
    labels = np.zeros((24, 40), np.uint8)
    labels[2:8, 3:9] = 1
    labels[4:12, 11:15] = 1  # two columns away
    labels[9:20, 2:6] = 2  # another class is another object
    labels[20, 6] = 2  # connected by a corner
    labels[8, 36] = 1
    objects = [np.zeros(labels.shape, bool) for _ in range(4)]
    objects[0][2:8, 3:9] = objects[1][4:12, 11:15] = objects[3][8, 36] = True
    objects[2] |= labels == 2
    found = border_weights(labels, height, sigma)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, border_by_brute_force(objects, height, sigma), atol=1e-5)


def test_border_weights_far_from_each_other_and_at_touching_objects() -> None:
    """What lies beyond reach is left out of the computation and must not be missed."""
    labels = np.zeros((4, 200), np.uint8)
    labels[:, 50] = 1
    labels[:, 51] = 2
    labels[:, 180] = 1
    found = border_weights(labels, 10.0, 2.0)
    assert found[:, 50:52] == pytest.approx(10 * math.exp(-1 / 8))
    assert found[:, 45] == pytest.approx(10 * math.exp(-(11**2) / 8))
    assert found[:, 120:].max() < 1e-6


@pytest.mark.parametrize("labels", [np.zeros((5, 5), bool), np.eye(5, dtype=np.int64)])
def test_without_two_objects_there_is_no_border(labels: np.ndarray) -> None:
    assert not border_weights(labels).any()


def test_a_gap_between_objects_costs_more() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.uint8)
    labels[:, 4:12, 2:7] = labels[:, 4:12, 9:14] = 1
    maps = torch.stack((1.0 - labels, labels + 0.0), 1) * 20
    ones = torch.ones(1, 16, 16)

    def cost(y: int, x: int) -> float:
        wrong = maps.clone()
        wrong[0, :, y, x] = wrong[0, :, y, x].flip(0)
        return border_cross_entropy(wrong, labels, ones).item()

    def counts(gap: float) -> float:
        return 1 + 10 * math.exp(-(gap**2) / 50)

    # d1 + d2: 1 + 2 in the gap; in the corner, over the diagonals.
    corner = math.hypot(4, 2) + math.hypot(4, 9)
    assert cost(8, 7) / cost(0, 0) == pytest.approx(counts(3) / counts(corner), rel=1e-4)


# Class weights -----------------------------------------------------------------------


def test_median_frequency_by_hand() -> None:
    """Class 0: 12 of 16 seen pixels, class 1: 2 of 8 (in one image only), class 2: 2 of 8."""
    first = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1], [255, 2, 2, 2, 2, 2, 2, 2]])
    second = torch.tensor([[0, 0, 0, 0], [0, 0, 2, 2]])
    seen = torch.tensor([[1.0] * 8, [0.0] * 8])
    found = median_frequency([first, second], [seen, 2 * torch.ones(2, 4)], 4)
    frequency = torch.tensor([12 / 16, 2 / 8, 2 / 8])
    assert found[:3].tolist() == pytest.approx((0.25 / frequency).tolist())
    assert found[3] == 1  # occurs nowhere


def test_median_frequency_of_a_batch_and_of_nothing() -> None:
    labels = torch.tensor([[[0, 0, 0, 1]]])
    assert median_frequency(labels, torch.ones(1, 1, 4), 2).tolist() == pytest.approx([2 / 3, 2])
    assert median_frequency(labels, torch.zeros(1, 1, 4), 2).tolist() == [1, 1]


@pytest.mark.parametrize(
    "kind", [k for k in LossKind if k not in (LossKind.DICE, LossKind.TVERSKY)]
)
def test_balanced_classes_change_what_pixels_count(kind: LossKind) -> None:
    example = random_example(3)
    config = TrainingConfig(loss=kind, class_weights="median_frequency")
    with pytest.raises(ValueError, match="class_weights"):
        make_loss(config)
    plain = make_loss(TrainingConfig(loss=kind), torch.tensor([9.0, 9.0, 9.0]))(*example)
    assert torch.equal(plain, make_loss(TrainingConfig(loss=kind))(*example))
    assert torch.equal(make_loss(config, torch.ones(3))(*example), plain)
    assert make_loss(config, torch.tensor([1.0, 5.0, 1.0]))(*example) > plain
