"""Ours against MONAI's and segmentation_models_pytorch's, and where their conventions differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segdesk.nn.losses import cross_entropy, dice_loss, focal_loss, tversky_loss
from segdesk.nn.torchvision_compat import import_transforms

import_transforms()
import segmentation_models_pytorch as smp  # noqa: E402
from monai import losses as monai  # noqa: E402

CLASSES = 4


def example(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    labels = torch.randint(CLASSES, (2, 24, 32))
    return 2 * torch.randn(2, CLASSES, 24, 32), labels, torch.ones(2, 24, 32)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_dice_is_monais_mean_over_images_and_classes(squared: bool) -> None:
    maps, labels, weights = example()
    theirs = monai.DiceLoss(
        softmax=True, to_onehot_y=True, squared_pred=squared, smooth_nr=1.0, smooth_dr=1.0
    )
    close(dice_loss(maps, labels, weights, squared=squared), theirs(maps, labels[:, None]))


def test_dice_of_one_image_is_smps_which_sums_over_the_batch() -> None:
    """smp joins the images of a batch, and adds its smoothing to the overlap, not to twice it."""
    maps, labels, weights = example()
    theirs = smp.losses.DiceLoss("multiclass", smooth=0.5)
    for i in range(2):
        one = slice(i, i + 1)
        close(dice_loss(maps[one], labels[one], weights[one]), theirs(maps[one], labels[one]))
    assert abs(dice_loss(maps, labels, weights) - theirs(maps, labels)) > 1e-6


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.8])
def test_tversky_is_monais_and_smps(beta: float) -> None:
    maps, labels, weights = example()
    theirs = monai.TverskyLoss(
        softmax=True, to_onehot_y=True, alpha=beta, beta=1 - beta, smooth_nr=0.5, smooth_dr=0.5
    )
    close(tversky_loss(maps, labels, weights, beta=beta), theirs(maps, labels[:, None]))
    other = smp.losses.TverskyLoss("multiclass", alpha=beta, beta=1 - beta, smooth=0.5)
    close(tversky_loss(maps[:1], labels[:1], weights[:1], beta=beta), other(maps[:1], labels[:1]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_monais_summed_over_classes(gamma: float) -> None:
    maps, labels, weights = example()
    theirs = monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma, reduction="none")(
        maps, labels[:, None]
    )
    # Our a is 1/2 on both sides; without a the loss is twice as large.
    close(2 * focal_loss(maps, labels, weights, alpha=0.5, gamma=gamma), theirs.sum(1).mean())
    # MONAI's own mean is over classes too.
    mean = monai.FocalLoss(use_softmax=True, to_onehot_y=True, gamma=gamma)(maps, labels[:, None])
    close(2 * focal_loss(maps, labels, weights, alpha=0.5, gamma=gamma) / CLASSES, mean)


def test_focal_with_alpha_is_monais_with_two_classes() -> None:
    """Two maps and a softmax are one map, their difference, and a sigmoid."""
    torch.manual_seed(1)
    maps, labels = 2 * torch.randn(2, 2, 16, 16), torch.randint(2, (2, 16, 16))
    theirs = monai.FocalLoss(alpha=0.25, gamma=2.0)(
        (maps[:, 1] - maps[:, 0])[:, None], labels[:, None].float()
    )
    close(focal_loss(maps, labels, torch.ones(2, 16, 16), alpha=0.25, gamma=2.0), theirs)
    smps = smp.losses.FocalLoss("binary", alpha=0.25, gamma=2.0)
    close(
        focal_loss(maps, labels, torch.ones(2, 16, 16), alpha=0.25, gamma=2.0),
        smps((maps[:, 1] - maps[:, 0])[:, None], labels),
    )


def test_pixels_left_out_are_left_out_as_in_smp() -> None:
    maps, labels, weights = example()
    weights[:, 5:, 3:] = 0
    marked = torch.where(weights > 0, labels, 255)
    theirs = smp.losses.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=255, reduction="sum")(
        maps, marked
    )
    close(cross_entropy(maps, labels, weights), theirs / weights.sum())
