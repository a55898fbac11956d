"""How unsure a model is of each pixel, from its class probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segdesk.core.prediction import UNSURE_MARGIN, UncertaintyKind

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


def entropy(probabilities: Floats) -> Floats:
    """Return Shannon entropy over its maximum, 0 (sure) to 1 (guessing).

    Parameters
    ----------
    probabilities
        float32 (K, ...), summing to one over K.
    """
    p = np.clip(probabilities, 1e-7, 1.0)
    values: Floats = -(p * np.log(p)).sum(0) / np.log(len(p))
    return np.clip(values, 0.0, 1.0)


def margin(probabilities: Floats) -> Floats:
    """Return one minus the lead of the best class, 0 (sure) to 1 (a tie).

    Parameters
    ----------
    probabilities
        float32 (K, ...), summing to one over K.
    """
    top = np.partition(probabilities, -2, axis=0)[-2:]
    values: Floats = np.clip(1.0 - (top[1] - top[0]), 0.0, 1.0)
    return values


_KINDS = {
    UncertaintyKind.AUTO: margin,  # the best where nothing is known of the model
    UncertaintyKind.ENTROPY: entropy,
    UncertaintyKind.MARGIN: margin,
}


def uncertainty(kind: UncertaintyKind, probabilities: Floats) -> Floats:
    """Return the uncertainty of the given kind, shape of one probability map."""
    return _KINDS[kind](probabilities)


def unsure_share(probabilities: Floats) -> float:
    """Return the share of pixels whose two best classes lie close together."""
    return float((margin(probabilities) > 1.0 - UNSURE_MARGIN).mean())
