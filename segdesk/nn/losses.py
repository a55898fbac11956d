"""Losses over supervised pixels only.

All take class maps before the softmax, float (N, K, H, W); labels, integer (N, H, W),
where the background is class 0; and weights, float (N, H, W), how much each pixel counts.
A pixel of weight 0 is unsupervised: its label and maps may be anything.

p stands for the truth, 1 for the class of a pixel and 0 for the others, and q for the
predicted probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from segdesk.config.training import ClassWeights, LossKind, TrainingConfig

if TYPE_CHECKING:
    import numpy.typing as npt

#: ``loss(maps, labels, weights)``
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Objects farther than this, in sigmas, add less than 1e-13 of the border weight.
FAR = 8


def make_loss(config: TrainingConfig, class_weights: Tensor | None = None) -> Loss:
    """Return the loss that ``config`` asks for.

    Parameters
    ----------
    class_weights
        Float (K,), from :func:`median_frequency`; needed where the config balances the
        classes, and left alone where it does not.

    Raises
    ------
    ValueError
        The config balances the classes and ``class_weights`` is missing.
    """
    balance = None
    if config.class_weights is ClassWeights.MEDIAN_FREQUENCY:
        if class_weights is None:
            raise ValueError("balanced classes need class_weights")
        balance = class_weights
    losses: dict[LossKind, Loss] = {
        LossKind.CROSS_ENTROPY: partial(cross_entropy, class_weights=balance),
        LossKind.WEIGHTED_CROSS_ENTROPY: partial(
            weighted_cross_entropy, factor=config.foreground_weight, class_weights=balance
        ),
        LossKind.BALANCED_CROSS_ENTROPY: partial(
            balanced_cross_entropy, share=config.foreground_share, class_weights=balance
        ),
        LossKind.FOCAL: partial(
            focal_loss, alpha=config.focal_alpha, gamma=config.focal_gamma, class_weights=balance
        ),
        LossKind.DICE: partial(dice_loss, squared=config.dice_squared),
        LossKind.DICE_CROSS_ENTROPY: partial(
            dice_cross_entropy, squared=config.dice_squared, class_weights=balance
        ),
        LossKind.TVERSKY: partial(tversky_loss, beta=config.tversky_beta),
        LossKind.BORDER_CROSS_ENTROPY: partial(
            border_cross_entropy,
            height=config.border_weight,
            sigma=config.border_sigma,
            class_weights=balance,
        ),
    }
    return losses[config.loss]


# Cross entropy and its relatives: a mean over pixels -----------------------------


def cross_entropy(
    maps: Tensor, labels: Tensor, weights: Tensor, *, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean of -sum p log q over pixels, each counting ``weights`` times.

    Parameters
    ----------
    maps, labels, weights
        See the module.
    class_weights
        Float (K,): pixels of a class count this much. The mean is over the pixels and
        not over these, so that larger ones make a larger loss.
    """
    maps, known = _known(maps, labels, weights)
    by_class = _by_class(maps, 1.0, 1.0, class_weights)
    return _mean(by_class[known] * F.cross_entropy(maps, known, reduction="none"), weights)


