"""Ours against pydensecrf2, which wraps the authors' own C++."""

from __future__ import annotations

import numpy as np
import pytest

from crf_examples import example
from segdesk.config.refinement import CrfConfig
from segdesk.inference.crf import LEAST_PROBABILITY, refine

densecrf = pytest.importorskip(
    "pydensecrf.densecrf", reason="pydensecrf2 is built from source, and is not installed here"
)


def theirs(probabilities: np.ndarray, grey: np.ndarray, config: CrfConfig) -> np.ndarray:
    classes, height, width = probabilities.shape
    model = densecrf.DenseCRF(height * width, classes)
    unary = -np.log(np.maximum(probabilities, LEAST_PROBABILITY)).reshape(classes, -1)
    model.setUnaryEnergy(np.ascontiguousarray(unary, np.float32))
    place = np.indices((height, width)).reshape(2, -1)
    value = grey.reshape(-1, grey.shape[-1]).T
    near = place / config.smoothness_px
    alike = np.concatenate((place / config.appearance_px, value / config.appearance_grey))
    for features, weight in (
        (near, config.smoothness_weight),
        (alike, config.appearance_weight),
    ):
        model.addPairwiseEnergy(
            np.ascontiguousarray(features, np.float32), compat=weight,
            kernel=densecrf.DIAG_KERNEL, normalization=densecrf.NORMALIZE_SYMMETRIC,
        )  # fmt: skip
    return np.array(model.inference(config.iterations)).reshape(probabilities.shape)


@pytest.mark.parametrize("iterations", [1, 5, 10])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("side", [24, 90])
def test_labels_and_marginals_are_theirs(iterations: int, channels: int, side: int) -> None:
    """Their smoothness kernel goes through the lattice as well, ours is exact."""
    for config in (
        CrfConfig(iterations=iterations),
        CrfConfig(iterations=iterations, appearance_grey=5, appearance_px=60, appearance_weight=8),
    ):
        probabilities, grey = example(0, height=side, width=side, channels=channels)
        ours = refine(probabilities, grey, config)
        other = theirs(probabilities, grey, config)
        assert (ours.argmax(0) == other.argmax(0)).mean() >= 0.99
        assert np.abs(ours - other).mean() <= 0.01
