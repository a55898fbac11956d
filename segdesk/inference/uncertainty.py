"""How unsure a model is of each pixel, from its class probabilities.

For class maps before the softmax, and for several passes, see
:mod:`segdesk.inference.sampling`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import xlog1py, xlogy

from segdesk.core.prediction import UNSURE_MARGIN, UncertaintyKind

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


def entropy(probabilities: Floats) -> Floats:
    """Return Shannon entropy over its maximum, 0 (sure) to 1 (guessing).

    Keeps the order of pixels however sure the model is: what is lacking to 1 is taken
    from the other classes, whose probabilities are exact where the largest rounds to 1.

    Parameters
    ----------
    probabilities
        float32 (K, ...), summing to one over K.
    """
    rising = np.sort(probabilities, axis=0)
    others = rising[:-1]
    rest = np.minimum(others.sum(0), 1.0)
    of_best = np.where(rest < 0.5, xlog1py(1.0 - rest, -rest), xlogy(rising[-1], rising[-1]))
    values = -(of_best + xlogy(others, others).sum(0)) / np.log(len(rising))
    return np.clip(values, 0.0, 1.0).astype(np.float32)


def margin(probabilities: Floats) -> Floats:
    """Return one minus the lead of the best class, 0 (sure) to 1 (a tie).

    Keeps the order of pixels however sure the model is, see :func:`entropy`.

    Parameters
    ----------
    probabilities
        float32 (K, ...), summing to one over K.
    """
    rising = np.sort(probabilities, axis=0)
    values: Floats = np.clip(rising[:-1].sum(0) + rising[-2], 0.0, 1.0)
    return values


_KINDS = {
    UncertaintyKind.AUTO: margin,  # the best where nothing is known of the model
    UncertaintyKind.ENTROPY: entropy,
    UncertaintyKind.MARGIN: margin,
}


def uncertainty(kind: UncertaintyKind, probabilities: Floats) -> Floats:
    """Return the uncertainty of the given kind, shape of one probability map.

    Parameters
    ----------
    kind
        Entropy or margin; what several passes tell cannot be had from their mean.
    """
    return _KINDS[kind](probabilities)


def unsure_pixels(probabilities: Floats) -> npt.NDArray[np.bool_]:
    """Say of each pixel whether its two best classes lie close together, (...)."""
    return margin(probabilities) > 1.0 - UNSURE_MARGIN


def unsure_share(probabilities: Floats) -> float:
    """Return the share of pixels whose two best classes lie close together."""
    return float(unsure_pixels(probabilities).mean())
