"""Losses over supervised pixels only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_cross_entropy(maps: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the mean cross entropy, each pixel counting ``weights`` times.

    Parameters
    ----------
    maps
        Float (N, K, H, W), before the softmax.
    labels
        Integer (N, H, W); values where the weight is 0 may be anything.
    weights
        Float (N, H, W), 0 for pixels nobody has spoken about.
    """
    classes = maps.shape[1]
    safe = torch.where(weights > 0, labels.long(), 0).clamp_(0, classes - 1)
    losses = F.cross_entropy(maps, safe, reduction="none")
    return (losses * weights).sum() / weights.sum().clamp_min(1e-6)


def dice_loss(maps: Tensor, labels: Tensor, weights: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - (2 sum pq + 1) / (sum p + sum q + 1), mean over images and classes.

    The background, class 0, counts like any other class when there are more than
    two classes, and is left out when there are two: it is the complement then.

    Parameters
    ----------
    maps, labels, weights
        As in :func:`weighted_cross_entropy`.
    """
    classes = maps.shape[1]
    safe = torch.where(weights > 0, labels.long(), 0).clamp_(0, classes - 1)
    truth = F.one_hot(safe, classes).permute(0, 3, 1, 2).to(maps.dtype)
    known = (weights > 0).to(maps.dtype)[:, None]
    first = 1 if classes == 2 else 0
    p = (truth * known)[:, first:]
    q = (torch.softmax(maps, 1) * known)[:, first:]
    overlap = (p * q).sum((2, 3))
    ratio = (2 * overlap + smooth) / (p.sum((2, 3)) + q.sum((2, 3)) + smooth)
    return (1 - ratio).mean()


def dice_cross_entropy(maps: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of Dice loss and cross entropy."""
    return dice_loss(maps, labels, weights) + weighted_cross_entropy(maps, labels, weights)
