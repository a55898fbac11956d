"""The normalised cut: a loss by which segments are learnt without labels.

Shi, Malik: Normalized Cuts and Image Segmentation, PAMI 2000; with soft segments by
Xia, Kulis: W-Net, 2017.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["soft_ncut"]

#: Keeps the quotient defined for a segment that no pixel belongs to.
_EPSILON = 1e-6


def soft_ncut(
    probabilities: Tensor,
    image: Tensor,
    *,
    intensity_sigma: float,
    spatial_sigma: float = 4.0,
    radius: float = 5.0,
) -> Tensor:
    """Return how much is cut where segments part, the mean over the images.

    Nearby pixels of similar colour are tied together by a weight

        w_ij = exp(-|F_i - F_j|^2 / intensity_sigma^2) exp(-|X_i - X_j|^2 / spatial_sigma^2)

    where F are their values in all channels and X their places; pixels ``radius`` or
    farther apart are not tied. Of all ties of segment k, the share

        sum_ij w_ij p_ik p_jk / sum_ij w_ij p_ik

    leads to its own pixels. The loss is the number of segments minus the sum of their
    shares: 0 where no tie is cut, the number of segments minus 1 where nothing is told
    apart.

    Parameters
    ----------
    probabilities
        How much each pixel belongs to each segment, shape (N, K, H, W); sums to 1 over K.
    image
        Shape (N, C, H, W); no gradient is had for it.
    intensity_sigma
        In the image's own units.
    spatial_sigma, radius
        In pixels.

    Returns
    -------
    Tensor
        A number between 0 and K.

    Notes
    -----
    Xia, Kulis, section 3.2. They set sigma to 10 grey levels of 255 and to 4 pixels, the
    radius to 5 pixels. Pixels beyond the border do not exist: they are tied to nothing.
    """
    around, degree = _neighbourhood(
        probabilities.detach(), image, intensity_sigma, spatial_sigma, radius
    )
    # W is symmetric, so p' W p has the gradient 2 W p, and the weights of all pairs need not
    # be kept for the way back: W p, which is ``around``, will do.
    product = probabilities * around
    within = (2 * product - product.detach()).sum((2, 3))
    whole = (probabilities * degree).sum((2, 3)).clamp_min(_EPSILON)
    return (probabilities.shape[1] - (within / whole).sum(1)).mean()


@torch.no_grad()
def _neighbourhood(
    probabilities: Tensor, image: Tensor, intensity: float, spatial: float, radius: float
) -> tuple[Tensor, Tensor]:
    """Return for every pixel i the sums over j of w_ij p_jk and of w_ij.

    Returns
    -------
    around, degree
        Shapes (N, K, H, W) and (N, 1, H, W).
    """
    # Every pixel is tied to itself with weight 1.
    around = probabilities.clone()
    degree = torch.ones_like(image[:, :1])
    for down, right in _half_disc(radius):
        here, there = _pairs(image, down, right)
        unlike = (here - there).square().sum(1, keepdim=True) / intensity**2
        weights = torch.exp(-unlike - (down**2 + right**2) / spatial**2)
        # Each pair is met once, and counts at both of its ends.
        p_here, p_there = _pairs(probabilities, down, right)
        around_here, around_there = _pairs(around, down, right)
        around_here += weights * p_there
        around_there += weights * p_here
        degree_here, degree_there = _pairs(degree, down, right)
        degree_here += weights
        degree_there += weights
    return around, degree


def _half_disc(radius: float) -> list[tuple[int, int]]:
    """Return one of each two opposite steps that are shorter than ``radius``."""
    reach = math.ceil(radius) - 1
    return [
        (down, right)
        for down in range(reach + 1)
        for right in range(-reach, reach + 1)
        if (down > 0 or right > 0) and down**2 + right**2 < radius**2
    ]


def _pairs(x: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """Return the pixels that have a partner ``down`` and ``right`` of them, and the partners.

    Both are views of ``x``, (N, C, H - down, W - |right|).
    """
    height, width = x.shape[-2:]
    rows = max(0, height - down)
    columns = max(0, width - abs(right))
    first, second = max(0, -right), max(0, right)
    here = x[..., :rows, first : first + columns]
    there = x[..., down : down + rows, second : second + columns]
    return here, there
