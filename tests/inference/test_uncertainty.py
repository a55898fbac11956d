from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdesk.core.prediction import UncertaintyKind
from segdesk.inference.uncertainty import (
    entropy,
    margin,
    shown_as_guessing,
    uncertainty,
    unsure_share,
)

#: Four pixels of three classes: sure, a coin toss, a guess, nearly sure.
PIXELS = np.array([[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1]], np.float32).T


def test_entropy_by_hand() -> None:
    last = -(0.7 * np.log(0.7) + 0.2 * np.log(0.2) + 0.1 * np.log(0.1)) / np.log(3)
    expected = [0, np.log(2) / np.log(3), 1, last]
    np.testing.assert_allclose(entropy(PIXELS), expected, atol=1e-5)


def test_margin_by_hand() -> None:
    np.testing.assert_allclose(margin(PIXELS), [0, 1, 1, 0.5], atol=1e-6)


def test_two_classes_are_unsure_from_a_quarter_to_three_quarters() -> None:
    p = np.array([0.1, 0.24, 0.26, 0.5, 0.74, 0.76], np.float32)
    assert unsure_share(np.stack((p, 1 - p))) == pytest.approx(3 / 6)


@settings(max_examples=50)
@given(
    classes=st.integers(2, 6),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from([UncertaintyKind.ENTROPY, UncertaintyKind.MARGIN]),
)
def test_it_lies_between_0_and_1_whatever_the_order_of_classes(
    classes: int, seed: int, kind: UncertaintyKind
) -> None:
    random = np.random.default_rng(seed)
    p = random.dirichlet(np.full(classes, 0.3), (5, 4)).transpose(2, 0, 1).astype(np.float32)
    values = uncertainty(kind, p)
    assert values.shape == (5, 4)
    assert values.min() >= 0
    assert values.max() <= 1
    np.testing.assert_allclose(values, uncertainty(kind, p[random.permutation(classes)]), atol=1e-5)


@pytest.mark.parametrize("kind", [UncertaintyKind.ENTROPY, UncertaintyKind.MARGIN])
@pytest.mark.parametrize("classes", [2, 3])
def test_pixels_of_an_over_confident_model_keep_their_order(
    kind: UncertaintyKind, classes: int
) -> None:
    """Their largest probability is 1 in single precision, and the others tell them apart."""
    others = np.logspace(-30, -9, 50, dtype=np.float32)
    p = np.stack((1 - (classes - 1) * others, *[others] * (classes - 1)))
    assert (p[0] == 1).all()
    assert (np.diff(uncertainty(kind, p)) > 0).all()


def test_as_many_pixels_are_shown_unsure_as_are_whatever_the_kind() -> None:
    """Mutual information is small; the legend's middle, one half, must not be empty for it."""
    values = np.random.default_rng(0).permutation(np.linspace(0, 0.004, 10_000, dtype=np.float32))
    limit = shown_as_guessing(UncertaintyKind.DROPOUT, values.reshape(100, 100), 0.05)
    assert (values / limit >= 0.5).mean() == pytest.approx(0.05, abs=0.001)
    assert shown_as_guessing(UncertaintyKind.MARGIN, values, 0.05) == 1.0
    agreed = np.zeros((8, 8), np.float32)
    assert 0 < shown_as_guessing(UncertaintyKind.DROPOUT, agreed, 0.0) < 1e-5
    assert shown_as_guessing(UncertaintyKind.DROPOUT, agreed + 1, 1.0) == 1.0
    assert shown_as_guessing(UncertaintyKind.AUGMENTATION, values, 0.05) == 1.0
