from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from segdesk.nn.ncut import soft_ncut


def brute_force(
    probabilities: Tensor, image: Tensor, intensity: float, spatial: float, radius: float
) -> float:
    """The formula as it stands, pair by pair, of one image."""
    classes, height, width = probabilities.shape
    pixels = list(itertools.product(range(height), range(width)))
    total = float(classes)
    for k in range(classes):
        within = whole = 0.0
        for i, j in itertools.product(pixels, pixels):
            distance = math.dist(i, j)
            if distance >= radius:
                continue
            unlike = float((image[:, *i] - image[:, *j]).square().sum())
            weight = math.exp(-unlike / intensity**2) * math.exp(-(distance**2) / spatial**2)
            within += weight * float(probabilities[k, *i] * probabilities[k, *j])
            whole += weight * float(probabilities[k, *i])
        total -= within / whole
    return total


def example(classes: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    maps = torch.randn(2, classes, height, width, dtype=torch.float64)
    image = torch.randn(2, channels, height, width, dtype=torch.float64)
    return maps.softmax(1), image


@pytest.mark.parametrize(
    ("height", "width", "radius"), [(7, 6, 5), (3, 9, 5), (9, 1, 5), (6, 7, 2.5), (5, 5, 1)]
)
def test_it_is_the_sum_over_all_pairs(height: int, width: int, radius: float) -> None:
    probabilities, image = example(3, 2, height, width)
    found = soft_ncut(probabilities, image, intensity_sigma=0.8, spatial_sigma=2.0, radius=radius)
    expected = [
        brute_force(p, x, 0.8, 2.0, radius) for p, x in zip(probabilities, image, strict=True)
    ]
    assert float(found) == pytest.approx(sum(expected) / 2, abs=1e-9)


def test_its_defaults_are_the_papers_distances() -> None:
    probabilities, image = example(2, 1, 8, 8)
    found = float(soft_ncut(probabilities[:1], image[:1], intensity_sigma=1.0))
    assert found == pytest.approx(brute_force(probabilities[0], image[0], 1.0, 4.0, 5.0))


def two_halves() -> tuple[Tensor, Tensor]:
    """An image whose left half is dark and right half bright, and the true segments."""
    right = torch.zeros(1, 1, 16, 16)
    right[..., 8:] = 1
    return torch.cat((1 - right, right), 1), right


def test_true_segments_cut_nothing() -> None:
    segments, image = two_halves()
    assert float(soft_ncut(segments, image, intensity_sigma=0.1)) == pytest.approx(0, abs=1e-5)


def test_one_segment_for_all_and_none_told_apart_both_cost_one() -> None:
    segments, image = two_halves()
    nothing = torch.full_like(segments, 0.5)
    everything = torch.cat((torch.ones_like(image), torch.zeros_like(image)), 1)
    for found in (nothing, everything):
        assert float(soft_ncut(found, image, intensity_sigma=0.1)) == pytest.approx(1, abs=1e-5)


def test_no_other_line_cuts_as_little_as_the_true_one() -> None:
    _, image = two_halves()
    costs = []
    for column in range(1, 16):
        right = (torch.arange(16) >= column).float().expand(1, 1, 16, 16)
        segments = torch.cat((1 - right, right), 1)
        costs.append(float(soft_ncut(segments, image, intensity_sigma=0.1)))
    assert min(costs[:7] + costs[8:]) > costs[7] + 0.05


def test_its_gradient_is_its_slope() -> None:
    probabilities, image = example(2, 1, 5, 4)
    assert torch.autograd.gradcheck(
        lambda p: soft_ncut(p, image, intensity_sigma=0.7), probabilities.requires_grad_()
    )
