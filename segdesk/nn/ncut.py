"""The normalised cut: segments that hold together, learnt and merged without labels.

Shi, Malik: Normalized Cuts and Image Segmentation, PAMI 2000; with soft segments by
Xia, Kulis: W-Net, 2017.

Nearby pixels of similar colour are tied together by a weight

    w_ij = exp(-|F_i - F_j|^2 / intensity_sigma^2) exp(-|X_i - X_j|^2 / spatial_sigma^2)

where F are their values in all channels and X their places; pixels ``radius`` or farther
apart are not tied, and every pixel is tied to itself with weight 1. Of all ties of the
pixels of a segment, some are cut: they lead to pixels of other segments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["merge_segments", "soft_ncut", "soft_ncut_and_ties"]

#: Keeps quotients defined for a segment that no pixel belongs to.
_EPSILON = 1e-6


def soft_ncut(
    probabilities: Tensor,
    image: Tensor,
    *,
    intensity_sigma: float,
    spatial_sigma: float = 4.0,
    radius: float = 5.0,
) -> Tensor:
    """Return how much is cut, the mean over the images: a loss.

    Of all ties of segment k, the share

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
    return soft_ncut_and_ties(
        probabilities,
        image,
        intensity_sigma=intensity_sigma,
        spatial_sigma=spatial_sigma,
        radius=radius,
    )[0]


def soft_ncut_and_ties(
    probabilities: Tensor,
    image: Tensor,
    *,
    intensity_sigma: float,
    spatial_sigma: float,
    radius: float,
) -> tuple[Tensor, Tensor]:
    """Return the loss of :func:`soft_ncut`, and how strongly segments are tied.

    Returns
    -------
    loss, ties
        The ties have shape (K, K), sum_ij w_ij p_ik p_jl over all images, and no gradient.
    """
    around, degree = _neighbourhood(
        probabilities.detach(), image, intensity_sigma, spatial_sigma, radius
    )
    # W is symmetric, so p' W p has the gradient 2 W p, and the weights of all pairs need not
    # be kept for the way back: W p, which is ``around``, will do.
    product = probabilities * around
    within = (2 * product - product.detach()).sum((2, 3))
    whole = (probabilities * degree).sum((2, 3)).clamp_min(_EPSILON)
    loss = (probabilities.shape[1] - (within / whole).sum(1)).mean()
    ties = probabilities.detach().flatten(2) @ around.flatten(2).transpose(1, 2)
    return loss, ties.sum(0)


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


def merge_segments(ties: Tensor, groups: int) -> Tensor:
    """Say which segments belong together, two at a time those that leave the least cut.

    Parameters
    ----------
    ties
        Shape (K, K), from :func:`soft_ncut_and_ties`, of as many images as one likes.
    groups
        How many are to be left.

    Returns
    -------
    Tensor
        The group of every segment, int64 (K,). Group 0 has the most ties: usually it is
        the background.
    """
    ties = ties.detach().double().cpu()
    # Which segments are in which group, shape (groups, K); at first each is alone.
    members = torch.eye(ties.shape[0], dtype=torch.float64)
    while members.shape[0] > groups:
        between = members @ ties @ members.T
        inside, whole = between.diagonal(), between.sum(1) + _EPSILON * float(ties.max())
        share = inside / whole
        joint = (inside[:, None] + inside + 2 * between) / (whole[:, None] + whole)
        # The cut is the number of groups minus the sum of their shares.
        gain = (joint - share[:, None] - share).fill_diagonal_(-math.inf)
        first, second = divmod(int(gain.argmax()), members.shape[0])
        members[first] += members[second]
        members = torch.cat((members[:second], members[second + 1 :]))
    largest_first = (members @ ties.sum(1)).argsort(descending=True, stable=True)
    return members[largest_first].argmax(0)
