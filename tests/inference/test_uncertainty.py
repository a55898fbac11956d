from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdesk.core.prediction import UncertaintyKind
from segdesk.inference.uncertainty import entropy, margin, uncertainty, unsure_share

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
    kind=st.sampled_from(list(UncertaintyKind)),
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