def weighted_cross_entropy(
    maps: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    factor: float = 2.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the mean of -(b p log q + (1-p) log(1-q)).

    With more than two classes: cross entropy in which pixels of every class but the
    background count ``factor``, b, times.
    """
    by_class = _by_class(maps, 1.0, factor, class_weights)
    return cross_entropy(maps, labels, weights, class_weights=by_class)


def balanced_cross_entropy(
    maps: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    share: float = 0.5,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the mean of -(b p log q + (1-b)(1-p) log(1-q)).

    With more than two classes: cross entropy in which pixels of the background count
    1-b times and all others b times, where b is ``share``.
    """
    by_class = _by_class(maps, 1 - share, share, class_weights)
    return cross_entropy(maps, labels, weights, class_weights=by_class)


def focal_loss(
    maps: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    alpha: float = 0.5,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the mean of -(a (1-q)^g p log q + (1-a) q^g (1-p) log(1-q)).

    With more than two classes: the sum over classes of -(1-q)^g p log q, times 1-a where
    the truth is background and a elsewhere. The mean is over pixels; libraries that
    take it over classes too (MONAI, kornia) give 1/K of this.

    Parameters
    ----------
    maps, labels, weights, class_weights
        As in :func:`cross_entropy`.
    alpha
        a; 1/2 treats background and foreground alike, at half the size.
    gamma
        g; 0 is cross entropy, and the larger, the less pixels count that are right
        already.
    """
    maps, known = _known(maps, labels, weights)
    log_q = F.log_softmax(maps, 1).gather(1, known[:, None])[:, 0]
    # Not quite 0, where a power below 1 has no slope.
    miss = (-torch.expm1(log_q)).clamp_min(1e-6)
    by_class = _by_class(maps, 1 - alpha, alpha, class_weights)
    return _mean(-by_class[known] * miss**gamma * log_q, weights)


def border_cross_entropy(
    maps: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    height: float = 10.0,
    sigma: float = 5.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return U-Net's loss: cross entropy that counts narrow gaps between objects more.

    A pixel counts w_c + w0 exp(-(d1+d2)^2 / (2 s^2)) times, with w_c the class weight
    (1 without), w0 ``height``, s ``sigma``, and d1 and d2 from :func:`border_weights`.
    Objects nobody has spoken about are none.
    """
    maps, known = _known(maps, labels, weights)
    by_class = _by_class(maps, 1.0, 1.0, class_weights)
    # Distances are scipy's work, and so the processor's.
    objects = known.cpu().numpy()
    border = np.stack([border_weights(plane, height, sigma) for plane in objects])
    counts = by_class[known] + torch.from_numpy(border).to(maps.device, maps.dtype)
    return _mean(counts * F.cross_entropy(maps, known, reduction="none"), weights)


def border_weights(
    labels: npt.NDArray[Any], height: float = 10.0, sigma: float = 5.0
) -> npt.NDArray[np.float32]:
    """Return w0 exp(-(d1+d2)^2 / (2 s^2)), float32 (H, W), of integer or binary labels.

    d1 and d2 are the distances, in pixels, to the nearest and second nearest object,
    0 inside. An object is a connected piece (corners connect) of one class that is not
    0; touching objects are told apart only if their labels differ. With less than two
    objects there is no gap, and all is 0.
    """
    nearest = np.full(labels.shape, np.inf)
    second = nearest.copy()
    reach = int(np.ceil(FAR * sigma))
    for value in np.unique(labels):
        if value == 0:
            continue
        pieces, _ = ndimage.label(labels == value, np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(pieces), 1):
            # What is farther off than `reach` weighs nothing; leaving it out saves the time.
            around = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
            distance = ndimage.distance_transform_edt(pieces[around] != number)
            near, far = nearest[around], second[around]
            far[:] = np.minimum(far, np.maximum(near, distance))
            near[:] = np.minimum(near, distance)
    gap = nearest + second
    weights: npt.NDArray[np.float32] = height * np.exp(-(gap**2) / (2 * sigma**2))
    return weights.astype(np.float32)


# Dice and its relatives: a ratio of sums ------------------------------------------


def dice_loss(
    maps: Tensor, labels: Tensor, weights: Tensor, *, smooth: float = 1.0, squared: bool = False
) -> Tensor:
    """Return 1 - (2 sum pq + 1) / (sum p + sum q + 1), mean over images and classes.

    The background, class 0, counts like any other class when there are more than
    two classes, and is left out when there are two: it is the complement then.

    Parameters
    ----------
    maps, labels, weights
        See the module; which pixels count matters here, and how much does not.
    smooth
        The 1 in both places, which makes an empty mask rightly predicted cost nothing.
    squared
        Sum p^2 and q^2 below the line (V-Net's form), which weighs unsure pixels less.
    """
    p, q = _truth_and_prediction(maps, labels, weights)
    overlap = (p * q).sum((2, 3))
    power = 2 if squared else 1
    whole = (p**power).sum((2, 3)) + (q**power).sum((2, 3))
    return (1 - (2 * overlap + smooth) / (whole + smooth)).mean()


def tversky_loss(
    maps: Tensor, labels: Tensor, weights: Tensor, *, beta: float = 0.5, smooth: float = 1.0
) -> Tensor:
    """Return 1 - pq / (pq + b (1-p) q + (1-b) p (1-q)), sums over pixels.

    b, ``beta``, prices false alarms and 1-b misses; 1/2 is the Dice loss, for which half
    of ``smooth`` is added above and below the line. Means and background as there.
    """
    p, q = _truth_and_prediction(maps, labels, weights)
    hit = (p * q).sum((2, 3))
    false_alarm = q.sum((2, 3)) - hit
    missed = p.sum((2, 3)) - hit
    price = beta * false_alarm + (1 - beta) * missed
    return (1 - (hit + smooth / 2) / (hit + price + smooth / 2)).mean()


def dice_cross_entropy(
    maps: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    squared: bool = False,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the sum of Dice loss and cross entropy."""
    dice = dice_loss(maps, labels, weights, squared=squared)
    return dice + cross_entropy(maps, labels, weights, class_weights=class_weights)


# Class weights ---------------------------------------------------------------------


def median_frequency(labels: Iterable[Tensor], weights: Iterable[Tensor], classes: int) -> Tensor:
    """Return a weight for every class, float32 (K,), that makes rare ones count more.

    The frequency of a class is its share of the pixels of the images it occurs in; its
    weight is the median of the frequencies over its own (SegNet, Badrinarayanan et al.,
    PAMI 2017). Only pixels of weight above 0 are counted, all alike. A class that occurs
    nowhere weighs 1.

    Parameters
    ----------
    labels, weights
        One (H, W) an image, of any sizes, or (N, H, W).
    classes
        K.
    """
    pixels = torch.zeros(classes, dtype=torch.float64)
    total = torch.zeros(classes, dtype=torch.float64)
    for plane, weight in zip(labels, weights, strict=True):
        counted = plane[(weight > 0) & (plane < classes)].long()
        here = torch.bincount(counted.cpu(), minlength=classes)
        pixels += here
        total += torch.where(here > 0, here.sum(), 0)
    seen = pixels > 0
    frequency = pixels[seen] / total[seen]
    result = torch.ones(classes)
    if seen.any():
        result[seen] = (frequency.quantile(0.5) / frequency).float()
    return result


# What they share -------------------------------------------------------------------


def _known(maps: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps and int64 labels that are classes everywhere, 0 where nothing is known.

    So that what a network made of those pixels, NaN among it, reaches no loss or gradient.
    """
    is_known = weights > 0
    truth = torch.where(is_known, labels.long(), 0).clamp_(0, maps.shape[1] - 1)
    return torch.where(is_known[:, None], maps, 0), truth


def _mean(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights).sum() / weights.sum().clamp_min(1e-6)


def _by_class(
    maps: Tensor, background: float, others: float, class_weights: Tensor | None
) -> Tensor:
    """Return weights (K,): one for class 0, one for the others, times the classes' own."""
    result = maps.new_full((maps.shape[1],), others)
    result[0] = background
    return result if class_weights is None else result * class_weights.to(result)


def _truth_and_prediction(maps: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return p and q, (N, classes that count, H, W), 0 where nothing is known."""
    classes = maps.shape[1]
    maps, labels = _known(maps, labels, weights)
    truth = F.one_hot(labels, classes).permute(0, 3, 1, 2)
    known = (weights > 0)[:, None]
    first = 1 if classes == 2 else 0
    p = torch.where(known, truth.to(maps.dtype), 0)[:, first:]
    q = torch.where(known, torch.softmax(maps, 1), 0)[:, first:]
    return p, q
